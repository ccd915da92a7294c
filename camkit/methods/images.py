"""Methods that change the image and see no layer: saliency maps (B, H, W) in [0, 1], for any utility."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import Method, family, method
from camkit.methods.saliency import min_max
from camkit.network.seeding import generator
from camkit.network.trace import PixelView

CELLS, KEPT, PUBLISHED_MASKS = 7, 0.5, 4000  # of RISE: cells a side, their probability, masks for VGG16
WINDOWS_A_SIDE = 8  # of occlusion: the shorter side of the image in windows


def rise(view: PixelView, masks: int) -> Tensor:
    """Mean over random masks M of u(x M) M / 0.5, scaled to [0, 1] (1806.07421, eq. 6): one pass per mask."""
    total = torch.zeros_like(view.images[:, 0])
    for mask in random_masks(view, masks):
        total += view.utility_of(view.images * mask[:, None])[:, None, None] * mask
    return min_max(total / (masks * KEPT))


def random_masks(view: PixelView, count: int) -> Iterator[Tensor]:
    """RISE's masks, (B, H, W) in [0, 1], drawn by (seed, image id, draw): an image has its own.

    7x7 cells are kept with probability 0.5, resized (bilinear) to 8x8 cells of ceil(H / 7) x ceil(W / 7)
    pixels, and cut at a random place of the first cell (1806.07421, 3.3).
    """
    height, width = view.images.shape[2:]
    cell = (math.ceil(height / CELLS), math.ceil(width / CELLS))
    size = [(CELLS + 1) * side for side in cell]
    streams = [generator(view.seed, name, view.draw, "rise") for name in view.image_ids]
    for _ in range(count):
        grids = torch.stack([torch.rand(CELLS, CELLS, generator=stream) < KEPT for stream in streams])
        places = [[int(torch.randint(side, (), generator=stream)) for side in cell] for stream in streams]
        cells = grids[:, None].to(view.images)
        whole = F.interpolate(cells, size, mode="bilinear", align_corners=False)[:, 0]
        yield torch.stack(
            [
                one[top : top + height, left : left + width]
                for one, (top, left) in zip(whole, places, strict=True)
            ]
        )


@family(r"rise(?:-([1-9][0-9]*))?", form="rise-N", listed=("rise",))
def find_rise(name: str, masks: str | None) -> Method:
    """`rise-N`: RISE with N masks; `rise`: with the 4000 that the paper takes for VGG16."""
    count = int(masks) if masks else PUBLISHED_MASKS
    return Method(
        name,
        partial(rise, masks=count),
        f"RISE-{masks}" if masks else "RISE",
        ("perturbation",),
        "arXiv 1806.07421, eq. 6",
        saliency=True,
        of_pixels=True,
        uses=("passes",),
        cost=f"{count} passes",
    )


@method(
    "occlusion",
    title="Occlusion",
    groups=("perturbation",),
    source="Zeiler and Fergus, ECCV 2014 (1311.2901)",
    saliency=True,
    of_pixels=True,
    uses=("passes",),
    cost="226 passes (square)",
)
def occlusion(view: PixelView) -> Tensor:
    """Mean of u(x) - u(x with a window of 0) over the windows that cover a pixel; ReLU, scaled to [0, 1].

    The window is square, an eighth of the image's shorter side, and moves by half of its side: 15x15 windows
    of a square image, those of the last row and column cut at the image's edge. 0 is the mean colour.
    """
    everything = view.utility_of(view.images)
    total, count = torch.zeros_like(view.images[:, 0]), torch.zeros_like(view.images[0, 0])
    for rows, columns in windows(view.images.shape[2], view.images.shape[3]):
        covered = view.images.clone()
        covered[:, :, rows, columns] = 0
        total[:, rows, columns] += (everything - view.utility_of(covered))[:, None, None]
        count[rows, columns] += 1
    return min_max((total / count).relu())


def windows(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the windows of occlusion, in raster order."""
    side = max(2, round(min(height, width) / WINDOWS_A_SIDE))
    step = side // 2
    for top in range(0, max(height - side, 0) + step, step):
        for left in range(0, max(width - side, 0) + step, step):
            yield slice(top, top + side), slice(left, left + side)
