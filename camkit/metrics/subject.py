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
