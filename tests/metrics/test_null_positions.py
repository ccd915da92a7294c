"""Maps of networks that are blind to some positions: by hand, with skips, tokens and saliency methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Net
from subjects import Curved, Pooled, explained, pooled_or_curved, subject
from timm.models.vision_transformer import VisionTransformer
from tiny import Headed, noise, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from camkit.entries import METRICS, method
from camkit.metrics import Subject
from camkit.metrics.null_positions import half_masks, null_share
from camkit.network.trace import Trace

BY_HAND = torch.tensor([[[1.0, -2.0, 0.0], [3.0, -1.0, 1.0]], [[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]]])
MASK = torch.tensor([[[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]], [[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]])


def test_the_share_by_hand() -> None:
    """Of 1, 2, 0, 3, 1, 1 the first, third and fifth are null: 2 of 8, over one half."""
    assert null_share(BY_HAND, MASK).tolist() == [pytest.approx(2 / 8 / 0.5), 0]
    assert null_share(BY_HAND.relu(), MASK).tolist() == [pytest.approx(1 / 5 / 0.5), 0]
    assert null_share(-BY_HAND.relu(), 1 - MASK).tolist() == [
        pytest.approx(4 / 5 / 0.5),
        pytest.approx(1 / (4 / 6)),
    ]


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_constant_and_empty_maps_have_one(value: float) -> None:
    assert null_share(torch.full((2, 2, 3), value), MASK).tolist() == pytest.approx([1, 1])


def test_a_map_that_is_not_finite_is_an_empty_one() -> None:
    assert null_share(torch.full((2, 2, 3), torch.nan), MASK).tolist() == [1, 1]


def masks(ids: list[str], seed: int = 0) -> tuple[Tensor, Tensor]:
    return half_masks(
        subject(noise(len(ids), 3, 2, 2), torch.zeros(len(ids), 2, 2), image_ids=ids, seed=seed), (3, 5)
    )


def test_the_masks_are_complementary_halves() -> None:
    first, second = masks(["a", "b"])
    assert (first + second == 1).all()
    assert first.flatten(1).sum(dim=1).tolist() == [7, 7]  # of 15
    assert not torch.equal(first[0], first[1])


def test_the_masks_belong_to_image_and_seed() -> None:
    both = masks(["a", "b"])
    for one, alone in zip(both, masks(["b"]), strict=True):
        assert torch.equal(one[1:], alone)
    assert not torch.equal(both[0], masks(["a", "b"], seed=1)[0])


def null(one: Subject) -> dict[str, Tensor]:
    return METRICS["null"].function(one)


IMAGES = noise(2, 3, 16, 24)


@pytest.mark.parametrize("head", [Pooled, Curved])
def test_hirescam_obeys_and_gradcam_does_not(head: type[nn.Module]) -> None:
    hires, grad = (
        null(one) for one in explained(pooled_or_curved(head), IMAGES, "features", ("hirescam", "gradcam"))
    )
    for name in ("null_share", "null_share_positive"):
        assert hires[name].tolist() == [0, 0]
        assert (grad[name] > 0.1).all()


def test_gradcam_by_hand() -> None:
    """Behind global average pooling each mask halves every weight: the map ignores it."""
    model = pooled_or_curved(Pooled)
    (one,) = explained(model, IMAGES, "features", "gradcam", target=[1, 3])
    activation = model.features(IMAGES)
    maps = (model.head.fc.weight[[1, 3]][:, :, None, None] * activation).sum(dim=1)
    expected = torch.stack([null_share(maps, mask) for mask in half_masks(one, (2, 3))]).mean(dim=0)
    torch.testing.assert_close(null(one)["null_share"], expected)
    positive = torch.stack([null_share(maps.relu(), mask) for mask in half_masks(one, (2, 3))]).mean(dim=0)
    torch.testing.assert_close(null(one)["null_share_positive"], positive)


def test_the_network_is_blind_and_only_there() -> None:
    """The logits are those of the masked activation, what is traced is the whole one."""
    model = pooled_or_curved(Curved)
    seen: list[Tensor] = []

    @method("kept")
    def kept(trace: Trace) -> Tensor:
        seen.extend([trace.logits, trace.activation])
        return trace.activation.sum(dim=1)

    (one,) = explained(model, IMAGES, "features", "kept")
    mask = half_masks(one, (2, 3))[0]
    seen.clear()
    null(one)
    activation = model.features(IMAGES)
    torch.testing.assert_close(seen[1], activation)
    torch.testing.assert_close(seen[0], model.head(activation * mask))
    torch.testing.assert_close(model(IMAGES), model.head(activation))  # no hook is left


def test_a_skip_passes_the_mask_by() -> None:
    """Of a residual block the layer's own positions alone become null."""
    model = seeded(Net)
    images = noise(2, 3, 6, 8)
    hires, grad = (null(one) for one in explained(model, images, "block.second", ("hirescam", "gradcam")))
    assert hires["null_share"].tolist() == [0, 0]
    assert (grad["null_share"] > 0.1).all()


def vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=(24, 32), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5, reg_tokens=2
    )  # fmt: skip


def test_tokens_without_a_position_are_no_null_positions() -> None:
    """A class token and two registers stand before 3 x 4 patches."""
    model = seeded(vit)
    images = noise(2, 3, 24, 32)
    (one,) = explained(model, images, "blocks.0", "hirescam")
    assert one.layer_grid == (3, 4)
    mask = half_masks(one, one.layer_grid)[0]
    found = []
    one.explain_behind("blind", lambda maps: found.append(maps) or maps * mask)
    assert {maps.shape for maps in found} == {(2, 16, 3, 4)}
    assert null(one)["null_share"].max() < 1e-6

    def blind(module: nn.Module, _: Any, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :3], tokens[:, 3:] * mask.flatten(1)[:, :, None]], dim=1)

    with torch.no_grad():
        handle = model.blocks[0].register_forward_hook(blind)
        expected = model(images)
        handle.remove()
    logits = []

    @method("logits")
    def seen(trace: Trace) -> Tensor:
        logits.append(trace.logits)
        return trace.activation.sum(dim=1)

    (one,) = explained(model, images, "blocks.0", "logits")
    null(one)
    torch.testing.assert_close(logits[1], expected, atol=1e-5, rtol=1e-4)


def test_a_saliency_method_of_a_layer_is_averaged_over_its_cells() -> None:
    one, changed = explained(pooled_or_curved(Curved), IMAGES, "features", ("hirescam", "hirescam~sqrt"))
    shares = []
    for number, mask in enumerate(half_masks(one, (2, 3))):
        _, saliency = one.explain_behind(f"null {number}", lambda maps, mask=mask: maps * mask)
        cells = saliency.sqrt().view(2, 2, 8, 3, 8).mean(dim=(2, 4))
        shares.append(null_share(cells, mask))
    expected = torch.stack(shares).mean(dim=0)
    found = null(changed)
    torch.testing.assert_close(found["null_share"], expected)
    torch.testing.assert_close(found["null_share_positive"], expected)
    assert (expected > 0.01).all()  # the resize spreads it


@pytest.mark.parametrize("name", ["flat", "edges", "fullgrad", "blocks-8"])
def test_methods_without_a_layer_have_no_value(name: str) -> None:
    (one,) = explained(pooled_or_curved(Pooled), IMAGES, "features", name)
    found = null(one)
    assert found["null_share"].isnan().all()
    assert found["null_share_positive"].isnan().all()
    assert not found["empty_null_map"].any()


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_empty_maps_score_chance_and_are_counted(value: float) -> None:
    @method("nowhere")
    def nowhere(trace: Trace) -> Tensor:
        return torch.full_like(trace.activation[:, 0], value)

    (one,) = explained(pooled_or_curved(Pooled), IMAGES, "features", "nowhere")
    found = null(one)
    assert found["null_share_positive"].tolist() == [1, 1]
    assert found["null_share"].tolist() == [1, 1]
    assert found["empty_null_map"].tolist() == [True, True]


def test_the_passes_are_shared() -> None:
    """Two traced passes for all methods, besides the one that explains."""
    model = pooled_or_curved(Pooled)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    several = explained(model, IMAGES, "features", ("hirescam", "gradcam", "layercam"))
    passes.clear()
    for one in several:
        null(one)
    assert len(passes) == 2


def test_the_mask_lies_on_the_layers_grid_whatever_the_image() -> None:
    """An odd grid: of 15 positions 7 are seen, then 8; a constant map still has 1."""

    @method("constant")
    def constant(trace: Trace) -> Tensor:
        return torch.ones_like(trace.activation[:, 0])

    model = Headed(nn.Conv2d(3, 6, 8, stride=8), lambda maps: F.adaptive_avg_pool2d(maps, 1).flatten(1))
    (one,) = explained(model, noise(2, 3, 24, 40), "features", "constant")
    assert null(one)["null_share"].tolist() == pytest.approx([1, 1])
