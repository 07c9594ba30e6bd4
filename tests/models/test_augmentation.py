"""Augmentation: squares laid on themselves, rain made stronger; the key decides."""

import numpy as np
import pytest
import torch

from models.augmentation import AugmentSettings, augment

FLIP, TURN = AugmentSettings(flip=True), AugmentSettings(rotate=True)
BOTH, JITTER = AugmentSettings(flip=True, rotate=True), AugmentSettings(jitter=0.3)
KEYS = [(0, 1, k) for k in range(400)]


@pytest.fixture
def square():
    return torch.arange(9.0).reshape(1, 1, 3, 3)


def outcomes(square, settings):
    """How often each result comes, by its pixels."""
    turned = augment(square.expand(len(KEYS), -1, -1, -1), KEYS, settings)
    counts = {}
    for result in turned:
        counts[tuple(result.flatten().tolist())] = (
            counts.get(tuple(result.flatten().tolist()), 0) + 1
        )
    return counts


def poses(square, mirrored):
    fields = [square[0, 0], square[0, 0].flip(-1)] if mirrored else [square[0, 0]]
    return {tuple(f.rot90(k).flatten().tolist()) for f in fields for k in range(4)}


def test_turns_are_the_four_and_with_mirrors_all_eight(square):
    for settings, expected in ((TURN, poses(square, False)), (BOTH, poses(square, True))):
        counts = outcomes(square, settings)
        assert counts.keys() == expected
        assert min(counts.values()) > 0.6 * len(KEYS) / len(expected)


def test_mirrors_alone_never_transpose(square):
    field = square[0, 0]
    mirrored = [field, field.flip(0), field.flip(1), field.flip(0).flip(1)]
    assert outcomes(square, FLIP).keys() == {tuple(f.flatten().tolist()) for f in mirrored}


@pytest.mark.parametrize("settings", [BOTH, JITTER])
def test_a_sequence_follows_from_its_key_whatever_else_is_in_the_batch(settings):
    frames = torch.rand(6, 2, 4, 4)
    together = augment(frames, KEYS[:6], settings)
    for k in range(6):
        alone = augment(frames[k : k + 1], KEYS[k : k + 1], settings)
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=0)


def test_all_frames_of_a_sequence_go_the_same_way():
    frames = torch.rand(1, 1, 4, 4).expand(8, 5, 4, 4)
    for result in augment(frames, KEYS[:8], AugmentSettings(flip=True, rotate=True, jitter=0.5)):
        torch.testing.assert_close(result, result[:1].expand_as(result))


def test_rain_gets_stronger_as_often_as_weaker_and_missing_stays_missing():
    frames = torch.full((len(KEYS), 1, 2, 2), 5.0)
    frames[:, :, 0, 0] = torch.nan
    result = augment(frames, KEYS, JITTER)
    assert result[:, :, 0, 0].isnan().all()
    strength = (result[:, 0, 1, 1] / 5).log().numpy()
    assert abs(np.mean(strength)) < 0.06
    assert np.std(strength) == pytest.approx(0.3, rel=0.15)


def test_nothing_asked_for_is_nothing_done():
    frames = torch.rand(3, 2, 4, 4)
    assert augment(frames, KEYS[:3], AugmentSettings()) is frames
