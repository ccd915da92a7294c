"""Logits that are affine in the set of present positions: by rows, by passes, and where they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import noise
from torch import Tensor

from camkit.network.coalitions import PROBES, affine_logits, coalition_logits

TESTS = 2 + 2 * PROBES  # none, all, probes and their complements
WEIGHT = noise(6, 9, seed=1)


class Counted:
    """A head that keeps the shape of everything it was given."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.shapes = function, []

    def __call__(self, activation: Tensor) -> Tensor:
        self.shapes.append(tuple(activation.shape))
        return self.function(activation)


def mean_of_squares(activation: Tensor) -> Tensor:
    return activation.relu().square().mean(dim=(2, 3)) @ WEIGHT


def absent_of(present: Tensor, kind: str) -> Tensor:
    mean = present.mean(dim=(2, 3), keepdim=True).expand_as(present)
    return {"zero": torch.zeros_like(present), "mean": mean, "other": 0.3 * present.flip(2)}[kind]


@pytest.mark.parametrize(("absent", "rows"), [("zero", 1), ("mean", 1), ("other", 2)])
def test_positions_go_through_as_rows(absent: str, rows: int) -> None:
    """One pass more, of B P images of 1 x 1; two where absent positions are not alike."""
    present = noise(3, 6, 4, 5)
    head = Counted(mean_of_squares)
    quick = affine_logits(head, present, absent_of(present, absent), rows=True)
    assert head.shapes == [(3, 6, 4, 5)] * TESTS + [(60, 6, 1, 1)] * rows
    slow = affine_logits(mean_of_squares, present, absent_of(present, absent), rows=False)
    assert quick.holds.all() and slow.holds.all()
    torch.testing.assert_close(quick.added, slow.added, rtol=1e-4, atol=1e-5)
    some = torch.rand(3, 7, 20, generator=torch.Generator().manual_seed(3)) < 0.4
    expected = coalition_logits(mean_of_squares, present, absent_of(present, absent), some)
    torch.testing.assert_close(quick.of(some), expected, rtol=1e-4, atol=1e-5)


def whole_grid(activation: Tensor) -> Tensor:
    if activation.shape[2:] != (4, 5):
        raise RuntimeError("the pooling takes 4 x 5 positions")
    return mean_of_squares(activation)


@pytest.mark.parametrize(
    "function", [lambda a: a.relu().sum(dim=(2, 3)) @ WEIGHT, whole_grid], ids=["sum", "fails"]
)
def test_where_rows_are_not_the_positions_they_are_passed_one_by_one(function) -> None:
    present = noise(3, 6, 4, 5)
    head = Counted(function)
    found = affine_logits(head, present, torch.zeros_like(present), rows=True)
    assert found.holds.all()
    assert head.shapes == [(3, 6, 4, 5)] * TESTS + [(60, 6, 1, 1)] + [(3, 6, 4, 5)] * 20
    some = torch.rand(3, 7, 20, generator=torch.Generator().manual_seed(3)) < 0.4
    expected = coalition_logits(function, present, torch.zeros_like(present), some)
    torch.testing.assert_close(found.of(some), expected, rtol=1e-4, atol=1e-4)


def test_a_head_that_bends_is_told_by_the_first_passes() -> None:
    present = 5 * noise(3, 6, 4, 5)
    head = Counted(lambda a: (a.mean(dim=(2, 3)) @ WEIGHT).relu())
    assert not affine_logits(head, present, torch.zeros_like(present), rows=True).holds.any()
    assert len(head.shapes) == TESTS


def bends_for_small_images(activation: Tensor) -> Tensor:
    """Affine but for a product of two positions; the product is 0 in images with large values."""
    product = activation[:, 0, 0, :1] * activation[:, 0, -1, -1:]
    small = activation.abs().amax(dim=(1, 2, 3)) < 100
    return activation.mean(dim=(2, 3)) @ WEIGHT.abs() + 0.05 * torch.sin(product) * small[:, None]


def test_each_image_is_judged_by_its_own_logits() -> None:
    """The second image's bend is above its own rounding, and far below the first one's."""
    present = noise(2, 6, 4, 4, seed=2)
    present[0] = 1e3 * present[0].abs()
    absent = torch.zeros_like(present)
    together = affine_logits(bends_for_small_images, present, absent, rows=True)
    alone = [
        affine_logits(bends_for_small_images, present[i : i + 1], absent[:1], rows=True) for i in range(2)
    ]
    assert together.holds.tolist() == [True, False] == [one.holds.item() for one in alone]
    torch.testing.assert_close(together.added[:1], alone[0].added)
