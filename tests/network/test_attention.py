"""Seeing the attention of a pass: what is left behind, and what a model's attention has to be."""

from __future__ import annotations

import pytest
import torch
from families import SIZE, build, build_other
from tiny import CPU, noise, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.entries import METHODS
from camkit.network.attention import attention_seen
from camkit.network.passes import Network

FUNCTIONS = (torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)


def untouched(model: nn.Module) -> bool:
    functions = (torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)
    same = all(one is before for one, before in zip(functions, FUNCTIONS, strict=True))
    return same and not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


class TestNothingIsLeft:
    def test_behind_a_pass(self) -> None:
        model = build("vit")
        Network(model, CPU).trace(noise(1, 3, *SIZE), ["blocks.1"], attention=True)
        assert untouched(model)

    def test_behind_an_exception(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = build("vit")

        def fail(*_: object, **__: object) -> None:
            assert not untouched(model)
            raise RuntimeError("broken")

        monkeypatch.setattr(model.blocks[1].mlp, "forward", fail)
        with pytest.raises(RuntimeError, match="broken"):
            Network(model, CPU).trace(noise(1, 3, *SIZE), ["blocks.2"], attention=True)
        assert untouched(model)

    def test_a_pass_without_attention_sees_none(self) -> None:
        assert Network(build("vit"), CPU).trace(noise(1, 3, *SIZE), ["blocks.1"]).attention is None


def test_the_logits_are_those_of_a_plain_pass() -> None:
    model, images = build("beit"), noise(2, 3, *SIZE)
    network = Network(model, CPU)
    traced = network.trace(images, ["blocks.1"], attention=True)
    torch.testing.assert_close(traced.logits.detach(), network.logits(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "added", "boolean"])
def test_fused_attention_is_the_formula_that_it_stands_for(mask: str) -> None:
    """Against PyTorch's own, with each kind of mask and a scale of its own."""
    query, key, value = noise(3, 2, 3, 5, 8)
    masks = {"none": None, "added": noise(1, 3, 5, 5, seed=1), "boolean": torch.ones(5, 5).tril().bool()}
    expected = F.scaled_dot_product_attention(query, key, value, masks[mask], scale=0.7)

    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(images[0], images[1], images[2], masks[mask], scale=0.7)

    model = nn.Sequential(Attention())
    with attention_seen(model, 2) as seen:
        found = model(torch.stack([query, key, value]))
    assert [one.module for one in seen] == ["0"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


REASONS = {
    "swin": "the attention of layers.0 is not between all tokens of an image",
    "volo": "the attention of network.0.0 is not between all tokens of an image",
    "xcit": "the attention of blocks.0 is not between all tokens of an image",
    "cait": "blocks_token_only.0 reads its tokens by another attention, of a single query",
    "siglip": "attn_pool reads its tokens by another attention, of a single query",
    "pit": "its blocks have different numbers of tokens",
    "mixer": "the model has no softmax attention between tokens",
    "resnet": "the model has no softmax attention between tokens",
}


@pytest.mark.parametrize("name", REASONS)
def test_other_models_are_refused_with_the_reason(name: str) -> None:
    network = Network(build_other(name), CPU)
    network.trace(noise(2, 3, 64, 64), [])
    passes = network.passes
    assert network.transformer.lack == REASONS[name]
    assert network.passes == passes  # what is found on noise is no pass of an image
    for method in ("attention", "rollout", "gradient-rollout", "legrad"):
        lacks = METHODS[method].lacks
        assert lacks is not None
        assert lacks(network, "") == REASONS[name]


def test_a_layer_whose_grid_is_not_that_of_the_tokens_is_refused() -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 2, stride=2)
            self.up = nn.Upsample(scale_factor=2)
            self.vit = build("vit")

        def forward(self, images: Tensor) -> Tensor:
            return self.vit(images + self.up(self.stem(images)))

    network = Network(seeded(Strided), CPU)
    network.trace(noise(1, 3, *SIZE), ["stem"])
    lacks = METHODS["rollout"].lacks
    assert lacks is not None
    assert lacks(network, "stem") == "stem has 16x24 positions, and the tokens have 4x6"
