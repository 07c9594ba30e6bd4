"""A root that is copied while its service goes on, lost, and copied back."""

import shutil
import threading

import numpy as np
import pandas as pd

from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import Service, run_round
from pipelines.archive import Archive, archive_url
from pipelines.decode import IngestSettings
from pipelines.forecasts import open_forecast, published_init_times
from pipelines.validate import validate

PRODUCT = "town"
TIMES = pd.date_range("2024-06-01T05:00", periods=24, freq="5min")


def back_up(root, copy):
    """As infra/operations.md says: the archive's status first, then the rest."""
    status = f"archive/{PRODUCT}.zarr/status/c"

    def passing(folder, names):  # what a writer has under way, and renames or removes meanwhile
        return [name for name in names if name.startswith(".") or name.endswith(".partial")]

    def copy_new(source, target):
        if not str(source).startswith(f"{root / status}/") and not source.endswith(".lock"):
            shutil.copy2(source, target)
        return target

    shutil.copytree(root / status, copy / status, ignore=passing)
    shutil.copytree(root, copy, dirs_exist_ok=True, copy_function=copy_new, ignore=passing)


def test_a_copy_made_while_the_service_goes_on_is_whole_and_goes_on_itself(tmp_path, send, grid):
    folder, root, copy = tmp_path / "radar", tmp_path / "root", tmp_path / "copy"
    settings = IngestSettings(source="odim", location=str(folder), timestep="5min", workers=1)
    nowcast = NowcastSettings(lead_time="10min", catch_up="2h")
    went_on = threading.Event()

    def frame(slot):
        send(folder, TIMES[slot], np.full(grid.shape, 1.0 + slot / 10))

    def serve(place, slots):
        with Nowcaster(str(place), "persistence", nowcast) as nowcaster:
            service = Service(str(place), PRODUCT, settings, nowcaster)
            for slot in slots:
                frame(slot)
                assert all(one.state == "published" for one in run_round(service))
                if slot > 12:
                    went_on.set()

    serve(root, range(12))
    running = threading.Thread(target=serve, args=(root, range(12, 22)))
    running.start()
    assert went_on.wait(60)
    back_up(root, copy)
    running.join(timeout=120)
    assert not running.is_alive()
    shutil.rmtree(root)

    there = published_init_times(str(copy), PRODUCT)
    assert len(there) >= 13
    for init_time in there:
        (value,) = np.unique(open_forecast(str(copy), PRODUCT, init_time)["rain_rate"])
        assert abs(value - (1.0 + TIMES.get_loc(init_time) / 10)) < 0.006
    url = archive_url(str(copy), PRODUCT)
    report = validate(url, repair=True, workers=1)
    assert all("yet the manifest names" in problem for problem in report.problems.values())
    assert validate(url, workers=1).frames == len(Archive(url).usable_times())

    serve(copy, [22, 23])
    assert list(Archive(url).usable_times()) == list(TIMES)
    assert list(published_init_times(str(copy), PRODUCT)) == list(TIMES)
