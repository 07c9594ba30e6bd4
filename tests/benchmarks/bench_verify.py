"""How long the full score table of a forecast takes: Squall and pysteps, on the same fields.

    python -m tests.benchmarks.bench_verify [FOLDER] --forecasts 4 --rounds 2

FOLDER holds KNMI files (765×700, 5 min); without one, synthetic frames of that size. A forecast
has 12 lead times; observed is one frame, forecast another, so every table is full. Both compute
CSI, POD, FAR, bias, HSS, ETS, MSE, MAE, mean error and correlation, FSS at 5 thresholds and 3
scales, and the spectra of both fields; of ensembles (20 members, 200×200) CRPS, reliability and
ROC at the 5 thresholds, and the rank histogram. Squall computes SSIM beside, which pysteps lacks.
Squall runs in one process, and with two Dask workers that are up already; pysteps in one, as it
does. Then seconds for 1, 2 and 4 times as many forecasts: the cost of one should not change.
Squall works on the rectangle that holds the pixels that count, pysteps on the whole field: so the
ratio depends on how many count, which is printed too.
"""

import argparse
import contextlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines.compare import Scoring, compare
from pipelines.fss import SCALES_KM
from pipelines.grid import Grid
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.sources import SOURCES
from pipelines.sources.synthetic import SyntheticRadar
from pipelines.workers import local_cluster, run_parallel

from .paired import Paired, seconds, table

LEADS = pd.timedelta_range("5min", periods=12, freq="5min")
MEMBERS, SIDE = 20, 200
SCORES = ["CSI", "POD", "FAR", "BIAS", "HSS", "ETS"]


def frames(folder: Path | None, count: int) -> list[xr.DataArray]:
    """So many frames (y, x), and their grid in the coordinates."""
    if folder is not None:
        files = sorted(folder.glob("*.h5"))[:count]
        return [SOURCES["knmi"].read(file.read_bytes()) for file in files]
    radar = SyntheticRadar(size=765, frames=count, cells=60)
    coords = radar.grid.coords(lonlat=False)
    return [xr.DataArray(one, coords, ("y", "x"))[:, :700] for one in radar.rain_rate()]


def ours(forecast: xr.DataArray, observed: xr.DataArray, scoring: Scoring) -> xr.Dataset:
    """Squall's sums of one forecast."""
    return compare({"it": forecast}, observed, scoring)


def pysteps_table(
    forecast: NDArray[np.floating], observed: NDArray[np.floating], pixels: dict[float, int]
) -> None:
    """pysteps' scores of one field."""
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.utils.spectral import rapsd
        from pysteps.verification.detcatscores import det_cat_fct
        from pysteps.verification.detcontscores import det_cont_fct
        from pysteps.verification.spatialscores import fss
    for threshold in THRESHOLDS_MM_H:
        det_cat_fct(forecast, observed, threshold, SCORES)
        for size in pixels.values():
            fss(forecast, observed, threshold, size)
    det_cont_fct(forecast, observed, ["MSE", "MAE", "ME", "corr_p"])
    for field in (forecast, observed):
        rapsd(np.nan_to_num(field), fft_method=np.fft)


def pysteps_ensemble(members: NDArray[np.floating], observed: NDArray[np.floating]) -> None:
    """pysteps' scores of one ensemble field."""
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification import ensscores, probscores
    probscores.CRPS(members, observed)
    histogram = ensscores.rankhist_init(len(members))
    ensscores.rankhist_accum(histogram, members, observed)
    for threshold in THRESHOLDS_MM_H:
        part = (members >= threshold).mean(0)
        diagram = probscores.reldiag_init(threshold, n_bins=11)
        probscores.reldiag_accum(diagram, part, observed)
        curve = probscores.ROC_curve_init(threshold, n_prob_thrs=11)
        probscores.ROC_curve_accum(curve, part, observed)


def main() -> None:
    """Time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--forecasts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    fields = frames(options.folder, len(LEADS) + options.forecasts)
    grid = Grid.of(fields[0])
    scoring = Scoring.on(grid, THRESHOLDS_MM_H, SCALES_KM)
    pixels = {scale: max(window) for scale, window in scoring.windows.items()}
    leads = pd.Index(LEADS, name="lead_time")
    plain = [one.drop_vars(set(one.coords) - {"y", "x"}) for one in fields]
    observed = xr.concat(plain[: len(leads)], leads)
    forecasts = [
        observed.copy(data=np.stack([plain[len(leads) + k].values] * len(leads)))
        for k in range(options.forecasts)
    ]
    few = xr.Dataset({"o": observed[:2, 200 : 200 + SIDE, 200 : 200 + SIDE].fillna(0.0)})["o"]
    noise = np.random.default_rng(0).gamma(2.0, 0.5, (MEMBERS, *few.shape))
    members = xr.DataArray(few.values * noise, few.coords, ("member", *few.dims)).astype("f4")
    of_members = Scoring(scoring.thresholds)

    def their_table() -> None:
        for forecast in forecasts:
            for lead in range(len(leads)):
                pysteps_table(forecast.values[lead], observed.values[lead], pixels)

    def their_ensemble() -> None:
        for lead in range(len(few)):
            pysteps_ensemble(members.values[:, lead], few.values[lead])

    tasks = [(forecast, observed, scoring) for forecast in forecasts]
    with local_cluster(2) as scheduler:

        def two_workers(number: int = 1) -> None:
            list(run_parallel(ours, tasks * number, workers=2, scheduler=scheduler))

        def one_process() -> None:
            list(run_parallel(ours, tasks, workers=1))

        def our_ensemble() -> None:
            compare({"it": members}, few, of_members)

        ways = {
            "full table, two workers": (two_workers, their_table, options.forecasts, "≥ 5"),
            "full table, one process": (one_process, their_table, options.forecasts, ""),
            "ensemble of 20, 200×200, one process": (our_ensemble, their_ensemble, len(few), ""),
        }
        two_workers()
        pysteps_table(forecasts[0].values[0], observed.values[0], pixels)  # imports, as ours have
        pysteps_ensemble(members.values[:, 0], few.values[0])
        rows = []
        for name, (mine, theirs, count, goal) in ways.items():
            pairs = [(seconds(mine), seconds(theirs)) for _ in range(options.rounds)]
            paired = Paired(*([one / count for one in each] for each in zip(*pairs, strict=True)))
            rows.append(paired.row(name, goal))
        growth = {n: seconds(lambda n=n: two_workers(n)) for n in (1, 2, 4)}
    counts = np.mean([(one.notnull() & observed.notnull()).mean() for one in forecasts])
    print(f"{counts:.0%} of the pixels count")
    print(table(("what", "Squall ms", "pysteps ms", "pysteps : Squall", "goal"), rows))
    for number, spent in growth.items():
        count = number * options.forecasts
        print(f"{count} forecasts: {spent:.1f} s, {spent / count * 1e3:.0f} ms each")


if __name__ == "__main__":
    main()
