"""Deletion and insertion (RISE, 1806.07421), areas under p_c in [0, 1]; and SRG (2401.06654), in [-1, 1].

SRG is the difference of two deletions: the least salient pixels first, less the most salient first.

Each score has variants, by what stands where the image does not and by which pixels go first. A name is
`deletion[-FILL][-least]`, its column `deletion[_FILL][_least]_auc`; the score's own fill is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from camkit.config import FILLS, ORDERS, OWN_FILL, variant
from camkit.entries import CORRELATION, UNIT, Column, metric
from camkit.metrics.sampled import estimated_area, joined
from camkit.metrics.subject import Subject

FILLED = {
    "zero": "blanked",
    "mean": "set to the image's mean colour",
    "blur": "blurred",
    "noise": "set to noise",
}
BEFORE = {"zero": "a blank image", "mean": "its mean colour", "blur": "its blurred version", "noise": "noise"}


def stride_of(pixels: int, steps: int) -> int:
    """How many pixels each of `steps` steps changes; there are as many steps as are needed."""
    return math.ceil(pixels / steps)


def curve(
    start: Tensor,
    end: Tensor,
    ranks: Tensor,
    steps: int,
    score_first: Callable[[Tensor], Tensor],
    at: Tensor | None = None,
) -> Tensor:
    """p_c at the start and after each step, (B, points).

    Args:
        start, end: p_c before the first and after the last step, (B,).
        ranks: order in which the pixels change, (B, H, W).
        steps: N, see :func:`stride_of`.
        score_first: where the pixels have changed, boolean (B, 1, H, W) -> p_c (B,).
        at: after which steps, (count, B), in place of each.
    """
    pixels = ranks[0].numel()
    stride = stride_of(pixels, steps)
    changed = range(stride, pixels, stride) if at is None else (at * stride)[..., None, None]
    between = [score_first((ranks < first)[:, None]) for first in changed]
    return torch.stack([start, *between, end], dim=1)


def area(curve: Tensor) -> Tensor:
    """Area (B,) by the trapezoid rule over [0, 1] under curves (B, points), points equally spaced."""
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


def steps_taken(pixels: int, steps: int) -> int:
    """How many steps there are, the last one included: :func:`stride_of` pixels each."""
    return math.ceil(pixels / stride_of(pixels, steps))


def sampled(subject: Subject, kind: str) -> Tensor | None:
    """After which steps deletion or insertion is scored, (count, B), the same for all maps; None: after each.

    Insertion's are as far from the end as deletion's are from the start: they may be the same images.
    """
    steps = steps_taken(subject.ranks[0].numel(), subject.options.steps)
    if subject.options.sample is None or subject.options.sample >= steps - 1:
        return None
    at = subject.sampled_steps(steps - 1)
    return at if kind == "deletion" else steps - at.flip(0)


def deletion_curve(subject: Subject, fill: str, order: str) -> Tensor:
    """p_c as pixels of the image are replaced, (B, points); passes are shared with insertion, see there."""

    def make() -> Tensor:
        filled = subject.filled(fill)
        return curve(
            subject.probability,
            subject.filled_probability(fill),
            subject.ranks if order == "most" else subject.ranks[0].numel() - 1 - subject.ranks,
            subject.options.steps,
            lambda changed: subject.score(torch.where(changed, filled, subject.images)),
            sampled(subject, "deletion"),
        )

    return _either_way(subject, f"insertion {fill} {_other(order)}", f"deletion {fill} {order}", make)


def insertion_curve(subject: Subject, fill: str, order: str) -> Tensor:
    """p_c as pixels of the image replace others, (B, points).

    Its images are those of deletion in the other order, from the last to the first: no pass is made twice.
    """

    def make() -> Tensor:
        filled = subject.filled(fill)
        return curve(
            subject.filled_probability(fill),
            subject.probability,
            subject.ranks if order == "most" else subject.ranks[0].numel() - 1 - subject.ranks,
            subject.options.steps,
            lambda changed: subject.score(torch.where(changed, subject.images, filled)),
            sampled(subject, "insertion"),
        )

    return _either_way(subject, f"deletion {fill} {_other(order)}", f"insertion {fill} {order}", make)


def _other(order: str) -> str:
    return "least" if order == "most" else "most"


def _either_way(subject: Subject, backwards: str, name: str, make: Callable[[], Tensor]) -> Tensor:
    pixels = subject.ranks[0].numel()
    same_images = pixels % stride_of(pixels, subject.options.steps) == 0
    if same_images and subject.knows(backwards):
        return subject.of_maps(backwards, make).flip(1)
    return subject.of_maps(name, make)


CURVES = {"deletion": deletion_curve, "insertion": insertion_curve}


def area_and_curve(subject: Subject, kind: str, fill: str, order: str) -> tuple[Tensor, Tensor]:
    """The area under a curve, (B,), and the curve, (B, points); of sampled steps an estimate of either."""
    points, at = CURVES[kind](subject, fill, order), sampled(subject, kind)
    if at is None:
        return area(points), points
    steps = steps_taken(subject.ranks[0].numel(), subject.options.steps)
    return estimated_area(points, at, steps), joined(points, at, steps)


def score_area(subject: Subject, kind: str, fill: str, order: str, name: str) -> dict[str, Tensor]:
    """The area under a curve, and the curve."""
    found, probability = area_and_curve(subject, kind, fill, order)
    return {f"{name}_auc": found, f"{name}_curve": probability}


def score_srg(subject: Subject, fill: str, name: str) -> dict[str, Tensor]:
    """Area as the least salient pixels go first less that as the most salient ones do; 0 by chance."""
    least, most = (area_and_curve(subject, "deletion", fill, order)[0] for order in ("least", "most"))
    return {name: least - most}


def _register(kind: str, fill: str, order: str) -> None:
    name = variant(kind, fill, order)
    words = ["" if fill == OWN_FILL[kind] else fill, "" if order == "most" else "least first"]
    rises = (kind == "insertion") == (order == "most")
    change = f"are {FILLED[fill]}" if kind == "deletion" else f"come into {BEFORE[fill]}"
    column = name.replace("-", "_")
    metric(
        name,
        columns={
            f"{column}_auc": Column(
                "higher" if rises else "lower",
                ", ".join([kind.capitalize(), *filter(None, words)]),
                f"Area under the probability as pixels {change}, the {order} salient first.",
                jumps=True,
                bounds=UNIT,
            )
        },
        curves=(f"{column}_curve",),
        passes="N - 1, or M (--sample); one for all methods",
        source="RISE, 1806.07421",
    )(partial(score_area, kind=kind, fill=fill, order=order, name=column))


def _register_srg(fill: str) -> None:
    name = variant("srg", fill, "most")
    column = name.replace("-", "_")
    metric(
        name,
        columns={
            column: Column(
                "higher",
                "SRG" if fill == OWN_FILL["srg"] else f"SRG, {fill}",
                f"Symmetric relevance gain: deletion ({fill}), least salient first less most; 0 by chance.",
                jumps=True,
                bounds=CORRELATION,
            )
        },
        passes="2 (N - 1), or 2 M (--sample); beside deletion and insertion of this fill 0",
        source="SRG, 2401.06654",
    )(partial(score_srg, fill=fill, name=column))


for _kind in CURVES:  # the scores themselves stand before their variants in every table
    _register(_kind, OWN_FILL[_kind], "most")
for _kind in CURVES:
    for _fill in FILLS:
        for _order in ORDERS:
            if (_fill, _order) != (OWN_FILL[_kind], "most"):
                _register(_kind, _fill, _order)
for _fill in FILLS:
    _register_srg(_fill)
