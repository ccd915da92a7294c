"""Axioms of the Shapley value, each as the distance by which a map misses it: 0 is passed.

They are passed or not, and never averaged with one another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from camkit.entries import NOT_NEGATIVE, UNIT, Column, metric
from camkit.metrics import null_positions
from camkit.metrics.subject import Subject

COLUMNS = {
    "efficiency_error": Column(
        "lower",
        "Efficiency",
        "How far the map's sum is from what the positions add to the utility, over both.",
        optional=True,
        bounds=UNIT,
    ),
    "symmetry_error": Column(
        "lower",
        "Symmetry",
        "Difference of the map between two positions that the network cannot tell apart, over its maximum.",
        optional=True,
        bounds=NOT_NEGATIVE,
    ),
    "linearity_error": Column(
        "lower",
        "Linearity",
        "How far the map of ReST is from the sum of its two parts' maps, over all three.",
        optional=True,
        bounds=UNIT,
    ),
}


@metric(
    "axioms",
    columns={**null_positions.COLUMNS, **COLUMNS},
    flags=null_positions.FLAGS,
    sees_layer=True,
    explains_again=True,
    passes="2 heads; 3 passes and 6 gradients for all methods",
    source="Shapley 1953: dummy, efficiency, symmetry, linearity",
)
def axioms(subject: Subject) -> dict[str, Tensor]:
    """Dummy (:func:`camkit.metrics.null_positions.null`), efficiency, symmetry and linearity in the utility.

    efficiency_error: |sum m - g| / (|sum m| + |g|), g = u(A) - u(A0), A0 the absent activation. In [0, 1].
    symmetry_error: |m_i - m_j| / max |m| of two drawn positions. The layer's output is replaced by its mean
        over both at i and j, and so is what the rest of the network receives: the game is symmetric in i and
        j.
    linearity_error: |m(ReST) - m(logit) - m(log-softmax)| / (|m(ReST)| + |m(logit)| + |m(log-softmax)|), in
        sums of absolute values; in [0, 1], whatever the cell's utility.

    All need signed maps: NaN from methods that give saliency maps. Three passes per image and layer, shared
    by all methods, two passes through the rest of the network, and what each method does with them.
    """
    null = null_positions.null(subject)
    if subject.maps is None:
        return null | dict.fromkeys(COLUMNS, torch.full_like(subject.probability, torch.nan))
    none, everyone = (
        subject.trace.head(one) for one in (subject.trace.absent_activation, subject.trace.activation)
    )
    gain, total = everyone - none, subject.maps.sum(dim=(1, 2))
    return null | {
        "efficiency_error": (total - gain).abs() / (total.abs() + gain.abs()),
        "symmetry_error": _symmetry_error(subject),
        "linearity_error": _linearity_error(subject),
    }


def _linearity_error(subject: Subject) -> Tensor:
    whole, *parts = (
        subject.explain_as(name, utility=name)[0].flatten(1) for name in ("rest", "logit", "log-softmax")
    )
    length = sum(one.abs().sum(dim=1) for one in (whole, *parts))
    return (whole - sum(parts)).abs().sum(dim=1) / length


def _symmetry_error(subject: Subject) -> Tensor:
    assert subject.layer_grid is not None  # signed maps have one
    positions = subject.layer_grid[0] * subject.layer_grid[1]
    pairs = torch.stack(
        [torch.randperm(positions, generator=one)[:2] for one in subject.draw("symmetric positions")]
    ).to(subject.images.device)
    maps = subject.explain_behind("symmetric", average_over(pairs), traced=True)[0].flatten(1)
    pair = maps.gather(1, pairs)
    return (pair[:, 0] - pair[:, 1]).abs() / maps.abs().amax(dim=1)


def average_over(pairs: Tensor) -> Callable[[Tensor], Tensor]:
    """Maps (B, C, h, w) -> the same, but at two positions per image (B, 2) the mean of both."""

    def average(maps: Tensor) -> Tensor:
        flat = maps.flatten(2)
        places = pairs[:, None].expand(-1, maps.shape[1], -1)
        mean = flat.gather(2, places).mean(dim=2, keepdim=True).expand(-1, -1, 2)
        return flat.scatter(2, places, mean).view_as(maps)

    return average
