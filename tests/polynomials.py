"""Networks whose logits are polynomials of the layer's activation, so that Shapley values are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camkit.network.passes import Network
from camkit.network.trace import Trace
from camkit.network.utilities import logit

CPU = torch.device("cpu")


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
    model: nn.Module, images: Tensor, layer: str = "activation", *, utility=logit, ids=None, **options
) -> Trace:
    """One traced pass, as a method sees it; class 0 of the first image, 1 of the second, and so on."""
    network = Network(model, CPU)
    passed = network.trace(images, [layer])
    return Trace(
        images=images,
        image_ids=[f"{place}.png" for place in range(len(images))] if ids is None else ids,
        pixels=lambda: images,
        target=torch.arange(len(images)) % passed.logits.shape[1],
        utility=utility,
        seed=options.pop("seed", 0),
        draw=0,
        network=network,
        layer=layer,
        passed=passed,
        **options,
    )
