"""From signed maps (B, h, w) to saliency maps (B, H, W) in [0, 1]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (h, w) of (B, h, w) to [0, 1]: subtract the minimum, divide by the maximum + 1e-7."""
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (maps.amax(dim=(1, 2), keepdim=True) + 1e-7)


def to_saliency(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """ReLU, min-max, bilinear resize to (H, W) with half-pixel centres, min-max.

    A map with a value that is not finite becomes 0 everywhere: with a constant map's saliency all its
    scores are defined, and :func:`is_degenerate` sees it.
    """
    finite = maps.isfinite().all(dim=(1, 2))[:, None, None]
    maps = min_max(maps.where(finite, 0).relu())
    resized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(resized)


def is_degenerate(saliency: Tensor) -> Tensor:
    """(B,) true where a saliency map (B, H, W) is constant (which includes maps that were not finite)."""
    return saliency.amin(dim=(1, 2)) == saliency.amax(dim=(1, 2))
