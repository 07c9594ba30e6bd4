"""What the commands print for people."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from flows.demo import DemoReport
from flows.doctor import Check
from flows.settings import Setting
from flows.verify import VerifyReport
from models.catalogue import Entry
from models.moving_mnist_benchmark import BenchmarkResult
from models.tune import Tuned, plain
from pipelines.info import ArchiveInfo
from pipelines.sources import Source
from pipelines.storage import display
from pipelines.times import format_duration

console = Console(highlight=False, soft_wrap=False)


def titled(title: str, columns: Iterable[str]) -> Table:
    """An empty table."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def print_sources(sources: Iterable[Source]) -> None:
    """One row per source."""
    table = titled("Sources", ("name", "what", "format", "variable", "timestep", "licence", "at"))
    for source in sources:
        timestep = format_duration(source.timestep) if source.timestep else "by product"
        table.add_row(
            source.name,
            source.title,
            source.format,
            source.variable,
            timestep,
            source.licence,
            source.location or "–",
        )
    console.print(table)


def print_models(entries: Iterable[Entry], past: int, lead_times: int) -> None:
    """One row per network and baseline; `models.catalogue.Entry` explains the columns."""
    columns = ("name", "paper", "parameters", "frame", "GFLOP", "training MB")
    table = titled(f"Models: {past} past frames, {lead_times} lead times", columns)
    table.columns[0].no_wrap = True
    for entry in entries:
        table.add_row(
            entry.name,
            entry.paper,
            f"{entry.parameters:,}" if entry.parameters is not None else "–",
            f"{entry.frame}²" if entry.frame is not None else "–",
            f"{entry.flops / 1e9:.1f}" if entry.flops is not None else "–",
            f"{entry.training_bytes / 1e6:.0f}" if entry.training_bytes is not None else "–",
        )
    console.print(table)
    print(
        "GFLOP: of one forecast. training MB: kept for the backward pass of one sequence, float32."
    )


def print_benchmark(result: BenchmarkResult) -> None:
    """Scores averaged over frames, and at the first, middle and last lead time."""
    title = f"Moving MNIST: {result.sequences:,} test sequences"
    table = titled(title, ("forecaster", "score", "all frames", "1st", "5th", "10th"))
    for name, scores in result.scores.items():
        for score, values in scores.items():
            chosen = [sum(values) / len(values), values[0], values[4], values[9]]
            digits = 4 if score == "SSIM" else 2
            table.add_row(name, score, *(f"{value:.{digits}f}" for value in chosen))
    console.print(table)
    print("MSE and MAE: summed over a frame's pixels. Published (OpenSTL, 200 epochs): ConvLSTM-S")
    print("MSE 29.80, MAE 90.64, SSIM 0.9288.")


def print_tuned(tuned: Tuned, place: str) -> None:
    """Trials, the best first, and how to train with what the best one drew."""
    drawn = list(dict.fromkeys(key for row in tuned.rows for key in row.chosen))
    columns = ("trial", *drawn, "epochs", "loss", "validation", "s", "state")
    table = titled(f"Trials, compared by {tuned.measure} on validation samples", columns)
    for column in table.columns:
        column.overflow = "fold"
    for row in tuned.rows:
        table.add_row(
            str(row.trial),
            *(plain(_rounded(row.chosen.get(key))) for key in drawn),
            str(row.epochs),
            *("–" if loss is None else f"{loss:.4g}" for loss in (row.loss, row.validation_loss)),
            f"{row.seconds:.0f}",
            row.state,
        )
    console.print(table)
    for row in tuned.rows:
        if row.reason:
            print(f"trial {row.trial} failed: {row.reason}")
    if tuned.persistence is not None:
        print(f"persistence: {tuned.persistence:.5g} by {tuned.measure}")
    if tuned.best:
        print(f"squall train {tuned.best.arguments()}")
    print(f"trials: {place}")


def _rounded(value: object) -> object:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def print_json(entries: Iterable[Entry] | Tuned) -> None:
    """The same for programs: of models in FLOPs and bytes."""
    rows = asdict(entries) if isinstance(entries, Tuned) else [asdict(entry) for entry in entries]
    print(json.dumps(rows, indent=2))


def print_settings(settings: Iterable[Setting]) -> None:
    """Effective settings and their origins."""
    table = titled("Settings", ("setting", "value", "from"))
    for setting in settings:
        value = "–" if setting.value is None else str(setting.value)
        style = "dim" if setting.origin == "default" else ""
        table.add_row(setting.key, value, setting.origin, style=style)
    console.print(table)


def print_checks(checks: Iterable[Check]) -> None:
    """What the doctor saw."""
    table = titled("Checks", ("check", "", "found", "remedy"))
    colours = {"ok": "green", "note": "yellow", "fail": "red"}
    for check in checks:
        state = f"[{colours[check.state]}]{check.state}[/]"
        table.add_row(check.name, state, check.found, check.remedy)
    console.print(table)


def print_archive(info: ArchiveInfo) -> None:
    """What an archive holds."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    counts = {"slots": info.statuses, "files": info.outcomes, "masked pixels": info.masked}
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (info.times[0], info.times[-1]))
    rows = {
        "archive": f"{display(info.url)} ({info.layout} layout)",
        "grid": str(info.grid),
        "axis": f"{first} to {last} UTC, every {format_duration(info.timestep)}",
        "frames": str(len(info.usable)),
        **{
            name: ", ".join(f"{n} {of}" for of, n in sorted(c.items()))
            for name, c in counts.items()
        },
        "read": ", ".join(f"{n} {decoder}" for decoder, n in sorted(info.decoders.items())),
        "clipped pixels": str(info.clipped),
        "size": f"{info.size / 1e6:.1f} MB; {info.gb_per_year:.2f} GB a year of such frames",
    }
    if info.training is not None:
        rows["training layout"] = (
            f"{len(info.training.usable)} frames, {info.training.size / 1e6:.1f} MB, "
            f"{info.training.gb_per_year:.2f} GB a year"
        )
    for name, text in rows.items():
        table.add_row(name, text or "none")
    console.print(table)
    for time, flags in info.suspects.iterrows():
        why = ", ".join(flags.index[flags])
        console.print(f"stands out: {time:%Y-%m-%d %H:%M} UTC by {why}")


def print_verification(report: VerifyReport) -> None:
    """The score table, what it is of, and why some forecasts are not in it."""
    print_scores(report.table())
    console.print(f"{report.counts()}; all forecasters on the same pixels", soft_wrap=True)
    for time, why in report.failed.items():
        console.print(f"  {time}: {why}", soft_wrap=True)
    console.print(f"scores: {display(report.scores_url)}", soft_wrap=True)


def print_scores(rows: list[dict[str, str]]) -> None:
    """A score table (`flows.verify.score_table`), at up to six lead times."""
    names = list(rows[0])
    leads = names[2:]
    chosen = [leads[i] for i in sorted({round(k * (len(leads) - 1) / 5) for k in range(6)})]
    table = titled("Scores by lead time", ())
    table.add_column("score")
    table.add_column("forecaster")
    for lead in chosen:
        table.add_column(lead, justify="right")
    for before, row in zip([None, *rows], rows, strict=False):
        new = before is None or before["score"] != row["score"]
        if new and before is not None:
            table.add_section()
        cells = [row[lead] for lead in chosen]
        table.add_row(row["score"] if new else "", row["forecaster"], *cells)
    console.print(table)


def print_demo(report: DemoReport) -> None:
    """Where everything lies, how good it is, and how to read it."""
    console.print()
    console.print(f"frames: {report.frames}")
    for error in report.errors:
        console.print(f"  {error}", soft_wrap=True)
    nowcasts = report.nowcasts
    console.print(f"nowcasts: {len(nowcasts.published)} published, {len(nowcasts.skipped)} skipped")
    for time, reason in nowcasts.skipped.items():
        console.print(f"  {time}: {reason}")
    console.print()
    print_verification(report.verification)
    console.print()
    for name, url in (
        ("archive", report.archive),
        ("model", report.model),
        ("forecasts", report.forecast.rsplit("/", 1)[0]),
        ("picture", report.picture),
    ):
        console.print(f"{name + ':':<11}{display(url)}", soft_wrap=True)
    console.print("\nRead a forecast with nothing of Squall installed:\n")
    console.print("    import xarray as xr")
    console.print(f'    forecast = xr.open_zarr("{display(report.forecast)}")', soft_wrap=True)
    console.print('    print(forecast.rain_rate.sel(lead_time="15min").max().compute())')
