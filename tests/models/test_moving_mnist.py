"""Moving MNIST: digits that stay on the canvas, and sequences that follow from seed and number."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.moving_mnist import picture
from models.moving_mnist import (
    TEST_FILE,
    TRAIN_FILE,
    WAY,
    MovingMNISTData,
    batch_of,
    positions,
    read_images,
    sequence,
)
from models.moving_mnist_benchmark import persistence, run, scores_of
from models.prediction import get_forecaster
from models.registry import load_model
from models.training import TrainSettings
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError
from pipelines.progress import bar


def idx(images):
    return struct.pack(">4I", 0x803, len(images), 28, 28) + images.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve training digits and five for testing, each of one brightness: 10, 20, … and 200, …"""
    place = tmp_path_factory.mktemp("mnist")
    train, test = np.zeros((12, 28, 28), np.uint8), np.zeros((5, 28, 28), np.uint8)
    train[:, 9:19, 9:19] = 10 * np.arange(1, 13)[:, None, None]
    test[:, 9:19, 9:19] = 200 + 10 * np.arange(5)[:, None, None]
    (place / f"{TRAIN_FILE}.gz").write_bytes(gzip.compress(idx(train)))
    (place / TEST_FILE).write_bytes(idx(test))
    return str(place)


def test_images_are_read_plain_and_gzipped(folder):
    assert read_images(folder, TRAIN_FILE).shape == (12, 28, 28)
    assert [image.max() for image in read_images(folder, TEST_FILE)] == [200, 210, 220, 230, 240]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "begins with"),
        (b"PK\x03\x04 and so on, and on", "begins with"),
        (struct.pack(">4I", 0x801, 3, 28, 28), "begins with"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "1583 bytes for 2 images"),
    ],
)
def test_what_is_no_idx_file_of_images_is_an_error(tmp_path, content, found):
    (tmp_path / TRAIN_FILE).write_bytes(content)
    with pytest.raises(SquallError, match=found):
        read_images(str(tmp_path), TRAIN_FILE)


def test_a_gzip_that_was_cut_short_and_no_file_at_all_are_errors(tmp_path):
    with pytest.raises(NotFoundError, match="neither train-images-idx3-ubyte nor"):
        read_images(str(tmp_path), TRAIN_FILE)
    whole = gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / f"{TRAIN_FILE}.gz").write_bytes(whole[:-9])
    with pytest.raises(SquallError, match="gzip"):
        read_images(str(tmp_path), TRAIN_FILE)


def test_a_digit_goes_straight_on_and_back_from_a_side():
    places = positions(np.array([[0.0, 0.75]]), np.array([[0.25, 0.5]]), 6)[:, 0]
    assert WAY == 36
    assert places[:, 0].tolist() == [0, 9, 18, 27, 36, 27]
    assert places[:, 1].tolist() == [27, 27, 9, 9, 27, 27]  # .75, 1.25→.75, 1.75→.25, …


@given(
    start=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    velocity=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_no_digit_leaves_the_canvas_or_jumps(start, velocity):
    places = positions(np.array([start]), np.array([velocity]), 30)
    assert places.min() >= 0
    assert places.max() <= WAY
    most = np.abs(np.array(velocity)) * WAY + 1
    assert (np.abs(np.diff(places[:, 0], axis=0)) <= most).all()


def test_a_sequence_shows_two_digits_whole_the_brighter_one_in_front(folder):
    images = read_images(folder, TRAIN_FILE)
    for number in range(20):
        frames = sequence(images, 0, number)
        assert frames.shape == (20, 64, 64)
        for frame in frames:
            shown, pixels = np.unique(frame[frame > 0], return_counts=True)
            assert len(shown) in (1, 2)
            assert pixels[-1] % 100 == 0, "the brighter one is whole"
            assert pixels.sum() <= 200


def test_a_sequence_follows_from_seed_and_number_alone(folder):
    images = read_images(folder, TRAIN_FILE)
    assert np.array_equal(sequence(images, 1, 5), sequence(images, 1, 5))
    assert not np.array_equal(sequence(images, 1, 5), sequence(images, 1, 6))
    assert not np.array_equal(sequence(images, 1, 5), sequence(images, 2, 5))


def data(folder, batch_size=3):
    return MovingMNISTData(folder, samples_per_epoch=12, batch_size=batch_size, seed=4)


def frames_of(batches):
    return torch.cat([torch.cat([batch.past, batch.future], dim=1) for batch in batches])


def test_workers_share_a_step_and_batches_do_not_matter(folder):
    alone = frames_of(data(folder).training(range(8, 12), 0, 1))
    assert alone.shape == (12, 20, 1, 64, 64)
    assert 0 < alone.max() <= 1
    larger = data(folder, 6)
    torch.testing.assert_close(frames_of(larger.training(range(4, 6), 0, 1)), alone)
    mine = [frames_of(larger.training(range(4, 5), rank, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(mine, dim=1).flatten(0, 1), alone[:6])
    assert not torch.equal(frames_of(data(folder).training(range(12, 16), 0, 1)), alone)


def test_training_and_testing_see_different_digits(folder):
    training = frames_of(data(folder).training(range(4), 0, 1))
    testing = frames_of(data(folder).test(4))
    assert training.max() * 255 < 121
    assert testing.max() * 255 > 199
    other_seed = MovingMNISTData(folder, 12, 3, seed=9)
    torch.testing.assert_close(frames_of(other_seed.test(4)), testing)


def test_all_is_observed(folder):
    assert next(data(folder).validation(0, 1)).observed.all()


def test_scores_by_hand(folder):
    """Persistence of a digit that stands still is perfect; one brighter pixel is one error."""
    still = torch.zeros(2, 20, 64, 64, dtype=torch.uint8)
    still[:, :, 10:20, 10:20] = 255
    still[1, 12, 0, 0] = 51  # 0.2 at the third lead time
    batch = batch_of(still)
    forecasters = {"persistence": persistence, "nothing": lambda b: torch.zeros_like(b.future)}
    with bar(2, "test", "sequence", shown=False) as shown:
        scores = scores_of(forecasters, [batch], shown)
    assert scores["persistence"]["MSE"] == pytest.approx([0, 0, 0.04 / 2, *[0] * 7])
    assert scores["persistence"]["MAE"] == pytest.approx([0, 0, 0.2 / 2, *[0] * 7])
    assert scores["persistence"]["SSIM"][0] == pytest.approx(1)
    assert scores["nothing"]["MSE"][0] == pytest.approx(100)
    assert scores["nothing"]["SSIM"][0] < 0.95


@pytest.mark.slow
def test_a_short_training_on_real_digits_beats_persistence_and_is_no_radar_model(tmp_path):
    digits = Path(__file__).parents[2] / "../shared/data/mnist"
    if not digits.is_dir():
        pytest.skip(f"no MNIST files at {digits}")
    settings = TrainSettings(
        network={"hidden_channels": (16,), "input_kernel": 5, "state_kernel": 5},
        epochs=2,
        samples_per_epoch=96,
        batch_size=16,
        learning_rate=1e-2,
        schedule="onecycle",
        workers=1,
    )
    root = storage.normalise(tmp_path)
    result = run(root, str(digits), settings, 16)
    trained, still = result.scores[result.model_id], result.scores["persistence"]
    assert sum(trained["MSE"]) < 0.8 * sum(still["MSE"])
    history = load_model(root, "moving-mnist", result.model_id.partition("/")[2]).metrics
    assert history["validation_loss"] < 0.8 * history["validation_persistence"]
    assert picture(result).startswith(b"\x89PNG")
    with pytest.raises(SquallError, match=r"not trained on radar: found 1 channel"):
        get_forecaster(root, result.model_id)
    with pytest.raises(NotFoundError, match="no trained model"):
        get_forecaster(root, "moving-mnist")
