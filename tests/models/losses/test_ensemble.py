"""CRPS of ensembles, by hand."""

from itertools import combinations

import pytest
import torch

from models.losses import get_loss
from models.losses.ensemble import crps


def pixel(*members):
    return torch.tensor(members).view(1, 1, -1, 1, 1)


SEEN = pixel(True)


@pytest.mark.parametrize(
    ("members", "target", "fair", "standard"),
    [
        ((0.0, 1.0), 0.5, 0.5 - 0.5, 0.5 - 0.25),
        ((4.0, 1.0, 2.0), 3.0, 4 / 3 - 12 / 12, 4 / 3 - 12 / 18),
        ((2.0, 2.0, 2.0), 5.0, 3.0, 3.0),
    ],
)
def test_crps_by_hand(members, target, fair, standard):
    given = pixel(*members), pixel(target), SEEN
    assert float(get_loss("crps")(*given)) == pytest.approx(fair, abs=1e-6)
    assert float(get_loss("crps-standard")(*given)) == pytest.approx(standard, abs=1e-6)


@pytest.mark.parametrize("fair", [True, False])
def test_crps_of_one_member_is_its_absolute_error(fair):
    assert float(crps(pixel(0.25), pixel(1.0), SEEN, fair=fair)) == 0.75


def test_the_order_of_members_has_no_say():
    members = torch.rand(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    target, observed = members[:, :, :1] + 0.1, torch.ones(2, 3, 1, 4, 4, dtype=torch.bool)
    shuffled = members[:, :, [3, 0, 4, 2, 1]]
    torch.testing.assert_close(
        crps(members, target, observed), crps(shuffled, target, observed), rtol=1e-5, atol=0
    )


def test_the_fair_score_does_not_depend_on_how_many_members_are_drawn():
    """Its mean over all draws of three members, or two, is that of all five (Ferro 2014)."""
    members, target = (0.1, 0.9, 0.4, 0.35, 0.8), pixel(0.5)
    for fair in (True, False):
        of_all = float(crps(pixel(*members), target, SEEN, fair=fair))
        for count in (2, 3):
            draws = [crps(pixel(*d), target, SEEN, fair=fair) for d in combinations(members, count)]
            mean = float(torch.stack(draws).mean())
            if fair:
                assert mean == pytest.approx(of_all, rel=1e-5)
            else:
                assert mean > of_all + 0.01


def test_unobserved_pixels_are_not_in_the_mean():
    members = torch.tensor([[0.0, 9.0], [1.0, 7.0]]).view(1, 1, 2, 1, 2)
    target = torch.tensor([0.5, float("nan")]).view(1, 1, 1, 1, 2)
    assert float(crps(members, target, target.isfinite(), fair=False)) == 0.25
