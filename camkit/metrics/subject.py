"""What is scored: a batch of images, and the passes that all of its saliency maps share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

BLUR_SIZE, BLUR_SIGMA = 11, 5
GRID = 4  # patches a side in single deletion


def blur(images: Tensor) -> Tensor:
    """RISE's blur (1806.07421): a Gaussian of sigma 5 cut to 11x11, zero padding 5; (B, 3, H, W)."""
    dirac = np.zeros((BLUR_SIZE, BLUR_SIZE))
    dirac[BLUR_SIZE // 2, BLUR_SIZE // 2] = 1
    kernel = torch.from_numpy(gaussian_filter(dirac, BLUR_SIGMA)).to(images)
    channels = images.shape[1]
    return F.conv2d(
        images, kernel.expand(channels, 1, BLUR_SIZE, BLUR_SIZE), padding=BLUR_SIZE // 2, groups=channels
    )


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
    _drops: Tensor | None = None

    @cached_property
    def blank_probability(self) -> Tensor:
        """p_c of the image whose pixels are all 0 after normalisation, (B,)."""
        return self.score(torch.zeros_like(self.images))

    @cached_property
    def blurred(self) -> Tensor:
        return blur(self.images)

    @cached_property
    def blurred_probability(self) -> Tensor:
        return self.score(self.blurred)

    def patch_drops(self, logit: Callable[[Tensor], Tensor]) -> Tensor:
        """Drop of the target's logit when one patch of the 4x4 grid is set to 0, (B, 16), raster order.

        Args:
            logit: images (B, 3, H, W) -> y_c (B,); one pass.
        """
        if self._drops is None:
            height, width = self.images.shape[2:]
            drops = []
            for row in range(GRID):
                for column in range(GRID):
                    kept = self.images.clone()
                    rows = slice(row * height // GRID, (row + 1) * height // GRID)
                    columns = slice(column * width // GRID, (column + 1) * width // GRID)
                    kept[:, :, rows, columns] = 0
                    drops.append(logit(kept))
            self._drops = logit(self.images)[:, None] - torch.stack(drops, dim=1)
        return self._drops
