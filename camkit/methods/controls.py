"""Controls: maps that explain nothing. A score on which one of them wins says nothing there.

All but `randomcam` are saliency maps as they stand, (B, H, W) in [0, 1]; of these only `edges` sees the
image. `region` and `drops-N` are no members but the other end: what a map can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import Method, family, method
from camkit.errors import CamkitError
from camkit.methods.saliency import min_max
from camkit.network.seeding import generator
from camkit.network.trace import ImageView, Trace
from camkit.network.transfer import sent

CENTRE_SIGMA = 60 / 224  # standard deviation of `centre`, in image sides
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, as PIL's mode L


def _constant(images: Tensor, value: float) -> Tensor:
    return torch.full_like(images[:, 0], value, memory_format=torch.contiguous_format)


@method(
    "flat",
    title="Flat",
    groups=("controls",),
    source="control: constant 0.3",
    cost="0",
    saliency=True,
    of_image=True,
    blind=True,
)
def flat(view: ImageView) -> Tensor:
    """0.3 everywhere, the first pixel 0, the second 1."""
    saliency = _constant(view.images, 0.3)
    saliency[:, 0, 0], saliency[:, 0, 1] = 0, 1
    return saliency


@method(
    "fake-cam",
    title="Fake-CAM",
    groups=("controls",),
    source="Poppi et al., CVPRW 2021",
    cost="0",
    saliency=True,
    of_image=True,
    blind=True,
)
def fake_cam(view: ImageView) -> Tensor:
    """1 everywhere, the first pixel 0."""
    saliency = _constant(view.images, 1)
    saliency[:, 0, 0] = 0
    return saliency


@method(
    "centre",
    title="Centre",
    groups=("controls",),
    source="control: Gaussian, sigma 60 px at 224",
    cost="0",
    saliency=True,
    of_image=True,
    blind=True,
)
def centre(view: ImageView) -> Tensor:
    """Gaussian about the middle of the image, scaled to [0, 1]."""
    images = view.images
    height, width = images.shape[2:]
    y, x = (torch.arange(n, device=images.device, dtype=images.dtype) - (n - 1) / 2 for n in (height, width))
    sigma_y, sigma_x = CENTRE_SIGMA * height, CENTRE_SIGMA * width
    gaussian = torch.exp(-((y / sigma_y) ** 2)[:, None] / 2 - ((x / sigma_x) ** 2)[None] / 2)
    return min_max(gaussian[None]).expand(len(images), height, width)


@method(
    "edges",
    title="Edges",
    groups=("controls",),
    source="control: Sobel magnitude",
    cost="0",
    saliency=True,
    of_image=True,
)
def edges(view: ImageView) -> Tensor:
    """Sobel magnitude of the grey image (luma of the pixels, edge pixels repeated), scaled to [0, 1]."""
    pixels = view.pixels()
    grey = (pixels * pixels.new_tensor(GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    sobel = pixels.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([sobel, sobel.T])[:, None]  # (2, 1, 3, 3)
    return min_max(F.conv2d(padded, kernels).square().sum(dim=1).sqrt())


def _uniform(seed: int, image_id: str, draw: int, channels: int) -> Tensor:
    """U(-1, 1) weights (C,), the same on every machine whatever the batch, order or process."""
    return torch.rand(channels, generator=generator(seed, image_id, draw)) * 2 - 1


@method(
    "randomcam",
    title="RandomCAM",
    groups=("paper", "controls"),
    source="control: random weights, as in arXiv 2501.06261",
    uses=("activation",),
    cost="0",
)
def randomcam(trace: Trace) -> Tensor:
    """Sum over channels of w A, w ~ U(-1, 1) per channel, drawn from (seed, image id, draw)."""
    activation = trace.activation
    weights = torch.stack(
        [_uniform(trace.seed, image_id, trace.draw, activation.shape[1]) for image_id in trace.image_ids]
    )
    weights = sent(weights.to(activation.dtype), activation.device)
    # Not a matrix product: its last bits depend on where in memory its operands lie.
    return (weights[:, :, None, None] * activation).sum(dim=1)


def blocks(view: ImageView, side: int) -> Tensor:
    """U(0, 1) noise, constant in blocks of `side` pixels, scaled to [0, 1]: the same of a changed image."""
    height, width = view.images.shape[2:]
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    noise = torch.stack(
        [
            torch.rand(rows, columns, generator=generator(view.seed, image, f"blocks {side}"))
            for image in view.image_ids
        ]
    ).to(view.images)
    whole = noise.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return min_max(whole[:, :height, :width])


@family(r"blocks-([1-9][0-9]*)", form="blocks-N", listed=("blocks-8", "blocks-16"))
def find_blocks(name: str, side: str) -> Method:
    """`blocks-N`: noise in blocks of N pixels."""
    return Method(
        name,
        partial(blocks, side=int(side)),
        f"Blocks-{side}",
        ("controls",),
        "control: noise in blocks",
        cost="0",
        saliency=True,
        of_image=True,
    )


def patch_slices(height: int, width: int, patches: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the patches of a grid, in raster order.

    Raises:
        CamkitError: there are more patches along a side than pixels.
    """
    if patches > min(height, width):
        raise CamkitError(
            f"{patches} patches along a side of {min(height, width)} pixels: take fewer (--grid N, drops-N)"
        )
    for row in range(patches):
        for column in range(patches):
            yield (
                slice(row * height // patches, (row + 1) * height // patches),
                slice(column * width // patches, (column + 1) * width // patches),
            )


def patch_drops(images: Tensor, patches: int, logit: Callable[[Tensor], Tensor]) -> Tensor:
    """Loss of y_c when one patch of a grid is set to 0, (B, patches^2), raster order."""
    drops = []
    for rows, columns in patch_slices(images.shape[2], images.shape[3], patches):
        kept = images.clone()
        kept[:, :, rows, columns] = 0
        drops.append(logit(kept))
    return logit(images)[:, None] - torch.stack(drops, dim=1)


def drops(view: ImageView, patches: int) -> Tensor:
    """Each patch's loss of y_c when it alone is set to 0, scaled to [0, 1]; a pass per patch and one more."""
    height, width = view.images.shape[2:]
    losses = patch_drops(view.images, patches, view.logit)
    painted = torch.zeros_like(view.images[:, 0])
    for loss, (rows, columns) in zip(losses.T, patch_slices(height, width, patches), strict=True):
        painted[:, rows, columns] = loss[:, None, None]
    return min_max(painted)


@family(r"drops-([2-9]|[1-9][0-9]+)", form="drops-N", listed=("drops-4", "drops-7"))
def find_drops(name: str, patches: str) -> Method:
    """`drops-N`: the order of single drops of NxN patches, what deletion and the like can attain."""
    return Method(
        name,
        partial(drops, patches=int(patches)),
        f"Drops-{patches}",
        ("ceilings", "perturbation"),
        "positive control: loss of the logit, one patch removed at a time",
        cost=f"{int(patches) ** 2 + 1} passes",
        saliency=True,
        of_image=True,
        uses=("passes",),
    )


@method(
    "region",
    title="Region",
    groups=("ceilings",),
    source="positive control: the region of the class itself",
    uses=("activation", "regions"),
    cost="0",
)
def region(trace: Trace) -> Tensor:
    """Share of each position's cell that lies in the region of the target class: what localisation can reach.

    0 everywhere in images whose region is not known.
    """
    assert trace.regions is not None  # it uses them
    height, width = trace.activation.shape[2:]
    return F.adaptive_avg_pool2d(trace.regions[:, None].to(trace.activation), (height, width))[:, 0]
