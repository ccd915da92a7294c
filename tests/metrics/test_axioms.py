"""Axioms on networks for which it is known who keeps them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from subjects import Curved, Pooled, explained, pooled_or_curved
from tiny import noise
from torch import Tensor, nn

from camkit.entries import METRICS, method
from camkit.metrics.axioms import average_over
from camkit.network.trace import Trace

IMAGES = noise(2, 3, 16, 24)


def axioms(head: Callable[[], nn.Module], name: str, **more: object) -> dict[str, Tensor]:
    (one,) = explained(pooled_or_curved(head), IMAGES, "features", name, **more)  # type: ignore[arg-type]
    return METRICS["axioms"].function(one)


@pytest.mark.parametrize(("name", "kept"), [("hirescam", True), ("gradcam", True), ("layercam", False)])
def test_efficiency_behind_a_linear_head(name: str, kept: bool) -> None:
    """Of a linear utility the products of activation and gradient sum to u(A) - u(0); the bias cancels."""
    error = axioms(Pooled, name)["efficiency_error"]
    assert (error < 1e-5).all() if kept else (error > 0.01).all()


def test_efficiency_by_hand() -> None:
    model = pooled_or_curved(Curved)
    (one,) = explained(model, IMAGES, "features", "hirescam", target=[2, 0])
    found = METRICS["axioms"].function(one)["efficiency_error"]
    activation = model.features(IMAGES).detach().requires_grad_()
    utility = model.head(activation)[[0, 1], [2, 0]]
    (gradient,) = torch.autograd.grad(utility.sum(), activation)
    total = (gradient * activation).sum(dim=(1, 2, 3))
    gain = utility - model.head(torch.zeros_like(activation))[[0, 1], [2, 0]]
    torch.testing.assert_close(found, ((total - gain).abs() / (total.abs() + gain.abs())).detach())
    assert (found > 0.01).all()


@pytest.mark.parametrize("name", ["hirescam", "gradcam", "shapley"])
def test_symmetry_is_kept(name: str) -> None:
    """The two positions are averaged: every derivative and every coalition takes them alike."""
    assert axioms(Curved, name)["symmetry_error"].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_symmetry_is_broken_by_hand() -> None:
    """A method that counts positions from left to right: the pair's distance over the last place."""

    @method("places")
    def places(trace: Trace) -> Tensor:
        height, width = trace.activation.shape[2:]
        return torch.arange(height * width).view(1, height, width).expand(2, -1, -1).to(trace.activation)

    (one,) = explained(pooled_or_curved(Curved), IMAGES, "features", "places")
    pairs = [torch.randperm(6, generator=drawn)[:2] for drawn in one.draw("symmetric positions")]
    expected = [abs(int(i) - int(j)) / 5 for i, j in pairs]
    assert METRICS["axioms"].function(one)["symmetry_error"].tolist() == pytest.approx(expected)


def test_both_positions_become_their_mean() -> None:
    maps = torch.arange(12.0).view(2, 1, 2, 3)
    found = average_over(torch.tensor([[0, 5], [1, 2]]))(maps)
    assert found.flatten(1).tolist() == [[2.5, 1, 2, 3, 4, 2.5], [6, 7.5, 7.5, 9, 10, 11]]


@pytest.mark.parametrize("utility", ["rest", "softmax"])
@pytest.mark.parametrize(
    ("name", "kept"), [("hirescam", True), ("gradcam", True), ("shapleycam", True), ("layercam", False)]
)
def test_linearity(name: str, kept: bool, utility: str) -> None:
    """ReST is the sum of logit and log-softmax, and so is its map where the method is linear in u."""
    error = axioms(Curved, name, utility=utility)["linearity_error"]
    assert (error < 1e-5).all() if kept else (error > 0.01).all()


def test_linearity_by_hand() -> None:
    model = pooled_or_curved(Curved)
    (one,) = explained(model, IMAGES, "features", "layercam", target=[2, 0])
    found = METRICS["axioms"].function(one)["linearity_error"]
    activation = model.features(IMAGES).detach().requires_grad_()

    def layercam(utility: Callable[[Tensor], Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(utility(model.head(activation))[[0, 1], [2, 0]].sum(), activation)
        return (gradient.relu() * activation).sum(dim=1).detach().flatten(1)

    maps = [
        layercam(of)
        for of in (lambda y: y + y.log_softmax(dim=1), lambda y: y, lambda y: y.log_softmax(dim=1))
    ]
    lengths = sum(one.abs().sum(dim=1) for one in maps)
    torch.testing.assert_close(found, (maps[0] - maps[1] - maps[2]).abs().sum(dim=1) / lengths)


def test_null_is_the_group_null() -> None:
    """An average needs no further mask: the columns are those of `null`, and its passes."""
    (one,) = explained(pooled_or_curved(Curved), IMAGES, "features", "gradcam")
    null = METRICS["null"].function(one)
    found = METRICS["axioms"].function(one)
    for name in METRICS["null"].columns:
        assert torch.equal(found[name], null[name])
    assert (found["null_share"] > 0).all()


def test_saliency_maps_have_the_null_axiom_alone() -> None:
    found = axioms(Curved, "hirescam~square")
    assert not found["null_share"].isnan().any()
    for name in ("efficiency_error", "symmetry_error", "linearity_error"):
        assert found[name].isnan().all()


def test_three_passes_for_all_methods() -> None:
    model = pooled_or_curved(Pooled)
    made: list[int] = []
    model.register_forward_hook(lambda *_: made.append(1))
    several = explained(model, IMAGES, "features", ("hirescam", "gradcam", "layercam"))
    METRICS["axioms"].function(several[0])
    made.clear()
    for one in several[1:]:
        METRICS["axioms"].function(one)
    assert len(made) == 2 * 2  # u(A) and u(A0) of each, through what follows the layer
