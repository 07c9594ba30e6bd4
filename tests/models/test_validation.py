"""Validation: sums that add up, samples that count by their weight, persistence beside it."""

import pytest
import torch

from models.data import Batch
from models.losses import get_loss
from models.normalisation import RainNormalisation
from models.validation import metrics, metrics_by_lead, validate

LOG = RainNormalisation("log")
THRESHOLDS = (0.5, 5.0)


class Fixed(torch.nn.Module):
    """Forecasts what it was told."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, past, lead_times):
        return self.output[: len(past)]


def one_sample(rain, weight=None):
    """(B, L, H, W) mm/h as the future; the past is 1 mm/h everywhere."""
    future = LOG.encode(torch.tensor(rain))[:, :, None]
    past = torch.ones(len(future), 2, 2, *future.shape[-2:])
    past[:, :, 0] = LOG.encode(torch.tensor(1.0))
    return Batch(past, future, torch.ones_like(future, dtype=torch.bool), weight)


RAIN = [[[[0.0, 0.2], [1.0, 6.0]], [[2.0, 2.0], [7.0, 0.0]]]]  # one sample, two lead times
FORECAST = [[[[0.6, 0.0], [1.0, 4.0]], [[2.0, 0.0], [7.0, 0.0]]]]


def of(forecast):
    return Fixed(LOG.encode(torch.tensor(forecast))[:, :, None])


def test_hits_misses_and_false_alarms_by_hand():
    sums = validate(of(FORECAST), [one_sample(RAIN)], get_loss("mse"), THRESHOLDS)
    # (lead time, threshold): hits, misses, false alarms
    assert sums["validation_events"].tolist() == [
        [[2, 0, 1], [0, 1, 0]],
        [[2, 1, 0], [1, 0, 0]],
    ]
    assert sums["persistence_events"].tolist() == [
        [[2, 0, 2], [0, 1, 0]],
        [[3, 0, 1], [0, 1, 0]],
    ]
    told = metrics(sums, THRESHOLDS) | metrics_by_lead(sums, THRESHOLDS, ("5min", "10min"))
    assert told["validation_csi_0.5mm_h"] == pytest.approx(4 / 6)
    assert told["validation_csi_0.5mm_h_5min"] == pytest.approx(2 / 3)
    assert told["validation_csi_5mm_h_10min"] == pytest.approx(1.0)
    assert told["persistence_csi_0.5mm_h"] == pytest.approx(5 / 8)
    expected = (LOG.encode(torch.tensor(FORECAST)) - LOG.encode(torch.tensor(RAIN))) ** 2
    assert told["validation_loss"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert told["validation_persistence"] == pytest.approx(
        float((LOG.encode(torch.tensor(1.0)) - LOG.encode(torch.tensor(RAIN))).square().mean())
    )


def test_what_was_not_observed_has_no_say():
    batch = one_sample(RAIN)
    batch.observed[:, :, :, 0, 0] = False
    sums = validate(of(FORECAST), [batch], get_loss("mse"), THRESHOLDS)
    assert sums["validation_events"].tolist() == [[[2, 0, 0], [0, 1, 0]], [[1, 1, 0], [1, 0, 0]]]


def test_a_sample_counts_as_often_as_its_weight_says():
    twice = one_sample(RAIN * 2 + [FORECAST[0]])
    weighted = one_sample([*RAIN, FORECAST[0]], torch.tensor([2.0, 1.0]))
    network = of(FORECAST * 3)
    sums = [validate(network, [b], get_loss("mae"), THRESHOLDS) for b in (twice, weighted)]
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value)
    assert sums[0]["samples"] == 3


def test_batches_add_up_however_they_are_cut():
    whole = one_sample(RAIN + FORECAST + RAIN, torch.tensor([1.0, 3.0, 0.5]))
    network = of(FORECAST * 3)
    together = validate(network, [whole], get_loss("mse"), THRESHOLDS)
    apart = validate(network, whole.split(3), get_loss("mse"), THRESHOLDS)
    assert together.keys() == apart.keys()
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value)


def test_persistence_is_compared_as_if_a_network_had_put_it_out():
    sums = validate(of(FORECAST), [one_sample(RAIN)], get_loss("cross-entropy"), THRESHOLDS)
    rain, newest = LOG.encode(torch.tensor(RAIN)).double(), LOG.encode(torch.tensor(1.0)).double()
    expected = -rain * newest.log() - (1 - rain) * (1 - newest).log()
    assert float(sums["persistence_loss"]) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert sums["persistence_events"].tolist()[0] == [[2, 0, 2], [0, 1, 0]]


def test_an_ensemble_foresees_what_its_mean_does():
    members = torch.tensor([[0.0, 1.2], [0.4, 0.4]])  # mm/h: of two pixels, two members
    output = LOG.encode(members).reshape(1, 1, 2, 1, 2)
    batch = one_sample([[[[0.0, 1.0]]]])
    sums = validate(Fixed(output), [batch], get_loss("crps"), (0.5,))
    assert sums["validation_events"].tolist() == [[[1, 0, 0]]]
    mae = validate(Fixed(output[:, :, :1]), [batch], get_loss("mae"), (0.5,))
    torch.testing.assert_close(sums["persistence_loss"], mae["persistence_loss"])


def test_without_samples_there_is_nothing_to_tell():
    assert validate(of(FORECAST), [], get_loss("mse")) == {}
    assert metrics({}) == metrics_by_lead({}, THRESHOLDS, ("5min",)) == {}


def test_an_event_that_nobody_saw_or_foresaw_has_no_score():
    sums = validate(of(FORECAST), [one_sample(RAIN)], get_loss("mse"), (100.0,))
    assert not [name for name in metrics(sums, (100.0,)) if "csi" in name]
