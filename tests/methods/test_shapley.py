"""ShapleyCAM's formula against the Shapley values themselves, by enumeration of all coalitions.

All numbers are small whole ones, so that float32 is exact and the tolerance can be that of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from tiny import Headed, maps, trace
from torch import Tensor, nn

from camkit.methods.shapley import shapley_weight

CHANNELS, SIDE = 2, 2
UNITS = CHANNELS * SIDE * SIDE


def shapley_values(value: Callable[[np.ndarray], float], players: int) -> np.ndarray:
    """Of a game: `value` takes who is present, a boolean (players,)."""
    worth = {}
    for size in range(players + 1):
        for coalition in combinations(range(players), size):
            present = np.zeros(players, dtype=bool)
            present[list(coalition)] = True
            worth[coalition] = value(present)
    values = np.zeros(players)
    for coalition, without in worth.items():
        for player in set(range(players)) - set(coalition):
            joined = tuple(sorted((*coalition, player)))
            values[player] += (worth[joined] - without) / (players * comb(players - 1, len(coalition)))
    return values


class Quadratic(nn.Module):
    """y_0 = constant + b A + A Q A / 2, with whole numbers; y_1 = 0."""

    def __init__(self, bend: float = 1) -> None:
        super().__init__()
        random = np.random.default_rng(7)
        square = random.integers(-3, 4, (UNITS, UNITS))
        self.quadratic = bend * torch.from_numpy(square + square.T).float()
        self.linear = torch.from_numpy(random.integers(-5, 6, UNITS)).float()

    def forward(self, activation: Tensor) -> Tensor:
        a = activation.flatten(1)
        y = 11 + a @ self.linear + torch.einsum("bi,ij,bj->b", a, self.quadratic, a) / 2
        return torch.stack([y, torch.zeros_like(y)], dim=1)

    def value(self, activation: np.ndarray) -> float:
        q, b = self.quadratic.numpy().astype(float), self.linear.numpy().astype(float)
        return float(11 + b @ activation + activation @ q @ activation / 2)


@pytest.fixture
def image() -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(-4, 5, (1, CHANNELS, SIDE, SIDE))).float()


def test_enumeration_on_a_game_by_hand() -> None:
    """Glove game: players 0 and 1 own a left glove, 2 a right one; a pair is worth 6: values 1, 1, 4."""
    values = shapley_values(lambda present: 6.0 * bool(present[2] and (present[0] or present[1])), 3)
    np.testing.assert_allclose(values, [1, 1, 4], atol=1e-12)


@pytest.mark.parametrize("bend", [0, 1])
def test_each_unit_gets_its_shapley_value(image: Tensor, bend: float) -> None:
    head = Quadratic(bend)
    traced = trace(Headed(nn.Identity(), head), image, utility="logit", target=[0])
    ours = (shapley_weight(traced) * traced.activation).flatten().double().numpy()
    units = image.flatten().double().numpy()
    expected = shapley_values(lambda present: head.value(units * present), UNITS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.sum(), head.value(units) - head.value(0 * units), rtol=0, atol=1e-10)


@pytest.mark.parametrize("bend", [0, 1])
def test_each_position_of_shapleycam_h_gets_its_shapley_value(image: Tensor, bend: float) -> None:
    """Positions as players: one that is absent has all its channels set to zero."""
    head = Quadratic(bend)
    traced = trace(Headed(nn.Identity(), head), image, utility="logit", target=[0])
    units = image[0].double().numpy()

    def value(present: np.ndarray) -> float:
        return head.value((units * present.reshape(SIDE, SIDE)).ravel())

    expected = shapley_values(value, SIDE * SIDE).reshape(SIDE, SIDE)
    np.testing.assert_allclose(maps("shapleycam-h", traced)[0].double(), expected, rtol=0, atol=1e-10)
    exact = np.allclose(maps("hirescam", traced)[0].double(), expected, rtol=0, atol=1e-10)
    assert exact == (bend == 0)  # HiResCAM has no second order: exact only where the utility is linear


def test_gap_of_the_weights_makes_shapleycam(image: Tensor) -> None:
    traced = trace(Headed(nn.Identity(), Quadratic()), image, utility="logit", target=[0])
    weights = shapley_weight(traced).double().numpy().mean(axis=(2, 3), keepdims=True)
    expected = (weights * image.double().numpy()).sum(axis=1)
    np.testing.assert_allclose(maps("shapleycam", traced).double(), expected, rtol=0, atol=1e-5)
