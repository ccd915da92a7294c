"""Deletion and insertion (RISE, arXiv 1806.07421): areas under p_c as pixels go or come, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from camkit.entries import Column, metric
from camkit.metrics.subject import Subject


def pixel_ranks(saliency: Tensor) -> Tensor:
    """(B, H, W): 0 for the pixel with the highest saliency, ties by raster index."""
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(saliency)


def curve(
    start: Tensor, end: Tensor, ranks: Tensor, steps: int, score_first: Callable[[Tensor], Tensor]
) -> Tensor:
    """p_c at the start and after each step, (B, points).

    Args:
        start, end: p_c before the first and after the last step, (B,).
        ranks: order in which the pixels change, (B, H, W).
        steps: N; each step changes ceil(HW / N) pixels, as many steps as are needed.
        score_first: where the pixels have changed, boolean (B, 1, H, W) -> p_c (B,).
    """
    pixels = ranks[0].numel()
    stride = math.ceil(pixels / steps)
    between = [score_first((ranks < changed)[:, None]) for changed in range(stride, pixels, stride)]
    return torch.stack([start, *between, end], dim=1)


def area(curve: Tensor) -> Tensor:
    """Area (B,) by the trapezoid rule over [0, 1] under curves (B, points), points equally spaced."""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


@metric(
    "deletion",
    columns={
        "deletion_auc": Column(
            "lower",
            "Deletion",
            "Area under the probability as pixels are blanked, the most salient first.",
            jumps=True,
            bounds=(0.0, 1.0),
        )
    },
    curves=("deletion_curve",),
    source="RISE, arXiv 1806.07421",
)
def deletion(subject: Subject) -> dict[str, Tensor]:
    """Pixels are set to 0 in the normalised image, the most salient first."""
    probability = curve(
        subject.probability,
        subject.blank_probability,
        pixel_ranks(subject.saliency),
        subject.steps,
        lambda changed: subject.score(subject.images * ~changed),
    )
    return {"deletion_auc": area(probability), "deletion_curve": probability}


@metric(
    "insertion",
    columns={
        "insertion_auc": Column(
            "higher",
            "Insertion",
            "Area under the probability as pixels come in, the most salient first.",
            jumps=True,
            bounds=(0.0, 1.0),
        )
    },
    curves=("insertion_curve",),
    source="RISE, arXiv 1806.07421",
)
def insertion(subject: Subject) -> dict[str, Tensor]:
    """Pixels of the image are put into its blurred version, the most salient first."""
    probability = curve(
        subject.blurred_probability,
        subject.probability,
        pixel_ranks(subject.saliency),
        subject.steps,
        lambda changed: subject.score(torch.where(changed, subject.images, subject.blurred)),
    )
    return {"insertion_auc": area(probability), "insertion_curve": probability}
