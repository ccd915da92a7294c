"""The gradient averaged along the path from A0 to A, completed so that the map sums to u(A) - u(A0).

Nodes: equal steps back from A. t_k = (2 k - 1) / (2 N + 1), k = 1 ... N + 1, so that the last is A itself, whose gradient
every method has; weights 2 / (2 N + 1), the last 1 / (2 N + 1): midpoint rule at A0's end, trapezoid at A's.
`aumann-N` thus takes N gradients of the rest of the network beyond G(A), and u(A0).

Completion: what the rule leaves of u(A) - u(A0) is spread over positions in proportion to |m|.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def steps_back(steps: int) -> list[tuple[float, float]]:
    """Nodes and weights on [0, 1]; the last node is 1."""
    width = 2 / (2 * steps + 1)
    return [((k + 0.5) * width, width) for k in range(steps)] + [(1.0, width / 2)]


def midpoints(steps: int) -> list[tuple[float, float]]:
    """The alternative that leaves G(A) alone."""
    return [((k + 0.5) / steps, 1 / steps) for k in range(steps)]


def completed(maps: Tensor, gain: Tensor) -> Tensor:
    """Maps (B, h, w) made to sum to gain (B,); maps that are 0 everywhere stay so."""
    size = maps.abs()
    total = size.sum(dim=(1, 2))
    missing = (gain - maps.sum(dim=(1, 2))) / total.where(total > 0, torch.inf)
    return maps + missing[:, None, None] * size


def aumann(
    gradient_at: Callable[[Tensor], Tensor],
    utility_at: Callable[[Tensor], Tensor],
    activation: Tensor,
    absent: Tensor,
    steps: int,
    *,
    gradient: Tensor | None = None,
    rule: Callable[[int], list[tuple[float, float]]] = steps_back,
) -> Tensor:
    """The map (B, h, w).

    Args:
        gradient_at, utility_at: du/dA (B, C, h, w) and u (B,) at another activation.
        gradient: G(A), where it is there already.
    """
    total = torch.zeros_like(activation)
    for place, weight in rule(steps):
        if place == 1 and gradient is not None:
            total += weight * gradient
        else:
            total += weight * gradient_at(torch.lerp(absent, activation, place))
    maps = (total * (activation - absent)).sum(dim=1)
    return completed(maps, utility_at(activation) - utility_at(absent))
