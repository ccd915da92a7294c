"""Attention, rollout, gradient rollout and LeGrad, against their papers' formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, GRID, PREFIX, READ, SIZE, build
from tiny import last_feature_layer, maps, noise, trace
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.entries import METHODS
from camkit.errors import CamkitError

METHOD_NAMES = ("attention", "rollout", "gradient-rollout", "legrad")
UTILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda y: y,
    "rest": lambda y: y + y.log_softmax(1),
}
TARGET = (3, 5)


@dataclass
class Pass:
    """One pass in float64 without fused attention: what hooks on timm's own modules see."""

    logits: Tensor
    attention: list[Tensor]
    tokens: list[Tensor]
    model: nn.Module


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def independent(model: nn.Module, images: Tensor) -> Pass:
    model = copy.deepcopy(model).double()
    attention: list[Tensor] = []
    tokens: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        # The dropout is the first to see what the softmax gives; a view of it has the same values.
        block.attn.attn_drop.register_forward_hook(
            lambda _, given, __: attention.append(given[0]) or given[0]
        )
        block.register_forward_hook(lambda _, __, output: tokens.append(output))
    return Pass(model(images.double()), attention, tokens, model)


def of_target(values: Tensor) -> Tensor:
    return values[torch.arange(len(values)), torch.tensor(TARGET)].sum()


def expected_attention(_: str, seen: Pass, __: str) -> Tensor:
    return seen.attention[-1].mean(dim=1)


def expected_rollout(_: str, seen: Pass, __: str) -> Tensor:
    rolled = torch.eye(seen.attention[0].shape[2], dtype=torch.float64)
    for weights in seen.attention:
        mixed = weights.mean(dim=1) / 2 + torch.eye(weights.shape[2]) / 2
        rolled = (mixed / mixed.sum(dim=2, keepdim=True)) @ rolled
    return rolled


def expected_gradient_rollout(_: str, seen: Pass, utility: str) -> Tensor:
    value = of_target(UTILITIES[utility](seen.logits))
    relevance = torch.eye(seen.attention[0].shape[2], dtype=torch.float64).expand(2, -1, -1)
    for weights in seen.attention:
        (gradient,) = torch.autograd.grad(value, weights, retain_graph=True)
        relevance = relevance + (gradient * weights).clamp(min=0).mean(dim=1) @ relevance
    return relevance


def read(family: str, model: nn.Module, token: Tensor) -> Tensor:
    """Logits of what a family's classifier makes of one token (B, C)."""
    if family == "deit":
        token = model.norm(token)
        return (model.head(token) + model.head_dist(token)) / 2
    return model.head((model.fc_norm if family == "beit" else model.norm)(token))


def expected_legrad(family: str, seen: Pass, utility: str) -> Tensor:
    layers = []
    for weights, tokens in zip(seen.attention, seen.tokens, strict=True):
        logits = read(family, seen.model, tokens.mean(dim=1))
        (gradient,) = torch.autograd.grad(of_target(UTILITIES[utility](logits)), weights, retain_graph=True)
        layers.append(gradient.clamp(min=0).mean(dim=(1, 2)))
    return torch.stack(layers).mean(dim=0)


EXPECTED = {
    "attention": expected_attention,
    "rollout": expected_rollout,
    "gradient-rollout": expected_gradient_rollout,
    "legrad": expected_legrad,
}


def close(ours: Tensor, oracles: Tensor) -> None:
    scale = oracles.abs().max()
    assert oracles.std() > 1e-3 * scale > 0
    torch.testing.assert_close(ours.double() / scale, oracles.detach() / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_as_the_paper_says(family: str, method: str, utility: str) -> None:
    model, images = build(family), noise(2, 3, *SIZE)
    seen = independent(model, images)
    traced = trace(model, images, "blocks.1", utility, TARGET, uses=("attention",))
    values = EXPECTED[method](family, seen, utility)  # (B, N, N) of pairs, or (B, N)
    if values.ndim == 3:
        values = values[:, READ[family]].mean(dim=1)
    expected = values[:, PREFIX[family] :].reshape(2, *GRID)
    found = maps(method, traced)
    assert found.shape == (2, *GRID)
    close(found, expected)


def test_one_image_as_among_others(family: str) -> None:
    model, images = build(family), noise(3, 3, *SIZE)
    together = trace(model, images, "blocks.1", target=(1, 2, 3), uses=("attention",))
    alone = trace(model, images[1:2], "blocks.1", target=(2,), uses=("attention",))
    for method in METHOD_NAMES:
        found, expected = maps(method, alone)[0], maps(method, together)[1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_whatever_the_layer_and_whether_attention_is_fused(family: str) -> None:
    model, images = build(family), noise(2, 3, *SIZE)
    layers = ("blocks.0", "blocks.1", last_feature_layer(model, images), "blocks.0+blocks.1")
    made = []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        for layer in layers:
            traced = trace(model, images, layer, target=TARGET, uses=("attention",))
            made.append([maps(method, traced) for method in METHOD_NAMES])
    for others in made[1:]:
        for found, expected in zip(others, made[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_maps_of_an_image_depend_on_the_image_and_of_two_methods_on_its_class() -> None:
    model, images = build("vit"), noise(1, 3, *SIZE)
    first, second = (trace(model, images, "blocks.1", target=(c,), uses=("attention",)) for c in (0, 1))
    changed = {name: not torch.equal(maps(name, first), maps(name, second)) for name in METHOD_NAMES}
    assert changed == {"attention": False, "rollout": False, "gradient-rollout": True, "legrad": True}


def test_passes() -> None:
    """Attention comes with the pass; LeGrad runs what follows the last block once per block."""
    model, images = build("vit"), noise(2, 3, *SIZE)
    traced = trace(model, images, "blocks.1", uses=("attention",))
    network = traced.network
    before = network.passes, network.head_passes
    for method in ("attention", "rollout", "gradient-rollout"):
        maps(method, traced)
    assert (network.passes, network.head_passes) == before
    maps("legrad", traced)
    assert (network.passes, network.head_passes) == (before[0] + 1, before[1] + 3)


def test_a_method_that_does_not_declare_it_has_no_attention() -> None:
    traced = trace(build("vit"), noise(1, 3, *SIZE), "blocks.1")
    with pytest.raises(CamkitError, match='uses=\\("attention",\\)'):
        _ = traced.attention


@pytest.mark.parametrize("family_name", ["vit", "beit"])
def test_attention_is_what_the_softmax_gives(family_name: str) -> None:
    """Rows of sum 1, and with them the layer's own output: by hand from its queries, keys and values."""
    model, images = build(family_name), noise(2, 3, *SIZE)
    kept: list[Tensor] = []
    model.blocks[2].attn.register_forward_hook(lambda _, given, output: kept.extend((given[0], output)))
    traced = trace(model, images, "blocks.1", uses=("attention",))
    attention, (given, output) = model.blocks[2].attn, kept[:2]
    for weights in traced.attention:
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(weights.shape[:3]))
    bias = attention.qkv.bias
    if family_name == "beit":
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    value = F.linear(given, attention.qkv.weight, bias)[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)
    mixed = (traced.attention[2] @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), output, rtol=1e-4, atol=1e-5)


def test_they_are_registered_as_what_they_are() -> None:
    for name in METHOD_NAMES:
        entry = METHODS[name]
        assert "attention" in entry.uses
        assert "transformer" in entry.groups
        assert not entry.of_one_layer
        assert ("cheap" in entry.groups) == (name != "legrad")
