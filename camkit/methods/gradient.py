"""Methods that need the activation A and the gradient G, both (B, C, h, w); maps are (B, h, w).

They are written for maps before the ReLU: negative values are kept here.
"""

from __future__ import annotations

from torch import Tensor

from camkit.entries import method
from camkit.network.trace import Trace


@method(
    "gradcam",
    title="GradCAM",
    groups=("paper",),
    source="arXiv 1610.02391, eq. 1 and 2",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam(trace: Trace) -> Tensor:
    """Sum over channels of GAP(G) A."""
    weights = trace.gradient.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (weights * trace.activation).sum(dim=1)


@method(
    "gradcam++",
    title="GradCAM++",
    groups=("paper",),
    source="arXiv 1710.11063, eq. 19 and 7",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam_plus_plus(trace: Trace) -> Tensor:
    """Sum over channels of w A with w = sum over positions of alpha ReLU(G).

    alpha = G^2 / (2 G^2 + (sum over positions of A) G^3 + 1e-6), and 0 where G = 0.
    """
    activation, gradient = trace.activation, trace.gradient
    total = activation.sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
    weights = (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1)


@method(
    "xgradcam",
    title="XGradCAM",
    groups=("paper",),
    source="arXiv 2008.02312, eq. 8",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def xgradcam(trace: Trace) -> Tensor:
    """Sum over channels of w A with w = (sum of G A) / (sum of A + 1e-7), sums over positions.

    Where a channel's A sums to nearly nothing (layers before the ReLU), the last bits decide its weight.
    """
    activation, gradient = trace.activation, trace.gradient
    total = activation.sum(dim=(2, 3), keepdim=True)
    weights = (gradient * activation / (total + 1e-7)).sum(dim=(2, 3), keepdim=True)
    return (weights * activation).sum(dim=1)


@method(
    "layercam",
    title="LayerCAM",
    groups=("paper",),
    source="LayerCAM, IEEE TIP 2021, eq. 4 and 5",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def layercam(trace: Trace) -> Tensor:
    """Sum over channels of ReLU(G) A."""
    return (trace.gradient.relu() * trace.activation).sum(dim=1)


@method(
    "gradcam-e",
    title="GradCAM-E",
    groups=("paper",),
    source="GradCAM element-wise, as in arXiv 2501.06261",
    uses=("activation", "gradient"),
    cost="1 grad",
)
def gradcam_e(trace: Trace) -> Tensor:
    """Sum over channels of ReLU(G A)."""
    return (trace.gradient * trace.activation).relu().sum(dim=1)


@method(
    "hirescam",
    title="HiResCAM",
    groups=("paper",),
    source="arXiv 2011.08891, eq. 4",
    value=True,
    uses=("activation", "gradient"),
    cost="1 grad",
)
def hirescam(trace: Trace) -> Tensor:
    """Sum over channels of G A."""
    return (trace.gradient * trace.activation).sum(dim=1)
