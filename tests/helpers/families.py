"""Small transformers of timm's families, with weights that make attention and logits far from flat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from timm.models import register_model
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.mlp_mixer import MlpMixer
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.volo import VOLO
from timm.models.xcit import Xcit
from tiny import seeded
from torch import nn
from torchvision.models.resnet import BasicBlock

from camkit.network.random import fill_classifier

SIZE, GRID = (32, 48), (4, 6)  # of images and of tokens: not square
COMMON = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**COMMON),
    "deit": lambda: VisionTransformerDistilled(**COMMON),
    "beit": lambda: Beit(**COMMON, use_rel_pos_bias=True, init_values=0.3),
    "eva": lambda: Eva(**COMMON, use_rot_pos_emb=True, swiglu_mlp=True, global_pool="token"),
    "dinov2 with registers": lambda: VisionTransformer(
        **COMMON, reg_tokens=4, no_embed_class=True, init_values=0.3, act_layer="gelu"
    ),
}
PREFIX = {"vit": 1, "deit": 2, "beit": 1, "eva": 1, "dinov2 with registers": 5}
# The tokens that the logits are read from: class, distillation, or all that have a position.
READ = {"vit": slice(0, 1), "deit": slice(0, 2), "beit": slice(1, None), "eva": slice(0, 1)}
READ["dinov2 with registers"] = slice(0, 1)


def build(family: str, seed: int = 0) -> nn.Module:
    """A model of a family in eval mode."""
    return seeded(lambda: _strong(FAMILIES[family]()), seed)


def _strong(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "relative" not in name:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[1] ** 0.5)
            elif "relative" in name or name.endswith(("token", "tokens")):
                parameter.copy_(torch.randn_like(parameter))
    return model


@register_model
def camkit_tiny_vit(pretrained: bool = False, **_: Any) -> nn.Module:
    """So that `timm/camkit_tiny_vit` names it; its native images are 32x48."""
    model = build("vit")
    model.pretrained_cfg = {
        "input_size": (3, *SIZE), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3),
        "interpolation": "bilinear", "crop_pct": 1.0,
    }  # fmt: skip
    return model


SMALL: dict[str, Any] = {"img_size": 64, "num_classes": 5}
# Models that have no attention between all tokens, or another one behind it; images of 64x64.
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: SwinTransformer(
        **SMALL, patch_size=4, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 4)
    ),
    "volo": lambda: VOLO(
        (2, 1, 1, 2), **SMALL, embed_dims=(24, 48, 48, 48), num_heads=(2, 4, 4, 4), mlp_ratio=2.0
    ),
    "siglip": lambda: VisionTransformer(
        **SMALL, patch_size=16, embed_dim=24, depth=3, num_heads=3, class_token=False, global_pool="map"
    ),
    "cait": lambda: Cait(**SMALL, patch_size=16, embed_dim=24, depth=3, num_heads=3),
    "xcit": lambda: Xcit(**SMALL, patch_size=16, embed_dim=24, depth=3, num_heads=3),
    "mixer": lambda: MlpMixer(**SMALL, patch_size=16, num_blocks=3, embed_dim=24),
    "hiera": lambda: Hiera(**SMALL | {"img_size": (64, 64)}, embed_dim=8, num_heads=1, stages=(1, 1, 2, 1)),
    "pit": lambda: PoolingVisionTransformer(
        **SMALL, patch_size=16, stride=8, base_dims=(8, 8), depth=(2, 2), heads=(2, 4), mlp_ratio=2
    ),
    "convnext": lambda: ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=5),
    "resnet": lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(64, 16, 3, 3, 24, 48, num_classes=5),
    "torchvision swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 12, [1, 2], [2, 4], [4, 4], num_classes=5
    ),
}


def build_other(name: str) -> nn.Module:
    """One of :data:`OTHERS` in eval mode; classifiers that begin at zero are filled."""
    model = seeded(OTHERS[name])
    fill_classifier(model, 0)
    return model
