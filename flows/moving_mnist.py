"""`squall moving-mnist`: the benchmark, its settings, its table and its picture."""

import io
from typing import Any

from flows.settings import Settings
from models.moving_mnist_benchmark import NAME, BenchmarkResult, run
from pipelines import storage

SMALL: dict[str, Any] = {
    "train": {
        "network": {"hidden_channels": (48, 48), "input_kernel": 5, "state_kernel": 5},
        "epochs": 6,
        "samples_per_epoch": 512,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "schedule": "onecycle",
        "workers": 2,
    }
}
"""Small enough for two cores."""

RECIPE: dict[str, Any] = {
    "train": {
        "network": {
            "hidden_channels": (128, 128, 128, 128),
            "input_kernel": 5,
            "state_kernel": 5,
            "compute": "bf16",
        },
        "epochs": 200,
        "samples_per_epoch": 10_000,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "schedule": "onecycle",
        "workers": 1,
    }
}
"""That of OpenSTL's table for ConvLSTM: 4×128, 5×5, patch 4, Adam, 200 epochs."""


def moving_mnist(
    settings: Settings, folder: str, test_sequences: int, *, progress: bool = False
) -> tuple[BenchmarkResult, str]:
    """Train and test; the result, and the URL of its picture beside its scores as JSON."""
    result = run(settings.root, folder, settings.train, test_sequences, progress=progress)
    place = storage.join(settings.root, NAME, result.model_id.partition("/")[2])
    storage.write_json(
        f"{place}.json",
        {"model": result.model_id, "sequences": result.sequences, "scores": result.scores},
    )
    storage.write_bytes(f"{place}.png", picture(result))
    return result, f"{place}.png"


def picture(result: BenchmarkResult) -> bytes:
    """Past, future and forecast frames of the first test sequence, as PNG."""
    from matplotlib.figure import Figure

    rows = list(result.example.items())
    columns = max(len(frames) for _, frames in rows)
    figure = Figure(figsize=(columns, len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for row, (name, frames) in zip(axes, rows, strict=True):
        for number, axis in enumerate(row):
            axis.set(xticks=[], yticks=[])
            axis.imshow(frames[number].numpy(), cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(name)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
