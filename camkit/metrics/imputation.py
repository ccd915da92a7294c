"""Noisy linear imputation (ROAD, 2202.00449): removed pixels become the weighted means of their neighbours.

Where many are gone that is a linear system, a discrete Laplace equation with one unknown per removed pixel.
It is solved for a whole batch on its device: conjugate gradients, preconditioned by one V-cycle of multigrid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of the neighbours
TOLERANCE = 1e-5  # of the residual's length, over that of the right-hand side
MOST_ITERATIONS = 200  # ten to fifteen are usual
DAMPING = 0.8  # of the smoother, Jacobi
COARSEST = 4  # pixels a side, smoothed COARSE_SWEEPS times
COARSE_SWEEPS = 8


class _Level:
    """The system at one resolution. Values and right-hand sides are 0 wherever there is nothing to find.

    Args:
        unknown: 1 where a pixel is to be found, else 0, (B, 1, h, w).
        channels: of the images.
    """

    def __init__(self, unknown: Tensor, channels: int) -> None:
        self.unknown = unknown
        self.size = unknown.shape[2:]
        rows = [[DIAGONAL, DIRECT, DIAGONAL], [DIRECT, 0, DIRECT], [DIAGONAL, DIRECT, DIAGONAL]]
        kernel = torch.tensor(rows, device=unknown.device, dtype=unknown.dtype)
        # Channels last: this convolution is some five times as fast.
        self._kernel = kernel.expand(channels, 1, 3, 3).contiguous(memory_format=torch.channels_last)
        self._total = self.neighbours(unknown.new_ones(1, channels, *self.size))  # less than 1 at the edge
        self._step = DAMPING / self._total
        self._share = self._step * unknown

    def neighbours(self, values: Tensor) -> Tensor:
        """Weighted sum of the eight neighbours, nothing beyond the edge; (B, C, h, w)."""
        return F.conv2d(values, self._kernel, padding=1, groups=len(self._kernel))

    def apply(self, values: Tensor) -> Tensor:
        """The system's left-hand side: what the neighbours' sum leaves of a pixel."""
        return (self._total * values).addcmul_(self.unknown, self.neighbours(values), value=-1)

    def smooth(self, values: Tensor, right: Tensor) -> Tensor:
        """A damped step of Jacobi's: values + DAMPING (right - apply(values)) / total."""
        damped = ((1 - DAMPING) * values).addcmul_(self._step, right)
        return damped.addcmul_(self._share, self.neighbours(values))

    def smoothed_zero(self, right: Tensor) -> Tensor:
        return self._step * right


def _cycle(levels: list[_Level], right: Tensor) -> Tensor:
    """Roughly solve the system of the first level: smooth, correct from the next coarser one, smooth."""
    level, *coarser = levels
    values = level.smoothed_zero(right)
    if not coarser:
        for _ in range(COARSE_SWEEPS):
            values = level.smooth(values, right)
        return values
    residual = F.avg_pool2d(right - level.apply(values), 2, divisor_override=1) * coarser[0].unknown
    correction = F.interpolate(
        _cycle(coarser, residual), tuple(level.size), mode="bilinear", align_corners=False
    )
    return level.smooth(values.addcmul_(level.unknown, correction), right)


def _guess(values: Tensor, known: Tensor) -> Tensor:
    """Unknown pixels from the mean of known ones, at the finest scale that has some."""
    if min(values.shape[2:]) < 2:
        return values
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    mean = F.avg_pool2d(values * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = _guess(mean, (weight > 0).to(values))
    spread = F.interpolate(coarse, tuple(values.shape[2:]), mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, spread)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Images (B, C, H, W) whose removed pixels, bool (B, 1, H, W), are weighted means of their neighbours.

    The eight neighbours count 1/6 and, across a corner, 1/12; at the image's edge those that are missing are
    left out. Each image stops when its own residual is small: but for last bits its numbers do not depend on
    the batch. Without a pixel that is kept, all are 0.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    unknown = removed.to(images)
    levels = [_Level(unknown, images.shape[1])]
    while min(levels[-1].size) >= 2 * COARSEST:
        all_unknown = -F.max_pool2d(-levels[-1].unknown, 2)
        levels.append(_Level(all_unknown, images.shape[1]))
    fine = levels[0]
    right = unknown * fine.neighbours(images * (1 - unknown))
    values = unknown * _guess(images * (1 - unknown), 1 - unknown)
    residual = right - fine.apply(values)
    enough = TOLERANCE**2 * _dot(right, right)
    direction = preconditioned = _cycle(levels, residual)
    energy = _dot(residual, preconditioned)
    for _ in range(MOST_ITERATIONS):
        active = _dot(residual, residual) > enough
        if not active.any():
            break
        product = fine.apply(direction)
        step = (energy / _dot(direction, product)).where(active, 0)
        values = values.addcmul(step, direction)
        before, residual = residual, residual.addcmul(step, product, value=-1)
        preconditioned = _cycle(levels, residual)
        # Polak and Ribiere's: the preconditioner is not symmetric to the last bit.
        turn = _dot(preconditioned, residual - before) / energy
        energy = _dot(residual, preconditioned)
        direction = preconditioned.addcmul(turn.where(active, 0), direction)
    return torch.where(removed, values, images)
