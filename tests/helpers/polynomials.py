"""Networks whose logits are polynomials of the layer's activation, so that Shapley values are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from camkit.network.trace import Trace


class Polynomial(nn.Module):
    """Logits (B, 2) = a + b.x + x'Qx + T(x, x, x), x the images' values: the layer `activation`.

    In float64, with coefficients drawn once; `degree` 1, 2 or 3 leaves the higher terms out.
    """

    def __init__(self, size: int, degree: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.activation = nn.Identity()
        self.degree = degree
        for name, order in (("linear", 1), ("quadratic", 2), ("cubic", 3)):
            shape = (2, *[size] * order)
            self.register_buffer(name, torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(images).flatten(1)
        logits = 0.7 + torch.einsum("ki,bi->bk", self.linear, x)
        if self.degree > 1:
            logits = logits + torch.einsum("kij,bi,bj->bk", self.quadratic, x, x)
        if self.degree > 2:
            logits = logits + torch.einsum("kijl,bi,bj,bl->bk", self.cubic, x, x, x)
        return logits


def values(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trace(
    model: nn.Module,
    images: Tensor,
    layer: str = "activation",
    *,
    utility: str | Callable = "logit",
    ids: Sequence[str] | None = None,
    **options: Any,
) -> Trace:
    """One traced pass, as a method sees it; class 0 of the first image, 1 of the second, and so on."""
    if ids is None:
        ids = [f"{place}.png" for place in range(len(images))]
    return tiny.trace(model, images, layer, utility, _in_turn, ids=ids, **options)


def _in_turn(logits: Tensor) -> Tensor:
    return torch.arange(len(logits)) % logits.shape[1]
