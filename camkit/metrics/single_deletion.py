"""Single deletion: do a map and the removal of one patch at a time order an image's patches alike?

As in 2407.11910, with three differences: the network is not fine-tuned to missing patches, the predicted
class is explained, and the map keeps its sign.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import CORRELATION, Column, metric
from camkit.methods.controls import patch_slices
from camkit.metrics.adcc import pearson
from camkit.metrics.subject import Subject

# The patches of a symmetric map (`centre`) are alike, but their sums differ in the last bits.
TIE = 1e-6


def average_ranks(values: Tensor) -> Tensor:
    """Ranks of values (B, n) from 0, ties (but for rounding) sharing their mean rank, (B, n)."""
    rounding = TIE * values.abs().amax(dim=1)[:, None, None]
    above = values[:, :, None] - values[:, None]
    lower, higher = (above > rounding).sum(dim=2), (above < -rounding).sum(dim=2)
    return (lower + values.shape[1] - 1 - higher) / 2


@metric(
    "single_deletion",
    columns={
        "single_deletion": Column(
            "higher",
            "SD",
            "Rank correlation, over patches, of the map with the logit's loss when one patch is blanked.",
            optional=True,
            signed=True,
            jumps=True,
            bounds=CORRELATION,
        )
    },
    passes="0; 17 for all methods (--grid)",
    source="single deletion, 2407.11910 (docs/definitions.md says what differs)",
)
def single_deletion(subject: Subject) -> dict[str, Tensor]:
    """Spearman correlation over a grid of patches: sums of the signed map, and y_c's drop when one becomes 0.

    The map is resized to the image first (bilinear); methods that give saliency maps are taken as they
    are. A pass per patch and one more, shared by all methods. NaN where the map's sums are all alike.
    """
    maps = subject.saliency if subject.maps is None else subject.maps
    size = (subject.images.shape[2], subject.images.shape[3])
    resized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    patches = patch_slices(*size, subject.options.grid)
    sums = torch.stack([resized[:, 0, rows, columns].sum(dim=(1, 2)) for rows, columns in patches], dim=1)
    ranks = (average_ranks(one).to(maps.dtype) for one in (sums, subject.patch_drops))
    first, second = (one[:, None] for one in ranks)
    return {"single_deletion": pearson(first, second)}
