"""Random weights that explain something: batch-norm statistics from images, a classifier that is not zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fill_classifier(model: nn.Module, seed: int) -> None:
    """Draw the weights, N(0, 0.02), of a last linear layer that its library leaves at zero.

    With it all logits are the same, and there is nothing to explain.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linear and not linear[-1].weight.any():
        weight = linear[-1].weight
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight.data.copy_(0.02 * drawn)


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Take the statistics of every batch norm from `images` (B, 3, H, W), in one pass.

    With the statistics that random weights come with, a deep model gives nearly the same logits for all.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what is passed
        norm.train()
    with torch.no_grad():
        model(images if len(images) > 1 else images.expand(2, *images.shape[1:]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
