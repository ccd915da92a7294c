"""Methods that average the gradient along the path from the absent activation to A.

With positions as players, phi_i = integral over t of E[u(i present) - u(i absent)], where each other player
is present with probability t (Owen 1972). With the mean of that random coalition in its place this is the
Aumann-Shapley value at the layer, integral over t of (A - A0)_i du/dA_i(A0 + t (A - A0)), A0 being the
absent activation (zero unless `--absent` says otherwise): integrated gradients (1703.01365) of the rest of
the network, as in Integrated Grad-CAM (2102.07805). `aumann-N` takes it at the N nodes of Gauss-Legendre, for
N gradients of the rest of the network and no second derivative. For a quadratic u one node is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from camkit.entries import Method, family
from camkit.errors import UsageError
from camkit.network.trace import Trace

MAX_NODES = 64
SOURCE = "Aumann-Shapley value at the layer (1703.01365, 2102.07805), Gauss-Legendre"


def path_gradient(trace: Trace, nodes: int) -> Tensor:
    """Sum over nodes t of w du/dA at A0 + t (A - A0), (B, C, h, w)."""
    places, weights = np.polynomial.legendre.leggauss(nodes)  # on [-1, 1], weights of sum 2
    absent, activation = trace.absent_activation, trace.activation
    total = torch.zeros_like(activation)
    for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
        total += weight / 2 * trace.gradient_at(torch.lerp(absent, activation, (place + 1) / 2))
    return total


def aumann(trace: Trace, nodes: int) -> Tensor:
    """Sum over channels of (A - A0) sum over nodes t of w G(A0 + t (A - A0)), G = du/dA."""
    return (path_gradient(trace, nodes) * (trace.activation - trace.absent_activation)).sum(dim=1)


def aumann_gap(trace: Trace, nodes: int) -> Tensor:
    """As aumann-N with the gradient averaged over positions, in the manner of GradCAM."""
    weights = path_gradient(trace, nodes).mean(dim=(2, 3), keepdim=True)
    return (weights * (trace.activation - trace.absent_activation)).sum(dim=1)


def aumann_e(trace: Trace, nodes: int) -> Tensor:
    """As aumann-N with ReLU before the sum over channels (element-wise)."""
    return (path_gradient(trace, nodes) * (trace.activation - trace.absent_activation)).relu().sum(dim=1)


@family(
    r"aumann-(0|[1-9][0-9]*)(-gap|-e)?", form="aumann-N[-gap|-e]", listed=("aumann-1", "aumann-2", "aumann-3")
)
def find_aumann(name: str, nodes: str, variant: str | None) -> Method:
    """`aumann-N`, `aumann-N-gap`, `aumann-N-e`."""
    if not 1 <= int(nodes) <= MAX_NODES:
        raise UsageError(f"{name}: N, the gradients on the path, is from 1 to {MAX_NODES}")
    function: Callable[..., Tensor] = {None: aumann, "-gap": aumann_gap, "-e": aumann_e}[variant]
    title = f"Aumann-{nodes}{(variant or '').upper()}"
    return Method(
        name,
        partial(function, nodes=int(nodes)),
        title,
        ("aumann",),
        SOURCE,
        value=variant is None,
        uses=("activation", "head", "gradient"),
        cost=f"{nodes} head grad{'s' * (int(nodes) > 1)}",
    )
