"""Areas under curves of N steps, estimated without bias from some of the steps (`--sample`)."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_steps(interior: int, count: int, offsets: Tensor) -> Tensor:
    """Which of the steps 1 … `interior` are scored, ascending, (count, B).

    Systematic sampling: 1 + ⌊(k · interior + r) / count⌋ for k = 0 … count − 1. Over the offsets r = 0 …
    interior − 1 each step comes up equally often.

    Args:
        count: at most `interior`.
        offsets: r of each image, whole numbers (B,).
    """
    begun = torch.arange(count, device=offsets.device)[:, None] * interior
    return 1 + (begun + offsets).div(count, rounding_mode="floor")


def estimated_area(points: Tensor, at: Tensor, steps: int) -> Tensor:
    """Area (B,) by the trapezoid rule under curves of `steps` steps, from some of their points.

    That under the straight line between both ends, which is known, plus the mean distance of the sampled
    points from it: its expectation over the offsets is the whole curve's area. It may leave [0, 1].

    Args:
        points: p_c at the start, after the sampled steps and at the end, (B, count + 2).
        at: the sampled steps, (count, B).
    """
    start, end = points[:, :1], points[:, -1:]
    line = start + (end - start) * at.T.to(points) / steps
    distance = (points[:, 1:-1] - line).mean(dim=1)
    return (points[:, 0] + points[:, -1]) / 2 + distance * (steps - 1) / steps


def joined(points: Tensor, at: Tensor, steps: int) -> Tensor:
    """Curves (B, steps + 1) that join the points by straight lines: a picture; its area is no estimate.

    Args:
        points, at: see :func:`estimated_area`.
    """
    at = at.T.contiguous()
    ends = torch.zeros_like(at[:, :1])
    places = torch.cat([ends, at, ends + steps], dim=1)
    steps_ = torch.arange(steps + 1, device=at.device).expand(len(at), -1).contiguous()
    right = torch.searchsorted(places, steps_).clamp(min=1)
    (x0, x1), (y0, y1) = ((of.gather(1, right - 1), of.gather(1, right)) for of in (places, points))
    return y0 + (y1 - y0) * (steps_ - x0).to(points) / (x1 - x0)
