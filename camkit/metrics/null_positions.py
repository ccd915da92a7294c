"""Null positions: does a map lie where the network is blind?

The rest of the network is made blind to a random half of a layer's positions: u(A M), M a mask of 0 and 1
behind the traced activation A. A position under a 0 is null, since u(A M) does not depend on it, and by the
dummy axiom its share of the map is 0. Precedents: HiResCAM (2011.08891), DiFull (2205.10435), 2404.01964.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import NOT_NEGATIVE, Column, metric
from camkit.metrics.subject import Subject

COLUMNS = {
    "null_share": Column(
        "lower",
        "Null",
        "Share of the signed map on positions that the network is blind to, over what chance gives.",
        optional=True,
        bounds=NOT_NEGATIVE,
    ),
    "null_share_positive": Column(
        "lower",
        "Null, positive",
        "The same of the positive part of the map, which is shown.",
        optional=True,
        bounds=NOT_NEGATIVE,
    ),
}
FLAGS = {"empty_null_map": "empty maps of the network that is blind to half the positions (null of chance)"}


def half_masks(subject: Subject, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two complementary masks (B, 1, h, w) drawn by seed and image: each shows half of the positions."""
    positions = grid[0] * grid[1]
    first = torch.zeros(len(subject.images), positions)
    for mask, generator in zip(first, subject.draw("null positions"), strict=True):
        mask[torch.randperm(positions, generator=generator)[: positions // 2]] = 1
    first = first.view(-1, 1, *grid).to(subject.images)
    return first, 1 - first


def null_share(maps: Tensor, mask: Tensor) -> Tensor:
    """Share of the absolute map (B, h, w) on positions where the mask is 0, over their number's share.

    1 for a map that knows nothing of the mask (on average) and for an empty one; 0 for one that obeys it.
    """
    null = 1 - mask[:, 0]
    weight = maps.abs()
    total = weight.sum(dim=(1, 2))
    share = (weight * null).sum(dim=(1, 2)) / total / null.mean(dim=(1, 2))
    return share.where(total > 0, 1)


@metric(
    "null",
    columns=COLUMNS,
    flags=FLAGS,
    sees_layer=True,
    explains_again=True,
    passes="0; 2 passes and 2 gradients for all methods",
    source="the dummy axiom; precedents: 2011.08891, 2205.10435, 2404.01964",
)
def null(subject: Subject) -> dict[str, Tensor]:
    """The mean over two complementary masks, on the layer's grid, before any resize.

    Methods that give saliency maps of a layer are averaged over its cells; attributions to pixels, and
    methods that see no layer, have no value. Two passes per image and layer, shared by all methods, and what
    each method does with them.
    """
    if subject.layer_grid is None:
        unknown = torch.full_like(subject.probability, torch.nan)
        return dict.fromkeys(COLUMNS, unknown) | {"empty_null_map": unknown.isinf()}
    shares: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    empty = torch.zeros_like(subject.probability, dtype=torch.bool)
    for number, mask in enumerate(half_masks(subject, subject.layer_grid)):
        maps = subject.explain_behind(f"null {number}", lambda activation, mask=mask: activation * mask)[0]
        if maps.shape[1:] != subject.layer_grid:
            maps = F.adaptive_avg_pool2d(maps[:, None], subject.layer_grid)[:, 0]
        shares["null_share"].append(null_share(maps, mask))
        shares["null_share_positive"].append(null_share(maps.relu(), mask))
        empty |= ~(maps.relu().sum(dim=(1, 2)) > 0)  # nor is one that is not finite
    means = {name: torch.stack(both).mean(dim=0) for name, both in shares.items()}
    return means | {"empty_null_map": empty}
