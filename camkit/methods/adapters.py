"""Explainers of other packages as they are: `captum:NAME`, `grad_cam:NAME`, `torchcam:NAME`.

The packages are optional. Each explains the same utility of the same class as camkit's own methods, but runs
the network itself. Attributions to a layer (captum's Layer..., torchcam) are summed over channels into maps
(B, h, w). Attributions to pixels become saliency maps by one rule: absolute values summed over the colour
channels, then min-max. grad_cam's classes give saliency maps of their own making.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import UsageError
from camkit.layers import find_module, layout_of
from camkit.registry import Method, family, unknown_name
from camkit.saliency import min_max
from camkit.tracing import Trace


def _package(prefix: str, module: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{prefix}:NAME needs the package {install}: pip install {install}") from error


def _find(prefix: str, name: str, package: ModuleType, base: type) -> type:
    known = {
        key: value
        for key, value in vars(package).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    if name not in known:
        raise unknown_name(f"{prefix} class", name, known)
    return known[name]


def _map(attribution: Tensor) -> Tensor:
    """An attribution to a layer, in any layout, to a map (B, h, w)."""
    layout = layout_of(attribution)
    if layout is None:
        raise ValueError(f"an attribution of shape {tuple(attribution.shape)} has no positions")
    return layout.to_map(attribution).sum(dim=1).detach()


@family(r"captum:(\w+)", form="captum:NAME")
def find_captum(name: str, explainer: str) -> Method:
    """A class of captum.attr, called as it is by default."""
    package = _package("captum", "captum.attr", "captum")
    found = _find("captum", explainer, package, package.Attribution)
    of_layer = issubclass(found, package.LayerAttribution)
    function = partial(_captum_layer if of_layer else _captum_pixels, found)
    return Method(name, function, ("outside",), "captum", saliency=not of_layer, origin="captum")


def _captum_layer(explainer: Any, trace: Trace) -> Tensor:
    with torch.enable_grad():
        layer = find_module(trace.network.model, trace.layer)
        return _map(explainer(_utility(trace), layer).attribute(trace.images))


def _captum_pixels(explainer: Any, trace: Trace) -> Tensor:
    images = trace.images.detach().clone().requires_grad_()
    # Some of captum's classes hook the model's modules, and take nothing but a module.
    takes_module = "model" in inspect.signature(explainer).parameters
    with torch.enable_grad():
        explained = explainer(_AsModule(trace) if takes_module else _utility(trace))
        return min_max(explained.attribute(images).detach().abs().sum(dim=1))


def _utility(trace: Trace) -> Any:
    """Images (n, 3, H, W) to utilities (n,): n is a multiple of B where steps are stacked."""

    def utility(images: Tensor) -> Tensor:
        target = trace.target.repeat(len(images) // len(trace.target))
        return trace.utility(trace.network.model(images), target)

    return utility


class _AsModule(nn.Module):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.model = trace.network.model
        self.utility = _utility(trace)

    def forward(self, images: Tensor) -> Tensor:
        return self.utility(images)


@family(r"grad_cam:(\w+)", form="grad_cam:NAME")
def find_grad_cam(name: str, explainer: str) -> Method:
    """A class of pytorch-grad-cam, called as it is by default."""
    package = _package("grad_cam", "pytorch_grad_cam", "grad-cam")
    found = _find("grad_cam", explainer, package, package.base_cam.BaseCAM)
    function = partial(_grad_cam, found)
    return Method(name, function, ("outside",), "grad-cam", saliency=True, origin="grad-cam")


def _grad_cam(explainer: Any, trace: Trace) -> Tensor:
    def target(place: int) -> Any:
        return lambda logits: trace.utility(logits[None], trace.target[place : place + 1])[0]

    def reshape(output: Tensor) -> Tensor:
        layout = layout_of(output)
        return output if layout is None else layout.to_map(output)

    model = trace.network.model
    layers = [find_module(model, trace.layer)]
    images = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), explainer(model, layers, reshape_transform=reshape) as cam:
        saliency = cam(images, [target(place) for place in range(len(images))])
    return torch.as_tensor(saliency).to(trace.images)


@family(r"torchcam:(\w+)", form="torchcam:NAME")
def find_torchcam(name: str, explainer: str) -> Method:
    """A class of torchcam.methods, called as it is by default."""
    package = _package("torchcam", "torchcam.methods", "torchcam")
    base = importlib.import_module("torchcam.methods.core")._CAM
    found = _find("torchcam", explainer, package, base)
    return Method(name, partial(_torchcam, found), ("outside",), "torchcam", origin="torchcam")


def _torchcam(explainer: Any, trace: Trace) -> Tensor:
    model = trace.network.model
    layer = find_module(model, trace.layer)
    images = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), explainer(model, target_layer=layer) as extractor:
        logits = model(images)
        # What is differentiated is scores[i, class]: the utility of image i stands in every column.
        scores = trace.utility(logits, trace.target)[:, None].expand_as(logits)
        (maps,) = extractor(trace.target.tolist(), scores, normalized=False)
    return maps.detach()
