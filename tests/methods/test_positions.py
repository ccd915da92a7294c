"""ReciproCAM: by hand, against whole networks, and the closed form against the slow way."""

from __future__ import annotations

import pytest
import torch
from networks import Net
from timm.models.vision_transformer import VisionTransformer
from tiny import Headed, TinyNet, maps, noise, seeded, trace
from torch import Tensor, nn

from camkit.entries import METHODS, UTILITIES
from camkit.network import game

IMAGES = 3 * noise(2, 3, 8, 6, seed=1)


def strong() -> nn.Module:
    """A network whose logits differ from image to image."""
    model = Net()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def vit() -> VisionTransformer:
    """Two blocks of 24 numbers; a class token and two registers stand before 2 x 3 patches."""
    return VisionTransformer(
        img_size=(16, 24), patch_size=8, depth=2, embed_dim=24, num_heads=2, reg_tokens=2, num_classes=5
    )


def alone(traced: object, prefix: int = 0, absent: str = "zero") -> Tensor:
    """u (B, h, w) of whole passes in which a single position of the layer and the prefix are present."""
    model, values = traced.network.model, []
    height, width = traced.activation.shape[2:]
    for place in range(height * width):

        def masked(_: nn.Module, __: tuple, output: Tensor, place: int = place) -> Tensor:
            if output.ndim == 3:
                kept = torch.zeros_like(output)
                kept[:, :prefix] = output[:, :prefix]
                kept[:, prefix + place] = output[:, prefix + place]
                return kept
            row, column = divmod(place, width)
            kept = output.mean(dim=(2, 3), keepdim=True).expand_as(output) * (absent == "mean")
            kept[:, :, row, column] = output[:, :, row, column]
            return kept

        handle = model.get_submodule(traced.layer).register_forward_hook(masked)
        with torch.no_grad():
            values.append(traced.utility(model(traced.images), traced.target))
        handle.remove()
    return torch.stack(values, dim=1).view(-1, height, width)


def test_by_hand() -> None:
    """Two channels, one of them negative, on a grid of 1 x 2: the position's own logit, less the least."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    images = torch.tensor([[[[1.0, 3.0]], [[2.0, -1.0]]], [[[0.0, -4.0]], [[5.0, 1.0]]]])
    model = Headed(nn.Identity(), lambda a: linear(a.mean(dim=(2, 3))))
    found = maps("reciprocam", trace(model, images, utility="logit", target=[0, 1]))
    # (1 - 4, 3 + 2) / 2 and (20, -12 + 4) / 2
    torch.testing.assert_close(found, torch.tensor([[[0.0, 4.0]], [[14.0, 0.0]]]), rtol=1e-4, atol=1e-4)


# Layer -> passes and head passes beside the trace's. Behind `block` each position is treated alone; a skip
# connection passes `block.second` by.
COSTS = {"act": (0, 0), "block": (0, 7), "block.second": (1, 6 + 48)}


@pytest.mark.parametrize("layer", COSTS)
@pytest.mark.parametrize("utility", UTILITIES)
def test_each_position_stands_alone(utility: str, layer: str) -> None:
    traced = trace(seeded(strong), IMAGES, layer, utility)
    expected = alone(traced)
    found = maps("reciprocam", traced)
    passes, heads = COSTS[layer]
    assert (traced.network.passes, traced.network.head_passes) == (1 + passes, heads)
    expected = expected - expected.amin(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.max().item())
    assert found.amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("absent", ["zero", "mean"])
@pytest.mark.parametrize(("layer", "heads"), [("features.5", 0), ("features.3", 7)])
@pytest.mark.parametrize("utility", UTILITIES)
def test_the_closed_forms_are_the_slow_way(
    utility: str, layer: str, heads: int, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(game, "CHUNK", 5 * 2 * 1000)  # five positions at once, of eighteen
    traced = trace(seeded(TinyNet), noise(2, 3, 48, 96), layer, utility, absent=absent)
    found = maps("reciprocam", traced)
    assert (traced.network.passes, traced.network.head_passes) == (1, heads)
    expected = alone(traced, absent=absent)
    expected = expected - expected.amin(dim=(1, 2), keepdim=True)
    scale = expected.max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-3)
    assert scale > 1e-4


def test_of_a_vit_class_token_and_registers_stay() -> None:
    traced = trace(seeded(vit), noise(2, 3, 16, 24), "blocks.1.norm1", "softmax")
    assert traced.activation.shape == (2, 24, 2, 3)
    found = maps("reciprocam", traced)
    expected = alone(traced, prefix=3)
    torch.testing.assert_close(
        found, expected - expected.amin(dim=(1, 2), keepdim=True), rtol=1e-3, atol=1e-6
    )
    assert found.max() > 1e-5


TOKENS = (
    "eigencam", "kpcacam", "eigengradcam", "smoothgradcam++", "expected-gradcam", "finercam", "fullgrad",
    "ablationcam", "scorecam", "reciprocam", "rise-8", "occlusion",
)  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_every_method_takes_tokens_and_one_image_has_the_map_that_it_has_in_a_batch(name: str) -> None:
    images = noise(3, 3, 16, 24)
    together = maps(name, trace(seeded(vit), images, "blocks.1.norm1", ids=["a", "b", "c"], target=[1, 4, 2]))
    assert together.shape == ((3, 16, 24) if METHODS[name].saliency else (3, 2, 3))
    scale = together.abs().max()
    assert together.isfinite().all() and together.std() > 0
    for place, target in enumerate([1, 4, 2]):
        one = images[place : place + 1]
        found = maps(name, trace(seeded(vit), one, "blocks.1.norm1", ids=["abc"[place]], target=[target]))
        torch.testing.assert_close(found[0] / scale, together[place] / scale, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["cam", "liftcam"])
def test_what_a_vit_cannot_have_is_said(name: str) -> None:
    network = trace(seeded(vit), noise(1, 3, 16, 24), "blocks.1.norm1").network
    said = METHODS[name].lacks(network, "blocks.1.norm1")
    assert ("a class token" if name == "cam" else "LayerNorm") in said
