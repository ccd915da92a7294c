"""CLIP's image tower and a few prompts as a classifier: the logit of a class is its prompt's similarity.

pip install open_clip_torch
camkit explain photo.jpg --model clip-prompts --plugin examples/clip_prompts.py --method gradcam \
    --classes examples/clip_prompts.txt -o photo.png
"""

import os
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from camkit import model

NAME = os.environ.get("CLIP_MODEL", "RN50")  # open_clip.list_models()
WEIGHTS = os.environ.get("CLIP_WEIGHTS", "openai")  # open_clip.list_pretrained()
# The classes, a name per line, in the order of the class indices.
CLASSES = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n")
PROMPTS = [f"a photo of a {name}" for name in CLASSES if name]
SIZE = open_clip.get_model_config(NAME)["vision_cfg"]["image_size"]


@model("clip-prompts", size=SIZE, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
def clip_prompts(pretrained: bool) -> nn.Module:
    clip = open_clip.create_model(NAME, pretrained=WEIGHTS if pretrained else None, force_quick_gelu=True)
    return Prompted(clip)


class Prompted(nn.Module):
    """The image tower, and the embeddings of the prompts as its classifier."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        clip = clip.eval().float()
        with torch.no_grad():
            texts = clip.encode_text(open_clip.get_tokenizer(NAME)(PROMPTS), normalize=True)
            weight = clip.logit_scale.exp() * texts
        self.visual = clip.visual
        self.register_buffer("weight", weight)  # (classes, D)

    def forward(self, images: Tensor) -> Tensor:
        embedded = self.visual(images)
        return nn.functional.normalize(embedded, dim=-1) @ self.weight.T
