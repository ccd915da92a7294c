"""How a saliency map is spread over the image: no scores of whether it is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camkit.entries import NOT_NEGATIVE, UNIT, Column, metric
from camkit.metrics.adcc import COMPLEXITY
from camkit.metrics.subject import Subject


def roughness(saliency: Tensor) -> Tensor:
    """(sum |S(y + 1, x) - S(y, x)| + sum |S(y, x + 1) - S(y, x)|) / (H W), (B,), of S (B, H, W)."""
    down = saliency.diff(dim=1).abs().sum(dim=(1, 2))
    across = saliency.diff(dim=2).abs().sum(dim=(1, 2))
    return (down + across) / saliency[0].numel()


@metric(
    "shape",
    columns={
        "complexity": COMPLEXITY,
        "gini": Column(
            "neither",
            "Gini",
            "Gini index of the saliency: 0 where it is the same everywhere, 1 in one pixel.",
            bounds=UNIT,
        ),
        "entropy": Column(
            "neither",
            "Entropy",
            "Entropy of the saliency as a distribution over pixels, over its maximum.",
            bounds=UNIT,
        ),
        "roughness": Column(
            "neither",
            "Roughness",
            "Total variation: mean difference of neighbouring pixels, in both directions.",
            bounds=NOT_NEGATIVE,
        ),
    },
    passes="0",
    source="Gini index as sparseness: 1810.06583; entropy as complexity: 2005.00631; total variation",
)
def shape(subject: Subject) -> dict[str, Tensor]:
    """No pass. An empty map has the Gini index 0, the entropy 1 and the roughness 0, as a constant one."""
    saliency = subject.saliency
    flat = saliency.flatten(1).double() if saliency.device.type != "mps" else saliency.flatten(1)
    pixels = flat.shape[1]
    total = flat.sum(dim=1)
    empty = total == 0
    ranked = flat.sort(dim=1).values
    places = torch.arange(1, pixels + 1, device=flat.device, dtype=flat.dtype)
    gini = ((2 * places - pixels - 1) * ranked).sum(dim=1) / (pixels * total)
    share = flat / total[:, None]
    entropy = -torch.special.xlogy(share, share).sum(dim=1) / math.log(pixels)
    return {
        "complexity": saliency.mean(dim=(1, 2)),
        "gini": gini.where(~empty, 0).to(saliency),
        "entropy": entropy.where(~empty, 1).to(saliency),
        "roughness": roughness(saliency),
    }
