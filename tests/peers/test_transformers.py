"""HA of transformers against torch.func's forward-over-reverse second derivative, on small ones of timm's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from tiny import maps, noise, seeded, trace
from torch import Tensor, nn

from camkit.network.layers import find_module

pytestmark = pytest.mark.peers

UTILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda y: y,
    "softmax": lambda y: y.softmax(0),
    "log-softmax": lambda y: y.log_softmax(0),
    "rest": lambda y: y + y.log_softmax(0),
}


def swin() -> nn.Module:
    model = timm.models.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 4), num_classes=7
    )
    return strong(model)


def vit() -> nn.Module:
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7
    )
    return strong(model)


def strong(model: nn.Module) -> nn.Module:
    """Weights large enough that attention and softmax are far from flat."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "relative" not in name:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[1] ** 0.5)
    return model


def fused(model: nn.Module, switch: bool) -> int:
    attentions = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module in attentions:
        module.fused_attn = switch
    return len(attentions)


def oracle(
    model: nn.Module, image: Tensor, layer: str, utility: str, target: int, prefix: int = 0
) -> tuple[Tensor, ...]:
    """A, G and HA in the layer's own layout, in float64, without fused attention.

    The first `prefix` tokens are held fixed: a class token is no position, so it is no part of A.
    """
    model = model.double()
    fused(model, False)
    module = find_module(model, layer)
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    model(image.double()[None])
    handle.remove()
    output = kept[0].detach()
    activation = output[:, prefix:]

    def value(replacement: Tensor) -> Tensor:
        whole = torch.cat([output[:, :prefix], replacement], dim=1)
        hook = module.register_forward_hook(lambda *_: whole)
        try:
            return UTILITIES[utility](model(image.double()[None])[0])[target]
        finally:
            hook.remove()

    gradient, hvp = torch.func.jvp(torch.func.grad(value), (activation,), (activation,))
    return activation[0], gradient[0], hvp[0]


def close(ours: Tensor, oracles: Tensor) -> None:
    assert oracles.abs().max() > 0
    scale = oracles.abs().max()
    torch.testing.assert_close(ours.double() / scale, oracles / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("layer", ["layers[-1].blocks[-1].norm1", "norm", "layers[0]"])
def test_swin(layer: str, utility: str, fusion: bool) -> None:
    model = seeded(swin)
    images = noise(2, 3, 32, 32)
    assert fused(model, fusion) == 3
    with torch.no_grad():
        target = model(images).argmax(dim=1)
    traced = trace(model, images, layer, utility, target)
    found = traced.activation[1], traced.gradient[1], traced.hvp[1]
    shapleycam = maps("shapleycam", traced)[1]
    activation, gradient, hvp = (
        t.permute(2, 0, 1) for t in oracle(model, images[1], layer, utility, int(target[1]))
    )
    close(found[0], activation)
    close(found[1], gradient)
    if (layer, utility) == ("norm", "logit"):  # a mean and a linear head follow
        assert (found[2] == 0).all()
        assert hvp.abs().max() < 1e-12
    else:
        close(found[2], hvp)
    weights = (gradient - hvp / 2).mean(dim=(1, 2), keepdim=True)
    close(shapleycam, (weights * activation).sum(dim=0))


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("layer", ["blocks[0]", "blocks[1].norm1"])
def test_vit_with_fused_attention(layer: str, utility: str) -> None:
    model = seeded(vit)
    images = noise(2, 3, 32, 32)
    assert fused(model, True) == 2
    with torch.no_grad():
        target = model(images).argmax(dim=1)
    traced = trace(model, images, layer, utility, target)
    found = traced.activation[1], traced.gradient[1], traced.hvp[1]
    expected = oracle(model, images[1], layer, utility, int(target[1]), prefix=1)
    for ours, oracles in zip(found, expected, strict=True):
        close(ours, oracles.T.unflatten(1, (4, 4)))


def test_timms_own_vit_is_fused_by_default_and_still_has_its_second_derivative() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9).eval()
    attention = find_module(model, "blocks[-1].attn")
    assert attention.fused_attn
    traced = trace(model, noise(1, 3, 64, 64), "blocks[-1].norm1")
    assert traced.activation.shape == (1, 192, 4, 4)
    assert traced.hvp.isfinite().all()
    assert traced.hvp.abs().max() > 0
