"""Methods that average the gradient along the path from the absent activation A0 to A.

With positions as players, phi_i = integral over t of E[u(i present) - u(i absent)], where each other player
is present with probability t (Owen 1972). With the mean of that random coalition in its place this is the
Aumann-Shapley value at the layer, integral over t of (A - A0)_i du/dA_i(A0 + t (A - A0)), A0 being the
absent activation (zero unless `--absent` says otherwise): integrated gradients (1703.01365) of the rest of
the network, as captum's LayerIntegratedGradients takes them from a baseline image's activation.
docs/shapley.md says how the rule was chosen.

`aumann-N` takes the gradient at N steps back from A and at A itself, where most methods take it: N gradients
of the rest of the network and no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from camkit.entries import Method, family
from camkit.errors import UsageError
from camkit.network.trace import Trace

MAX_NODES = 64
SOURCE = "Aumann-Shapley value at the layer (1703.01365), equal steps back from A, completed"


def steps_back(count: int) -> Iterator[float]:
    """The nodes t_k = (2k - 1) / (2N + 1), k = 1 ... N: equal steps back from 1, and half a step from 0."""
    return ((2 * k - 1) / (2 * count + 1) for k in range(1, count + 1))


def path_gradient(trace: Trace, nodes: int, absent: Tensor) -> Tensor:
    """(2 sum over nodes t of G(A0 + t (A - A0)) + G(A)) / (2N + 1), G = du/dA; (B, C, h, w)."""
    total = trace.gradient.clone()
    for place in steps_back(nodes):
        total += 2 * trace.gradient_at(torch.lerp(absent, trace.activation, place))
    return total / (2 * nodes + 1)


def completed(maps: Tensor, gain: Tensor) -> Tensor:
    """Maps (B, h, w) that sum to gain (B,): what they leave of it goes to positions in proportion to |m|.

    A map that is 0 everywhere stays so.
    """
    size = maps.abs()
    total = size.sum(dim=(1, 2))
    share = (gain - maps.sum(dim=(1, 2))) / total.where(total > 0, torch.inf)
    return maps + share[:, None, None] * size


def aumann(trace: Trace, nodes: int, absent: Tensor | None = None) -> Tensor:
    """Sum over channels of (A - A0) Ḡ, Ḡ the path gradient, completed to sum to u(A) - u(A0).

    Args:
        absent: A0, (B, C, h, w); None: the run's.
    """
    absent = trace.absent_activation if absent is None else absent
    maps = (path_gradient(trace, nodes, absent) * (trace.activation - absent)).sum(dim=1)
    gain = trace.utility(trace.logits, trace.target) - trace.head(absent)
    return completed(maps, gain)


def aumann_gap(trace: Trace, nodes: int) -> Tensor:
    """As aumann-N with the gradient averaged over positions, in the manner of GradCAM; not completed."""
    absent = trace.absent_activation
    weights = path_gradient(trace, nodes, absent).mean(dim=(2, 3), keepdim=True)
    return (weights * (trace.activation - absent)).sum(dim=1)


def aumann_e(trace: Trace, nodes: int) -> Tensor:
    """As aumann-N with ReLU before the sum over channels (element-wise); not completed."""
    absent = trace.absent_activation
    return (path_gradient(trace, nodes, absent) * (trace.activation - absent)).relu().sum(dim=1)


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
        cost=f"1 + {nodes} head grads" + (", 1 head" if variant is None else ""),
    )
