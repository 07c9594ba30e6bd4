"""Batches: what they hold follows from seed and step, whoever asks and wherever a run begins."""

import dataclasses

import numpy as np
import pytest
import torch

from models.augmentation import AugmentSettings
from models.data import (
    CPU,
    ArchiveData,
    SequenceDataset,
    TrainingData,
    batch_of,
    draw,
    load,
    network_input,
    steps_per_epoch,
)
from models.normalisation import RainNormalisation
from pipelines.samples import SequenceShape, build_index, complete_init_times

LOG = RainNormalisation("log")
SHAPE = SequenceShape(past=3, future=3, crop=24)


@pytest.fixture(scope="module")
def data(archive):
    init_times = complete_init_times(archive.usable_times(), archive.timestep, SHAPE)
    index = build_index(archive, init_times, SHAPE)
    return ArchiveData(
        archive.url, index, index, samples_per_epoch=18, batch_size=5, seed=3, validation_samples=7
    )


@pytest.fixture(scope="module")
def dataset(data):
    return SequenceDataset(data.archive_url, data.training_index)


def assert_equal(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for name in ("past", "future", "observed"):
            torch.testing.assert_close(getattr(batch, name), getattr(other, name), rtol=0, atol=0)


def test_a_network_sees_rain_and_what_was_observed():
    rain = torch.tensor([[0.0, 0.1], [float("nan"), 128.0]])
    inputs = network_input(rain, LOG)
    assert inputs.shape == (2, 2, 2)
    torch.testing.assert_close(inputs[0], LOG.encode(rain.nan_to_num(0.0)))
    assert inputs[1].tolist() == [[1, 1], [0, 1]]
    assert inputs.isfinite().all()


def test_dry_and_missing_are_not_the_same_to_a_network():
    dry, missing = torch.zeros(4, 4), torch.full((4, 4), float("nan"))
    assert not torch.equal(network_input(dry, LOG), network_input(missing, LOG))


def test_a_batch_holds_its_sequences_in_order(dataset):
    sequences = torch.stack([dataset[sample] for sample in (3, 0, 5)])
    batch = batch_of(sequences, 3, LOG)
    assert batch.past.shape == (3, 3, 2, 24, 24)
    assert batch.future.shape == batch.observed.shape == (3, 3, 1, 24, 24)
    torch.testing.assert_close(batch.past, network_input(sequences[:, :3], LOG))
    torch.testing.assert_close(batch.observed[:, :, 0], sequences[:, 3:].isfinite())
    seen = batch.observed[:, :, 0]
    torch.testing.assert_close(batch.future[:, :, 0][seen], LOG.encode(sequences[:, 3:][seen]))
    assert batch.future.isfinite().all()


def test_a_batch_falls_into_pieces_that_are_all_of_it(dataset):
    weight = torch.arange(5.0)
    batch = batch_of(torch.stack([dataset[sample] for sample in range(5)]), 3, LOG, weight)
    pieces = batch.split(2)
    assert [len(piece.past) for piece in pieces] == [3, 2]
    for name in ("past", "future", "observed", "weight"):
        whole = torch.cat([getattr(piece, name) for piece in pieces])
        torch.testing.assert_close(whole, getattr(batch, name), rtol=0, atol=0)
    assert [len(piece.past) for piece in batch.split(9)] == [1] * 5


def test_a_draw_follows_from_its_seed(data):
    chance = data.training_index.acceptance
    assert draw(chance, 50, (0, 1)) == draw(chance, 50, (0, 1))
    assert draw(chance, 50, (0, 1)) != draw(chance, 50, (0, 2))
    assert draw(chance, 50, (0, 1)) != draw(chance, 50, (1, 1))


def test_samples_are_drawn_in_proportion_to_their_acceptance(data):
    chance = data.training_index.acceptance
    counts = np.bincount(draw(chance, 20_000, (0,)), minlength=len(chance))
    expected = 20_000 * chance / chance.sum()
    # Five standard deviations of a Poisson count, and one for the rarest.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()


def test_an_epoch_has_whole_batches_and_the_next_one_others(data):
    assert isinstance(data, TrainingData)
    assert steps_per_epoch(data) == 3
    first, second = list(data.batches(range(3))), list(data.batches(range(3, 6)))
    assert [len(batch) for batch in first] == [5, 5, 5]
    chance = data.training_index.acceptance
    for epoch, batches in enumerate((first, second)):
        drawn = draw(chance, 18, (3, epoch))
        assert [sample for batch in batches for sample in batch] == drawn[:15]


def test_wherever_a_run_begins_a_step_has_the_same_batch(data):
    through = list(data.batches(range(9)))
    for begin in range(9):
        assert list(data.batches(range(begin, 9))) == through[begin:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_a_step_without_overlap(data, world_size):
    augmented = dataclasses.replace(data, augmentation=AugmentSettings(flip=True, jitter=0.2))
    (whole,) = augmented.training(range(4, 5), 0, 1)
    for rank in range(world_size):
        (mine,) = augmented.training(range(4, 5), rank, world_size)
        torch.testing.assert_close(mine.past, whole.past[rank::world_size], rtol=0, atol=0)
        torch.testing.assert_close(mine.future, whole.future[rank::world_size], rtol=0, atol=0)


@pytest.mark.slow
def test_loaders_read_the_same_and_end_with_the_run(data):
    ahead = dataclasses.replace(data, loaders=2).training(range(4), 0, 1)
    assert_equal(ahead, data.training(range(4), 0, 1))
    stopped = dataclasses.replace(data, loaders=1).training(range(4), 0, 1)
    next(stopped)
    stopped.close()


def test_validation_weighs_samples_by_one_over_their_chance(data, dataset):
    chance = data.validation_index.acceptance
    drawn = draw(chance, 7, (3,))
    batches = list(data.validation(0, 1))
    assert_equal(batches, list(data.validation(0, 1)))
    weight = torch.cat([batch.weight for batch in batches])
    np.testing.assert_allclose(weight, chance.max() / chance[drawn], rtol=1e-6)
    of_workers = [batch for rank in range(3) for batch in data.validation(rank, 3)]
    assert sorted(torch.cat([batch.weight for batch in of_workers])) == sorted(weight)
    first = batch_of(torch.stack([dataset[sample] for sample in drawn[:5]]), 3, LOG)
    assert_equal(batches[:1], [first])


def test_weighted_means_are_as_if_every_sample_counted_alike(data):
    """The mean rain of all samples, from a draw that prefers wet ones."""
    index = data.validation_index
    drawn = draw(index.acceptance, 200_000, (0,))
    weight = 1 / index.acceptance[drawn]
    estimate = (weight * index.mean_mm_h[drawn]).sum() / weight.sum()
    assert estimate == pytest.approx(index.mean_mm_h.mean(), rel=0.02)
    assert index.mean_mm_h[drawn].mean() > 1.2 * index.mean_mm_h.mean()


def test_without_validation_there_are_no_batches(data):
    assert list(dataclasses.replace(data, validation_index=None).validation(0, 1)) == []


def test_loading_nothing_is_nothing(dataset):
    assert list(load(dataset, [], 0, CPU)) == []
