"""Positions of a layer's output: grids of tokens and of channels last, and layers that have none."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny import last_feature_layer, noise

import camkit
import camkit.methods  # noqa: F401  (fills the registry)
from camkit.errors import UsageError
from camkit.network.passes import Network
from camkit.network.reshape import Positions

CPU = torch.device("cpu")


class TestGrids:
    """Sides and prefix come from the model and the images' proportions."""

    @pytest.mark.parametrize(
        ("name", "size", "layer", "grid"),
        [
            ("swin_tiny_patch4_window7_224", (224, 288), "norm", (7, 9)),
            ("vit_tiny_patch16_224", (240, 272), "norm", (15, 17)),
            ("vit_small_patch32_224", (224, 288), "norm", (7, 9)),
            ("vit_small_patch14_reg4_dinov2", (28, 28), "norm", (2, 2)),
            ("deit_tiny_distilled_patch16_224", (32, 48), "blocks.0", (2, 3)),
            ("mixer_s16_224", (224, 224), "norm", (14, 14)),
            ("hiera_tiny_224", (224, 224), "blocks.11", (7, 7)),
            ("convnext_atto", (96, 64), "stages.3", (3, 2)),
        ],
    )
    def test_of_real_architectures(
        self, name: str, size: tuple[int, int], layer: str, grid: tuple[int, int]
    ) -> None:
        options = {"img_size": size} if name.startswith(("vit", "swin", "deit")) else {}
        model = timm.create_model(name, num_classes=5, **options)
        assert tuple(Network(model, CPU).trace(noise(1, 3, *size), [layer]).leaves[layer].shape[2:]) == grid

    @pytest.mark.parametrize(
        ("name", "layer", "words"),
        [
            ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn.proj", "windows"),
            ("vit_tiny_patch16_224", "blocks.0.attn.q_norm", "no map"),
            ("nest_tiny", "levels.0.transformer_encoder.0", "no map"),
            ("hiera_tiny_224", "blocks.0", "no map"),
        ],
    )
    def test_of_layers_without_positions(self, name: str, layer: str, words: str) -> None:
        network = Network(timm.create_model(name, num_classes=5), CPU)
        with pytest.raises(UsageError, match=words):
            network.trace(noise(2, 3, 224, 224), [layer])

    def test_attention_weights_are_no_map(self) -> None:
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
        for block in model.blocks:
            block.attn.fused_attn = False
        network = Network(model, CPU)
        with pytest.raises(UsageError, match="none inside an attention"):
            network.trace(noise(1, 3, 224, 224), ["blocks.0.attn.attn_drop"])

    @pytest.mark.parametrize(
        ("size", "prefixes", "tokens", "grid"),
        [
            ((224, 288), (1, 0), 64, (7, 9)),  # not the class token for a patch of 8 x 8
            ((240, 272), (1, 0), 256, (15, 17)),
            ((224, 224), (5, 0), 9, (2, 2)),  # 4 registers and a class, not 3 x 3
            ((224, 224), (1, 0), 197, (14, 14)),
            ((224, 224), (0,), 196, (14, 14)),
            ((224, 224), (0,), 197, None),
            ((224, 224), (1, 0), 50, (7, 7)),
        ],
    )
    def test_of_token_counts(
        self, size: tuple[int, int], prefixes: tuple[int, ...], tokens: int, grid: tuple[int, int] | None
    ) -> None:
        positions = Positions(prefixes, None, 1, *size)
        output = noise(1, tokens, 3)
        reshape = positions.reshape(output)
        if grid is None:
            assert reshape is None
            return
        assert reshape is not None
        maps = reshape.to_map(output)
        assert tuple(maps.shape[2:]) == grid
        assert torch.equal(reshape.from_map(maps, output), output)

    def test_channels_last_of_images_that_are_not_square(self) -> None:
        output = noise(1, 7, 9, 768)
        reshape = Positions(batch=1, height=224, width=288).reshape(output)
        assert reshape is not None
        assert reshape.to_map(output).shape == (1, 768, 7, 9)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("volo_d1_224", "network.4"),  # aux_head gives class logits, post_network is class attention
        ("vit_base_patch16_siglip_224", "norm"),  # attn_pool.kv stands in the pooling
        ("cait_xxs24_224", "blocks"),  # attn.v stands in a class attention
        ("xcit_nano_12_p16_224", "blocks.11"),
        ("vit_tiny_patch16_224", "blocks.11.norm1"),
        ("coat_tiny", "parallel_blocks.5.norm14"),
    ],
)
def test_default_layers_are_the_last_blocks_tokens(name: str, layer: str) -> None:
    model = timm.create_model(name).eval().requires_grad_(False)
    assert last_feature_layer(model, noise(1, 3, 224, 224)) == layer
