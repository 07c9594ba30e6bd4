"""`squall train`, `squall tune`, `squall moving-mnist`."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from flows.options import Common, settings_of


def train(
    *,
    start: str | None = None,
    end: str | None = None,
    epochs: int | None = None,
    submit: str | None = None,
    env: Annotated[list[str] | None, Parameter(negative=())] = None,
    common: Common | None = None,
) -> None:
    """Train a network on the archive with Ray Train, and register it as a challenger.

    Forecasts in shadow show whether it is better than the champion: `squall registry promote`. The
    first version of a name becomes the champion at once.

    Example: squall train --product knmi --end 2010-08-26T04:55 --set train.workers=4

    Parameters
    ----------
    start
        Learn from frames at or after this time, UTC.
    end
        Learn from frames at or before this time, UTC.
    epochs
        Passes over train.samples_per_epoch samples.
    submit
        Train as a job of the Ray cluster with this dashboard, http://HEAD:8265, and follow it;
        Ctrl-C stops it.
    env
        Name of a variable that the job gets from here; repeat it for more. Whoever sees the
        cluster's jobs sees its value.
    """
    from flows.train import standing
    from flows.train import train as flow
    from pipelines.storage import display, join

    settings = settings_of(common, train={"start": start, "end": end, "epochs": epochs})
    with interrupted_by_sigterm():
        model = flow(
            root=settings.root,
            product=settings.product,
            train=settings.train,
            promote=settings.promote,
            submit=submit,
            environment=env,
            progress=True,
        )
    print(f"model: {display(join(settings.root, 'models', model))}")
    print(standing(settings.root, model))


def tune(
    *,
    samples: int | None = None,
    epochs: int | None = None,
    space: str | None = None,
    json: bool = False,
    common: Common | None = None,
) -> int:
    """Try many settings of training for a few epochs with Ray Tune, and say which are best.

    Example: squall tune --product knmi --space '{"learning_rate": {"loguniform": [1e-4, 1e-2]}}'

    Parameters
    ----------
    samples
        Trials: settings drawn from the space.
    epochs
        Epochs of a trial that is not stopped; the worse half stops at tune.grace_epochs.
    space
        Settings of section train as JSON, each with choice, uniform, loguniform or integers.
    json
        Print JSON.
    """
    from flows.layers import parse_assignments
    from flows.report import print_json, print_tuned
    from flows.tune import tune_product
    from pipelines.storage import display

    given = parse_assignments([f"tune.space={space}"])["tune"] if space else {}
    options = {"samples": samples, "max_epochs": epochs, **given}
    tuned, url = tune_product(settings_of(common, tune=options), progress=True)
    print_json(tuned) if json else print_tuned(tuned, display(url))
    return 0 if tuned.best else 1


def moving_mnist(
    folder: str,
    *,
    recipe: bool = False,
    epochs: int | None = None,
    test_sequences: int | None = None,
    common: Common | None = None,
) -> None:
    """Train on Moving MNIST with Ray Train and test beside persistence: is a network sound?

    Example: squall moving-mnist /data/mnist --epochs 6

    Parameters
    ----------
    folder
        Folder or URL with MNIST's idx files, gzipped or not.
    recipe
        The published recipe (4×128 channels, 200 epochs of 10,000 sequences) instead of a small
        one; for a GPU: --set train.gpu=true.
    epochs
        Passes over train.samples_per_epoch sequences.
    test_sequences
        How many of the 10,000 test sequences; 256, or all with --recipe.
    """
    from flows.moving_mnist import RECIPE, SMALL
    from flows.moving_mnist import moving_mnist as benchmark
    from flows.report import print_benchmark
    from models.moving_mnist import TEST_SEQUENCES
    from pipelines.storage import display, join

    settings = settings_of(common, RECIPE if recipe else SMALL, train={"epochs": epochs})
    sequences = test_sequences or (TEST_SEQUENCES if recipe else 256)
    result, picture = benchmark(settings, folder, sequences, progress=True)
    print_benchmark(result)
    print(f"model: {display(join(settings.root, 'models', result.model_id))}")
    print(f"picture: {display(picture)}")


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C here: what is under way is stopped in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
