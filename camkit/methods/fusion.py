"""One map of several layers.

Layers differ in the size of their grids and in the scale of their values, so a sum of their signed maps means
nothing in general. Each map is turned into values in [0, 1] at the images' size first; the result is a
saliency map. `aumann-fusion` does add signed maps: each divides a difference of the utility, so their values
have its unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.entries import Method, method
from camkit.methods.aumann import aumann
from camkit.methods.gradient import gradcam_plus_plus, hirescam, layercam
from camkit.methods.saliency import min_max, to_saliency
from camkit.network.game import absent_activation
from camkit.network.layers import parts_of
from camkit.network.passes import Network
from camkit.network.trace import Trace

GAMMA = 2.0  # of LayerCAM's scaling
NODES = 2  # gradients on the path of each map that `aumann-fusion` adds


def fuse(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Saliency maps (B, H, W) of the signed maps (B, h, w) that one method gives at several layers.

    LayerCAM's rule (IEEE TIP 2021, eq. 9), for every method: M = max over layers of tanh(2 ReLU(m) / max m),
    each resized to the images (bilinear, half-pixel centres) before the maximum is taken; then min-max. A
    position counts where one of the layers finds it, and tanh lifts what is weaker than a layer's maximum:
    the fine grids of early layers have few strong positions. The maximum needs no weights between layers.

    A map with a value that is not finite makes its image 0 everywhere.
    """
    scaled = []
    finite = torch.ones(len(maps[0]), 1, 1, dtype=torch.bool, device=maps[0].device)
    for one in maps:
        finite = finite & one.isfinite().all(dim=(1, 2))[:, None, None]
        positive = one.relu()
        highest = positive.amax(dim=(1, 2), keepdim=True)
        scaled.append(torch.tanh(GAMMA * positive / highest.clamp(min=torch.finfo(one.dtype).tiny)))
    highest = torch.stack([_resized(one, size) for one in scaled]).amax(dim=0)
    return min_max(highest.where(finite, 0))


@cache
def at_layer(entry: Method, layer: str) -> Method:
    """The method as it is computed at a layer; at several (`layer3+layer4`) its maps are fused.

    See :func:`fuse`. Methods that are not of one layer stay as they are.
    """
    parts = parts_of(layer)
    if len(parts) == 1 or not entry.of_one_layer:
        return entry

    def lacks(network: Network, _: str) -> str:
        return next((why for part in parts if entry.lacks and (why := entry.lacks(network, part))), "")

    function = partial(_fused, entry.function)
    return replace(entry, function=function, saliency=True, value=False, lacks=lacks)


def _fused(function: Callable[[Trace], Tensor], trace: Trace) -> Tensor:
    return fuse([function(part) for part in trace.layers], _size(trace))


def lacks_stages(network: Network, layer: str) -> str:
    """Why there are no several layers to take the maps of, or ""."""
    if len(parts_of(layer)) > 1 or len(network.stages) > 1:
        return ""
    return "the model has not several stages whose ends have positions (name layers: --layer 'a+b')"


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _size(trace: Trace) -> tuple[int, int]:
    return trace.images.shape[2], trace.images.shape[3]


@method(
    "layercam-fusion",
    title="LayerCAM fusion",
    groups=("cheap",),
    source="LayerCAM, IEEE TIP 2021, eq. 9",
    uses=("activation", "gradient", "stages"),
    cost="1 grad per stage",
    saliency=True,
    lacks=lacks_stages,
)
def layercam_fusion(trace: Trace) -> Tensor:
    """Maximum over stages of tanh(2 M / max M), M the LayerCAM map at the end of a stage, after ReLU."""
    return fuse([layercam(stage) for stage in trace.stages], _size(trace))


@method(
    "refinecam",
    title="RefineCAM",
    groups=("cheap",),
    source="arXiv 2605.14641",
    uses=("activation", "gradient", "stages"),
    cost="1 grad per stage",
    saliency=True,
    lacks=lacks_stages,
)
def refinecam(trace: Trace) -> Tensor:
    """Product over stages of S, the saliency map in [0, 1] of GradCAM++ at the end of a stage; then min-max.

    A position counts where all stages find it.
    """
    product = torch.ones_like(trace.images[:, 0])
    for stage in trace.stages:
        product = product * to_saliency(gradcam_plus_plus(stage), _size(trace))
    return min_max(product)


def lacks_several_layers(_: Network, layer: str) -> str:
    """Why there are no layers to add, or ""."""
    return "" if len(parts_of(layer)) > 1 else "it adds the maps of several layers: --layer 'a+b'"


@method(
    "aumann-fusion",
    title="Aumann fusion",
    source="docs/fusion.md",
    uses=("activation", "gradient", "head", "layers"),
    cost=f"per layer as aumann-{NODES}",
    saliency=True,
    lacks=lacks_several_layers,
)
def aumann_fusion(trace: Trace) -> Tensor:
    """ReLU of HiResCAM at the last layer, times ReLU of the sum over layers of aumann-2; then min-max.

    The last layer is the one that is named last. An absent position has the blurred activation,
    whatever `--absent` says. Each map is made on its own grid and resized to the images (bilinear, half-
    pixel centres) before it is added or multiplied. What a coarse map multiplies keeps to its object, as
    in Guided Grad-CAM (1610.02391).
    """
    size = _size(trace)
    summands = [aumann(one, NODES, absent_activation(one.activation, "blur")) for one in trace.layers]
    total = torch.stack([_resized(one, size) for one in summands]).sum(dim=0)
    return to_saliency(total * _resized(hirescam(trace.layers[-1]), size).relu(), size)
