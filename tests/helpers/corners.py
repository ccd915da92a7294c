"""A network that sees colours, and photos of them: where in a mosaic its evidence lies is known."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

MODEL, FIXED = "timm/camkit_corners", "timm/camkit_corners_fixed"
FOLDER = "timm__camkit_corners"
CORNERS = torch.tensor(list(product((-1.0, 1.0), repeat=3)))  # (classes, RGB) of normalised pixels
SIDE, CELL = 32, 8


class Corners(nn.Module):
    """Class k is the share of positions that have its colour, times 10: nothing else counts.

    Args:
        side: of the images that it takes; None: any.
    """

    def __init__(self, side: int | None = None) -> None:
        super().__init__()
        self.side = side
        self.features = nn.Sequential(nn.Conv2d(3, len(CORNERS), 1), nn.ReLU(), nn.AvgPool2d(CELL))
        with torch.no_grad():
            self.features[0].weight.copy_(CORNERS[:, :, None, None])
            self.features[0].bias.fill_(-2)  # a corner's own product is 3, its neighbours' is 1
        self.num_classes = len(CORNERS)

    def forward(self, images: Tensor) -> Tensor:
        if self.side is not None and images.shape[2] != self.side:
            raise ValueError(f"expected {self.side} pixels")
        return 10 * self.features(images).mean(dim=(2, 3))


def _build(side: int | None) -> Corners:
    model = Corners(side)
    model.pretrained_cfg = {
        "input_size": (3, SIDE, SIDE), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear", "crop_pct": 1.0,
    }  # fmt: skip
    return model


if not timm.is_model("camkit_corners"):

    @register_model
    def camkit_corners(pretrained: bool = False, **_: Any) -> Corners:
        return _build(None)

    @register_model
    def camkit_corners_fixed(pretrained: bool = False, **_: Any) -> Corners:
        return _build(SIDE)


CORNER_RUN: dict[str, Any] = {  # options of a run over mosaics of such photos
    "model": (MODEL,),
    "weights": "random",
    "preprocess": "native",
    "layer": ("features",),
    "utility": ("logit",),
    "device": "cpu",
    "steps": 4,
    "batch_size": 8,
}


def write_colours(path: Path, first: int, second: int | None = None, share: float = 1.0) -> Path:
    """A photo of one colour, or, from top to bottom, of two."""
    rows = round(share * SIDE)
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:rows] = 127.5 * (CORNERS[first].numpy() + 1)
    pixels[rows:] = 127.5 * (CORNERS[first if second is None else second].numpy() + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def colour_photos(folder: Path) -> Path:
    """Two photos of each of eight colours; `grey.png` is of no class, `doubtful.png` half of two."""
    for number in range(16):
        write_colours(folder / f"c{number % 8}_{number // 8}.png", number % 8)
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(folder / "grey.png")
    write_colours(folder / "doubtful.png", 0, 1, 0.5)
    return folder
