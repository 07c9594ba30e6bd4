"""How many requests to the object store a timestep costs: ingest, nowcast, publish, verify, status.

    python -m tests.benchmarks.bench_requests [--frames 24]

A real S3 server behind a proxy that counts. The grid is tiny, so that an array is one object or
one a lead time, as on any grid: what counts is how often the service asks, which no pixel changes.
After some hours of service a frame comes; then the requests of each step of it are printed, by
kind. Prices of stores are by kind: PUT, POST and LIST cost about ten times as much as GET and HEAD.
"""

import argparse
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import s3fs

from flows.verify import verify_forecasts
from infra.stack.parts import s3
from infra.stack.place import BUCKET, Place, bare_environment
from infra.stack.processes import end, start
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import Service, run_round
from models.verification import VerifySettings
from pipelines.decode import IngestSettings
from pipelines.forecasts import latest_init_time, open_forecast
from pipelines.times import clock_set_to
from pipelines.watch import look
from tests.benchmarks.bench_age import START, TIMESTEP, TinyRain, file_of
from tests.benchmarks.paired import table
from tests.infra.fault_proxy import fault_proxy
from tests.ports import free_base

PRODUCT = "bench"
KINDS = ("PUT", "POST", "LIST", "GET", "HEAD", "DELETE")


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=24)
    frames = parser.parse_args().frames
    folder = Path(tempfile.mkdtemp(prefix="squall-requests-"))
    place = Place.open(folder, free_base())
    try:
        start(folder, s3(place), bare_environment())
        with fault_proxy(f"127.0.0.1:{place.port('s3')}") as proxy:
            seen: Counter[str] = Counter()

            def count(method: str, path: str, number: int) -> None:
                asked = parse_qs(urlsplit(path).query)
                seen["LIST" if method == "GET" and "list-type" in asked else method] += 1

            proxy.fault = count
            os.environ |= place.storage | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
            s3fs.S3FileSystem.clear_instance_cache()
            measure(f"s3://{BUCKET}/requests", folder / "radar", frames, seen)
    finally:
        end(folder, "s3")
        shutil.rmtree(folder, ignore_errors=True)


def measure(root: str, files: Path, frames: int, seen: Counter[str]) -> None:
    """Serve some hours, then a frame more, step by step."""
    files.mkdir()
    settings = IngestSettings(source=TinyRain.name, location=str(files), workers=1)
    verify = VerifySettings(since="3h", workers=1)
    with Nowcaster(root, "persistence", NowcastSettings(lead_time="1h")) as nowcaster:
        service = Service(root, PRODUCT, settings, nowcaster)

        def a_round() -> None:
            assert all(one.state == "published" for one in run_round(service))

        for number in range(frames):
            file_of(files, START + number * TIMESTEP)
            with clock_set_to(START + number * TIMESTEP):
                a_round()
        verify_forecasts(root, PRODUCT, verify)
        newest = START + frames * TIMESTEP
        file_of(files, newest)

        def read() -> None:
            time = latest_init_time(root, PRODUCT)
            assert time == newest
            open_forecast(root, PRODUCT, time)["rain_rate"].load()

        steps: dict[str, Callable[[], object]] = {
            "a round that takes in a frame and publishes its forecast of 12 lead times": a_round,
            "a round that finds nothing new": a_round,
            "verify of the last 3 hours, one forecast due": lambda: verify_forecasts(
                root, PRODUCT, verify
            ),
            "verify of the last 3 hours, none due": lambda: verify_forecasts(root, PRODUCT, verify),
            "status": lambda: look(root, PRODUCT),
            "a reader: newest forecast, rain rate of all lead times": read,
        }
        rows = []
        with clock_set_to(newest + pd.Timedelta("1min")):
            for name, step in steps.items():
                seen.clear()
                step()
                rows.append([name, *(str(seen[kind]) for kind in KINDS)])
    print(table(("step", *KINDS), rows))


if __name__ == "__main__":
    main()
