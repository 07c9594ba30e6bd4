"""A worker of a run: wherever it begins again, and with however many, it ends with the same."""

import contextlib
import dataclasses
import re

import pytest
import torch
import torch.multiprocessing

from models import checkpoints, runs
from models.worker import Message, Worker
from pipelines import storage
from pipelines.errors import SquallError

from .small_run import SETTINGS, assert_same, changed, run


@pytest.fixture
def place(tmp_path):
    return storage.normalise(tmp_path)


MLFLOW_NAME = re.compile(r"[\w\-. :/]+", re.ASCII)


class Stopped(Exception):
    """What a worker that dies does not say."""


def dying_at(step):
    def after(made):
        if made == step:
            raise Stopped

    return after


@pytest.mark.parametrize("step", [1, 3, 5, 8, 11])
def test_wherever_a_worker_dies_the_next_one_ends_with_the_same_weights(
    run_data, undisturbed, place, step
):
    made = []
    with pytest.raises(Stopped):
        run(run_data, place, after_step=dying_at(step))
    resumed = run(run_data, place, after_step=made.append)
    assert made[0] == max(kept for kept in (0, 3, 4, 6, 8, 9) if kept <= step) + 1
    assert made[-1] == 12
    assert_same(resumed, undisturbed)


def test_the_loss_falls_and_every_epoch_says_what_there_is_to_know(undisturbed):
    history = undisturbed.history
    assert history[-1]["loss"] < history[0]["loss"]
    assert [epoch["step"] for epoch in history] == [4, 8, 12]
    for epoch in history:
        assert epoch["samples_per_second"] > 0
        assert 0 <= epoch["data_wait"] < 1
        assert epoch["gradient_norm"] > 0
        assert {"validation_persistence", "validation_csi_0.5mm_h", "learning_rate"} <= epoch.keys()


def test_what_is_told_and_reported(run_data, place):
    told, reported = [], []
    run(run_data, place, tell=told.append, report=reported.append)
    assert [message.step for message in told] == [4, 8, 10, 12]
    assert told[2].metrics.keys() == {"loss", "learning_rate", "gradient_norm"}
    assert [m.metrics for m in told if m.epoch_ends] == reported == runs.outcome(place).history
    assert isinstance(told[0], Message)
    details = told[0].details
    assert {"validation_csi_0.5mm_h_5min", "validation_csi_2mm_h_15min"} <= details.keys()
    assert all(MLFLOW_NAME.fullmatch(name) for name in details | told[0].metrics)
    pictures = [(message.step, [*message.pictures]) for message in told if message.pictures]
    assert pictures == [(4, ["forecast_1", "forecast_2"]), (12, ["forecast_1", "forecast_2"])]
    assert told[0].pictures["forecast_1"].startswith(b"\x89PNG")
    assert told[0].pictures["forecast_1"] != told[3].pictures["forecast_1"]


def test_an_adversary_learns_beside_it_and_goes_on_with_it(run_data, place, tmp_path):
    settings = changed(adversarial=0.02, loss="mse+gdl", epochs=2)
    through = run(run_data, f"{place}/through", settings)
    with pytest.raises(Stopped):
        run(run_data, f"{place}/stopped", settings, after_step=dying_at(5))
    resumed = run(run_data, f"{place}/stopped", settings)
    assert_same(resumed, through)
    states = [checkpoints.newest(f"{place}/{of}")[1]["adversary"] for of in ("through", "stopped")]
    for name, weights in states[0]["discriminator"].items():
        assert torch.equal(states[1]["discriminator"][name], weights)
    alone = run(run_data, f"{place}/alone", changed(loss="mse+gdl", epochs=2))
    assert not torch.equal(alone.weights["readout.bias"], through.weights["readout.bias"])
    with pytest.raises(ValueError, match="accumulate=1"):
        changed(adversarial=0.02, accumulate=2)


def test_nobody_has_to_listen(run_data, place, undisturbed):
    def deaf(message):
        raise ConnectionError

    assert_same(run(run_data, place, tell=deaf), undisturbed)


def one_of_two(rank, run_data, place, after):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"{place}-store-{after}", rank=rank, world_size=2
    )
    dying = dying_at(after) if after else None
    with contextlib.suppress(Stopped):
        Worker(SETTINGS, run_data, place, rank=rank, world_size=2, after_step=dying).run()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_one_worker_and_two_learn_the_same_also_when_their_number_changes(
    run_data, place, undisturbed, tmp_path
):
    # Two begin, one goes on, two end it.
    torch.multiprocessing.spawn(one_of_two, (run_data, place, 5), nprocs=2)
    with pytest.raises(Stopped):
        run(run_data, place, after_step=dying_at(9))
    torch.multiprocessing.spawn(one_of_two, (run_data, place, 0), nprocs=2)
    trained = runs.outcome(place)
    assert [epoch["step"] for epoch in trained.history] == [4, 8, 12]
    assert_same(trained, undisturbed, 2e-5)


def test_it_stops_where_nothing_gets_better_and_the_best_epoch_counts(run_data, place, monkeypatch):
    validation = iter([0.5, 0.3, 0.4, 0.35, 0.2])
    monkeypatch.setattr(
        "models.worker.metrics", lambda sums, thresholds: {"validation_loss": next(validation)}
    )
    trained = run(run_data, place, changed(epochs=9, early_stopping=2))
    assert [epoch["validation_loss"] for epoch in trained.history] == [0.5, 0.3, 0.4, 0.35]
    assert trained.metrics["step"] == 8
    (best,) = [c for c in checkpoints.found(place) if c.step == 8]
    average = checkpoints.read(place, best)["average"]
    assert torch.equal(trained.weights["readout.bias"], average["module.readout.bias"])
    # Once stopped it stays so.
    assert run(run_data, place, changed(epochs=9, early_stopping=2)).history == trained.history


def test_a_run_goes_on_with_more_epochs_but_not_with_other_settings(run_data, place):
    run(run_data, place, changed(epochs=1))
    runs.check_resumes(place, run_data, SETTINGS)
    assert len(run(run_data, place).history) == 3
    with pytest.raises(SquallError, match=r"begun with other settings: found train\.seed 3"):
        runs.check_resumes(place, run_data, changed(seed=3))


def test_an_archive_that_has_changed_is_told_and_no_reason_to_stop(run_data, place, caplog):
    run(run_data, place, changed(epochs=1))
    runs.check_resumes(place, dataclasses.replace(run_data, version="another"), SETTINGS)
    assert "the archive has changed" in caplog.text


def test_a_run_that_diverges_says_so_and_keeps_what_was_sound(run_data, place):
    run(run_data, place, changed(epochs=1))
    wild = changed(learning_rate=1e30, gradient_clip=1e30)
    with pytest.raises(SquallError, match="training diverged"):
        Worker(wild, run_data, place).run()
    _, state = checkpoints.newest(place)
    assert all(weights.isfinite().all() for weights in state["network"].values())


def test_a_storage_that_refuses_for_a_while_changes_nothing(
    run_data, place, undisturbed, monkeypatch
):
    write, refused = storage.write_bytes, []

    def refusing(url, content):
        if "000000004" <= url.rsplit("/", 1)[-1] < "000000009":
            refused.append(url)
            if len(refused) < 5:
                raise OSError(28, "No space left on device")
        write(url, content)

    monkeypatch.setattr("pipelines.storage.write_bytes", refusing)
    assert_same(run(run_data, place), undisturbed)
    assert len(refused) >= 5


def test_a_run_may_lie_in_an_object_store(run_data, undisturbed):
    place = "memory://bucket/runs/r/checkpoints"
    with pytest.raises(Stopped):
        run(run_data, place, after_step=dying_at(7))
    assert_same(run(run_data, place), undisturbed)


def test_a_run_without_a_checkpoint_has_no_outcome(place):
    with pytest.raises(SquallError, match="left no checkpoint"):
        runs.outcome(place)
