"""Layers that are found: the last one before pooling, the ends of stages, all that can be explained."""

from __future__ import annotations

import pytest
import timm
import torch
from families import FAMILIES, OTHERS, SIZE, build, build_other
from timm.layers import AttentionPoolLatent
from tiny import CPU, TinyNet, last_feature_layer, noise, seeded
from torch import Tensor, nn

from camkit.network.features import Features
from camkit.network.layers import find_module
from camkit.network.passes import Network

BLOCKS = ("blocks.0", "blocks.1", "blocks.2")
# Model -> the layer that a person would choose, and the ends of its stages.
EXPECTED = {
    "swin": ("norm", ("layers.0", "layers.1")),
    "volo": ("network.4", ("network.0", "network.2", "network.3", "network.4")),  # no auxiliary head
    "siglip": ("norm", BLOCKS),  # no projection of its attention pooling
    "cait": ("blocks", BLOCKS),
    "xcit": ("blocks.2", BLOCKS),
    "mixer": ("norm", BLOCKS),
    "hiera": ("blocks.4", ("blocks.4",)),  # before it the tokens are in the order of windows
    "pit": ("transformers.1.blocks.1.norm1", ("transformers.0.blocks", "transformers.1.blocks.1.norm1")),
    "convnext": ("stages", ("stages.0", "stages.1", "stages.2", "stages.3")),
    "efficientnet": ("bn2", ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4")),  # timm names these
    "resnet": ("layer4", ("relu", "layer1", "layer2", "layer3", "layer4")),
    "torchvision vit": (
        "encoder.layers.encoder_layer_2.ln_1",
        (*(f"encoder.layers.encoder_layer_{n}" for n in range(2)), "encoder.layers.encoder_layer_2.ln_1"),
    ),
    "torchvision swin": ("permute", ("features.1", "permute")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_last_layer_and_the_stages(name: str) -> None:
    features = Features(build_other(name), noise(1, 3, 64, 64))
    assert (features.last(), features.stages()) == EXPECTED[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_plain_transformers(family: str) -> None:
    """A class token reads nothing but the last block's attention: its normalised input is the last layer."""
    features = Features(build(family), noise(1, 3, *SIZE))
    last = "blocks.2" if family == "beit" else "blocks.2.norm1"
    assert (features.last(), features.stages()) == (last, ("blocks.0", "blocks.1", last))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
def test_stages_are_those_that_timm_names(name: str) -> None:
    model = seeded(lambda: timm.create_model(name, num_classes=5))
    named = tuple(one["module"] for one in model.feature_info)
    found = Features(model, noise(1, 3, 160, 160)).stages()
    # On the patches after a ViT's last block no logit depends.
    assert found == (named if name != "test_vit" else (*named[:-1], f"{named[-1]}.norm1"))


@pytest.mark.parametrize("name", [*OTHERS])
def test_gradients_reach_each_of_them_at_every_image(name: str) -> None:
    """The last layer's, and every stage's, from one pass."""
    network = Network(build_other(name), CPU)
    images = noise(2, 3, 64, 64)
    network.logits(images)
    layers = sorted({*network.stages, str(network.last_layer)})
    before = network.passes
    passed = network.trace(images, layers)
    assert network.passes == before + 1
    with torch.enable_grad():
        top = passed.logits.max(dim=1).values.sum()
        gradients = torch.autograd.grad(top, [passed.leaves[layer] for layer in layers])
    for layer, gradient in zip(layers, gradients, strict=True):
        assert gradient.flatten(1).abs().amax(dim=1).min() > 0, layer


class Pooled(nn.Module):
    """A backbone and its pooling by a single query, the only attention of a model, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.pool = AttentionPoolLatent(8, num_heads=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.conv(images).flatten(2).transpose(1, 2))


def test_a_single_attention_that_pools() -> None:
    model = seeded(lambda: nn.Sequential(Pooled(), nn.Linear(8, 4)))
    assert last_feature_layer(model, noise(1, 3, 64, 96)) == "0.conv"


class Wrapped(nn.Module):
    """A model of another library within one's own: the inner one's output has no positions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.prepare = nn.BatchNorm2d(3)
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.prepare(images)) * 2


@pytest.mark.parametrize("name", ["resnet", "siglip", "cait", "efficientnet"])
def test_within_a_model_that_wraps_it(name: str) -> None:
    assert last_feature_layer(Wrapped(build_other(name)).eval(), noise(1, 3, 64, 64)) == (
        f"inner.{EXPECTED[name][0]}"
    )


class TestUsable:
    def test_each_can_be_traced_and_explained(self) -> None:
        model, images = build("dinov2 with registers"), noise(1, 3, *SIZE)
        features = Features(model, images)
        found = features.usable()
        paths = [one.path for one in found]
        assert paths == [one.path for one in features.found if one.path in paths]
        assert {"patch_embed", "blocks.0", "blocks.1.attn.qkv", "blocks.2.norm1"} <= set(paths)
        # What only a class token reads is left out, and so is what has no positions.
        assert not {"blocks.2", "norm", "head", "blocks.2.mlp"} & set(paths)
        network = Network(model, CPU)
        passed = network.trace(images, paths)
        assert {one.path: one.shape for one in found} == {
            path: tuple(leaf.shape[1:]) for path, leaf in passed.leaves.items()
        }
        assert {one.shape[1:] for one in found} == {(4, 6)}

    def test_a_module_that_runs_twice_is_left_out(self) -> None:
        class Twice(TinyNet):
            def forward(self, images: Tensor) -> Tensor:
                relu = self.features[2]
                return self.fc(self.pool(relu(self.features(images))).flatten(1))

        features = Features(seeded(lambda: Twice(5)), noise(1, 3, 64, 96))
        assert [one.path for one in features.usable()] == [
            "features.0", "features.1", "features.3", "features.4", "features.5", "features",
        ]  # fmt: skip


def test_nothing_is_left_on_the_model() -> None:
    model = build_other("siglip")
    Features(model, noise(1, 3, 64, 64)).stages()
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert find_module(model, "norm") is model.norm


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_backbone_within_another_module(name: str) -> None:
    """What gives no positions and has all that does within it is no pooling."""
    backbone = seeded(lambda: timm.create_model(name, num_classes=0))
    images = noise(2, 3, 160, 160)
    wrapped = seeded(lambda: nn.Sequential(backbone, nn.Linear(backbone.num_features, 5)))
    bare = last_feature_layer(seeded(lambda: timm.create_model(name)), images)
    assert bare is not None and last_feature_layer(wrapped, images) == f"0.{bare}"
