"""How good registered models are on the last hours of an archive, beside baselines.

    python -m tests.benchmarks.bench_skill ROOT --product knmi --models default balanced \\
        --since 2010-08-26T05:00

Forecasts from every init_time since then that has its past and its whole future, or from as many of
them as are asked for, all on the same pixels; prints CSI, FSS, MAE and MSE by lead time as
Markdown, with the models' ids.
"""

import argparse
from typing import Any

import pandas as pd
import xarray as xr

from models.baselines import BASELINES, build_baseline
from models.evaluation import evaluate_forecasters, spread
from models.prediction import NetworkForecaster
from models.registry import load_model
from pipelines.archive import Archive, archive_url
from pipelines.samples import SequenceShape, complete_init_times
from pipelines.scores import scores
from pipelines.times import format_duration, lead_times, utc


def main() -> None:
    """Forecast, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--product", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--baselines", nargs="*", default=["persistence", "advection", "sprog"])
    parser.add_argument("--since", required=True)
    parser.add_argument("--future", default="1h")
    parser.add_argument("--events", type=int, default=10**6)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 5.0])
    parser.add_argument("--scales", type=float, nargs="+", default=[5.0, 20.0])
    options = parser.parse_args()
    archive = Archive(archive_url(options.root, options.product))
    ahead = lead_times(archive.timestep, pd.Timedelta(options.future))
    models = {name: load_model(options.root, name) for name in options.models}
    past = max(model.past_frames for model in models.values())
    times = archive.usable_times()
    init_times = complete_init_times(times, archive.timestep, SequenceShape(past, len(ahead), 1))
    events = spread(init_times[init_times >= utc(options.since)], options.events)
    forecasters: dict[str, Any] = {name: NetworkForecaster(m) for name, m in models.items()}
    assert not forecasters.keys() & BASELINES.keys()
    forecasters |= {name: build_baseline(name) for name in options.baselines}
    sums = evaluate_forecasters(
        archive.url, forecasters, events, ahead, options.thresholds, options.scales, progress=True
    )
    print(f"{sums.attrs['events']} init_times, {events[0]} to {events[-1]}; ", end="")
    print(", ".join(model.id for model in models.values()))
    print(markdown(scores(sums)))


def markdown(values: xr.Dataset) -> str:
    """A row a score and forecaster, a column a lead time."""
    shown = {
        f"CSI ≥ {threshold:g} mm/h": values["csi"].sel(threshold=threshold)
        for threshold in values["threshold"].values
    }
    shown |= {
        f"FSS ≥ {threshold:g} mm/h, {scale:g} km": values["fss"].sel(
            threshold=threshold, scale=scale
        )
        for threshold in values["threshold"].values
        for scale in values["scale"].values
    }
    shown |= {"MAE (mm/h)": values["mae"], "MSE (mm²/h²)": values["mse"]}
    leads = pd.TimedeltaIndex(values["lead_time"].values)
    chosen = [lead for lead in leads if lead <= pd.Timedelta("5min") or lead.seconds % 900 == 0]
    rows = [["score", "forecaster", *map(format_duration, chosen)], ["---"] * (len(chosen) + 2)]
    rows += [
        [title, str(name)]
        + [f"{float(score.sel(forecaster=name, lead_time=lead)):.3f}" for lead in chosen]
        for title, score in shown.items()
        for name in values["forecaster"].values
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
