"""Attention and its methods beside transformers (eager attention) and torchcam, on their own small models."""

from __future__ import annotations

import pytest
import torch
import torchvision
from tiny import CPU, maps, noise, seeded, trace
from torch import Tensor, nn

from camkit.network.passes import Network

pytestmark = pytest.mark.peers

SIZE = (32, 48)
SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
FAMILIES = {
    "ViT": "ViTForImageClassification",
    "DeiT": "DeiTForImageClassification",
    "Beit": "BeitForImageClassification",
    "Dinov2WithRegisters": "Dinov2WithRegistersForImageClassification",
}


def build(family: str, implementation: str) -> nn.Module:
    """A classifier of transformers with weights that make its attention far from flat."""
    transformers = pytest.importorskip("transformers")

    # DINOv2 has square positions, which it resizes to the images.
    size = SIZE if family != "Dinov2WithRegisters" else 32
    config = getattr(transformers, f"{family}Config")(
        **SMALL, image_size=size, patch_size=8, num_labels=5, attn_implementation=implementation
    )
    model = seeded(lambda: getattr(transformers, FAMILIES[family])(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * 1.5 / parameter.shape[1] ** 0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_and_its_gradients_are_those_that_transformers_gives(
    family: str, implementation: str
) -> None:
    images = noise(2, 3, *SIZE)
    eager = build(family, "eager")
    with torch.enable_grad():
        outputs = eager(images.requires_grad_(), output_attentions=True)
        gradients = torch.autograd.grad(outputs.logits[:, 1].sum(), outputs.attentions)
    network = Network(build(family, implementation), CPU)
    seen = network.trace(images.detach(), [], attention=True).attention
    assert seen is not None
    assert len(seen) == 3
    for one, expected in zip(seen, outputs.attentions, strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(one.weights, expected, rtol=1e-4, atol=1e-6)
    assert network.transformer.lack == ""
    assert network.transformer.grid == (4, 6)
    layer = seen[1].block
    traced = trace(
        build(family, implementation), images.detach(), layer, "logit", (1, 1), uses=("attention",)
    )
    for found, expected in zip(traced.attention_gradients, gradients, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-4)


def vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[1] ** 0.5)
    return model


def test_legrad_is_torchcams() -> None:
    from torchcam.methods import LeGrad

    model, images = seeded(vit), noise(2, 3, 32, 32)
    layers = [f"encoder.layers.encoder_layer_{number}" for number in range(3)]
    found = maps("legrad", trace(model, images, layers[1], "logit", (1, 3), uses=("attention",)))
    with torch.enable_grad(), LeGrad(model.requires_grad_(True), layers) as extractor:
        (expected,) = extractor([1, 3], model(images), normalized=False)
    assert expected.std() > 0.01 * expected.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_torchvisions_attention_is_what_its_own_module_returns() -> None:
    model, images = seeded(vit), noise(2, 3, 32, 32)
    kept: list[Tensor] = []
    for layer in model.encoder.layers:
        attention = layer.self_attention
        attention.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    seen = Network(model, CPU).trace(images, [], attention=True).attention
    assert seen is not None
    for one, tokens, layer in zip(seen, list(kept), model.encoder.layers, strict=True):
        expected = layer.self_attention(tokens, tokens, tokens, average_attn_weights=False)[1]
        torch.testing.assert_close(one.weights, expected, rtol=1e-4, atol=1e-6)
