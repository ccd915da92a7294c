"""Small transformers of timm's families, with weights that make attention and logits far from flat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny import seeded
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

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
