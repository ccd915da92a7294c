"""Methods that need A, G and the Hessian-vector product HA: arXiv 2501.06261.

With the layer's units as players and an absent player's activation set to zero, the Shapley value of the
second-order Taylor expansion of the utility around A is A_i (G_i - (HA)_i / 2). For a utility that is
quadratic in A it is the exact Shapley value.
"""

from __future__ import annotations

from torch import Tensor

from camkit.entries import method
from camkit.network.trace import Trace


def shapley_weight(trace: Trace) -> Tensor:
    """G - HA / 2, (B, C, h, w)."""
    return trace.gradient - 0.5 * trace.hvp


@method(
    "shapleycam",
    title="ShapleyCAM",
    groups=("paper", "cheap"),
    source="arXiv 2501.06261",
    uses=("activation", "gradient", "Hessian term"),
    cost="2 grads",
)
def shapleycam(trace: Trace) -> Tensor:
    """Sum over channels of GAP(G - HA / 2) A."""
    weights = shapley_weight(trace).mean(dim=(2, 3), keepdim=True)
    return (weights * trace.activation).sum(dim=1)


@method(
    "shapleycam-h",
    title="ShapleyCAM-H",
    groups=("paper", "cheap"),
    source="arXiv 2501.06261",
    value=True,
    uses=("activation", "gradient", "Hessian term"),
    cost="2 grads",
)
def shapleycam_h(trace: Trace) -> Tensor:
    """Sum over channels of (G - HA / 2) A: ShapleyCAM in the manner of HiResCAM."""
    return (shapley_weight(trace) * trace.activation).sum(dim=1)


@method(
    "shapleycam-e",
    title="ShapleyCAM-E",
    groups=("paper", "cheap"),
    source="arXiv 2501.06261",
    uses=("activation", "gradient", "Hessian term"),
    cost="2 grads",
)
def shapleycam_e(trace: Trace) -> Tensor:
    """Sum over channels of ReLU((G - HA / 2) A): ShapleyCAM element-wise."""
    return (shapley_weight(trace) * trace.activation).relu().sum(dim=1)


@method(
    "shapley",
    title="Shapley value",
    groups=("perturbation",),
    source="Shapley 1953; docs/shapley.md; permutation sampling: Castro et al. 2009",
    value=True,
    uses=("activation", "head"),
    cost="7 heads, or budget x P",
)
def shapley(trace: Trace) -> Tensor:
    """Shapley values of the layer's positions: by a surrogate game where the logits are affine in them.

    Up to 16 positions they are enumerated. Where logits are not affine, they come from permutations
    (`--budget`). See :meth:`camkit.network.game.Game.estimate`.
    """
    return trace.game.estimate("method")[0]
