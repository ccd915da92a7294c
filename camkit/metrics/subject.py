"""What is scored: a batch of images, and the passes that all of its saliency maps share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

BLUR_SIZE, BLUR_SIGMA = 11, 5
GRID = 4  # patches a side in single deletion


def blur(images: Tensor) -> Tensor:
    """RISE's blur (1806.07421): a Gaussian of sigma 5 cut to 11x11, zero padding 5; (B, 3, H, W)."""
    kernel = _blur_kernel(images.device, images.dtype)
    channels = images.shape[1]
    return F.conv2d(
        images, kernel.expand(channels, 1, BLUR_SIZE, BLUR_SIZE), padding=BLUR_SIZE // 2, groups=channels
    )


@cache
@torch.inference_mode(False)  # it outlives the caller's mode
def _blur_kernel(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(11, 11), of sum 1."""
    dirac = np.zeros((BLUR_SIZE, BLUR_SIZE))
    dirac[BLUR_SIZE // 2, BLUR_SIZE // 2] = 1
    return torch.from_numpy(gaussian_filter(dirac, BLUR_SIGMA)).to(device, dtype)


@dataclass
class Subject:
    """A batch to be scored.

    Attributes:
        images: normalised, (B, 3, H, W).
        probability: p_c of the images, (B,), in [0, 1].
        score: images (B, 3, H, W) -> p_c (B,); one pass.
        steps: N of deletion and insertion.
    """

    images: Tensor
    probability: Tensor
    score: Callable[[Tensor], Tensor]
    steps: int
    # Of the images alone: :func:`dataclasses.replace` hands it on to a subject with another `probability`.
    _made: dict[str, Tensor] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def blank_probability(self) -> Tensor:
        """p_c of the image whose pixels are all 0 after normalisation, (B,)."""
        return self._once("blank_probability", lambda: self.score(torch.zeros_like(self.images)))

    @property
    def blurred(self) -> Tensor:
        return self._once("blurred", lambda: blur(self.images))

    @property
    def blurred_probability(self) -> Tensor:
        return self._once("blurred_probability", lambda: self.score(self.blurred))

    def patch_drops(self, logit: Callable[[Tensor], Tensor]) -> Tensor:
        """Drop of the target's logit when one patch of the 4x4 grid is set to 0, (B, 16), raster order.

        Args:
            logit: images (B, 3, H, W) -> y_c (B,); one pass.
        """
        return self._once("patch_drops", lambda: self._patch_drops(logit))

    def _patch_drops(self, logit: Callable[[Tensor], Tensor]) -> Tensor:
        height, width = self.images.shape[2:]
        drops = []
        for row in range(GRID):
            for column in range(GRID):
                kept = self.images.clone()
                rows = slice(row * height // GRID, (row + 1) * height // GRID)
                columns = slice(column * width // GRID, (column + 1) * width // GRID)
                kept[:, :, rows, columns] = 0
                drops.append(logit(kept))
        return logit(self.images)[:, None] - torch.stack(drops, dim=1)
