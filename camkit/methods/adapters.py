"""Explainers of other packages as they are: `captum:NAME`, `grad_cam:NAME`, `torchcam:NAME`.

The packages are optional. Each explains the same utility of the same class as camkit's own methods, but runs
the network itself. Attributions to a layer (captum's Layer..., torchcam) are summed over channels into maps
(B, h, w). Attributions to pixels become saliency maps by one rule: absolute values summed over the colour
channels, then min-max. grad_cam's classes give saliency maps of their own making.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from camkit.entries import Method, family
from camkit.errors import UsageError
from camkit.methods.saliency import min_max
from camkit.network.layers import find_module, hooked
from camkit.network.reshape import find_reshape
from camkit.network.trace import Trace
from camkit.registry import unknown_name


def _package(prefix: str, module: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{prefix}:NAME needs the package {install}: pip install {install}") from error


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What an explainer can be given: the network and a layer when it is made, images when it explains.
GIVEN = {"self", "model", "forward_func", "layer", "target_layer", "target_layers", "inputs"}


def _lacks(explainer: type, call: str) -> list[str]:
    """What a class takes besides, in its constructor or its call, and has no default for."""
    parameters = [
        *inspect.signature(explainer).parameters.values(),
        *inspect.signature(getattr(explainer, call)).parameters.values(),
    ]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in VARIADIC]
    return [name for name in needed if name not in GIVEN]


def _find(prefix: str, name: str, package: ModuleType, base: type, call: str = "__init__") -> type:
    """The class of a package by its name.

    Args:
        call: the method that explains; a class without it is the base of others.

    Raises:
        UsageError: there is no such class, or it needs more than a model and a layer.
    """
    known = {
        key: value
        for key, value in vars(package).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base and hasattr(value, call)
    }
    if name not in known:
        able = [key for key, value in known.items() if not _lacks(value, call)]
        raise unknown_name(f"{prefix} class", name, able)
    lacking = _lacks(known[name], call)
    if lacking:
        raise UsageError(f"{prefix}:{name} needs more than a model and a layer: {', '.join(lacking)}")
    return known[name]


@contextmanager
def _layer(trace: Trace) -> Iterator[nn.Module]:
    """The traced layer; where its output is not (B, C, h, w), a module in its place whose output is."""
    layer = find_module(trace.network.model, trace.layer)
    shapes: list[torch.Size] = []
    with hooked([(layer, lambda _, __, output: shapes.append(output.shape))]), torch.no_grad():
        trace.network.run(trace.images)
    if shapes[0] == trace.activation.shape:
        yield layer
        return
    stand_in = nn.Identity()

    def through(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        positions = trace.network.positions.at(trace.images)
        reshape = find_reshape(trace.layer, layer, output, positions)
        return reshape.from_map(stand_in(reshape.to_map(output)), output)

    with hooked([(layer, through)]):
        yield stand_in


def _map(trace: Trace, attribution: Tensor) -> Tensor:
    """An attribution to a layer, in any layout, to a map (B, h, w)."""
    reshape = trace.network.positions.at(trace.images).reshape(attribution)
    if reshape is None:
        raise ValueError(f"an attribution of shape {tuple(attribution.shape)} has no positions")
    return reshape.to_map(attribution).sum(dim=1).detach()


@family(r"captum:(\w+)", form="captum:NAME")
def find_captum(name: str, explainer: str) -> Method:
    """A class of captum.attr, called as it is by default."""
    package = _package("captum", "captum.attr", "captum")
    found = _find("captum", explainer, package, package.Attribution, "attribute")
    of_layer = issubclass(found, package.LayerAttribution)
    # LIME and KernelSHAP fit a linear model to one image, and call for the utility of that image alone.
    alone = issubclass(found, package.LimeBase)
    function = partial(_captum_layer, found) if of_layer else partial(_captum_pixels, found, alone=alone)
    return Method(
        name,
        function,
        name,
        ("outside",),
        "captum",
        saliency=not of_layer,
        of_pixels=not of_layer,
        package="captum",
    )


def _captum_layer(explainer: Any, trace: Trace) -> Tensor:
    leaf = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), _layer(trace) as layer:
        return _map(trace, _captum_explainer(explainer, trace, trace.target, layer).attribute(leaf))


def _captum_pixels(explainer: Any, trace: Trace, alone: bool) -> Tensor:
    at_once = 1 if alone else len(trace.target)
    layer = find_module(trace.network.model, trace.layer)
    attributions = []
    for images, target in zip(trace.images.split(at_once), trace.target.split(at_once), strict=True):
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            found = _captum_explainer(explainer, trace, target, layer).attribute(leaf)
            attributions.append(found.detach())
    return min_max(torch.cat(attributions).abs().sum(dim=1))


def _captum_explainer(explainer: Any, trace: Trace, target: Tensor, layer: nn.Module) -> Any:
    takes = inspect.signature(explainer).parameters
    utility = _utility(trace, target)
    # Some of captum's classes hook the model's modules, and take nothing but a module.
    model = _AsModule(trace.network.model, utility) if "model" in takes else utility
    return explainer(model, layer) if "layer" in takes else explainer(model)


def _utility(trace: Trace, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Images (n, 3, H, W) to utilities (n,) of the classes (B,), n a multiple of B: steps are stacked."""

    def utility(images: Tensor) -> Tensor:
        repeated = target.repeat(len(images) // len(target))
        return trace.utility(trace.network.run(images), repeated)

    return utility


class _AsModule(nn.Module):
    """A function of images as a module, which holds the network that it runs."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@family(r"grad_cam:(\w+)", form="grad_cam:NAME")
def find_grad_cam(name: str, explainer: str) -> Method:
    """A class of pytorch-grad-cam, called as it is by default."""
    package = _package("grad_cam", "pytorch_grad_cam", "grad-cam")
    found = _find("grad_cam", explainer, package, package.base_cam.BaseCAM)
    function = partial(_grad_cam, found)
    return Method(name, function, name, ("outside",), "grad-cam", saliency=True, package="grad-cam")


def _grad_cam(explainer: Any, trace: Trace) -> Tensor:
    def target(place: int) -> Any:
        def utility(outputs: Tensor) -> Tensor:
            logits = trace.network.activation.logits(outputs[None], 1)  # it runs the model itself
            return trace.utility(logits, trace.target[place : place + 1])[0]

        return utility

    def channels_first(output: Tensor) -> Tensor:
        reshape = positions.reshape(output)
        return output if reshape is None else reshape.to_map(output)

    model = trace.network.model
    positions = trace.network.positions.at(trace.images)
    layers = [find_module(model, trace.layer)]
    images = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad():
        # Not as a context: on leaving that, grad-cam swallows errors of its own.
        cam = explainer(model, layers, reshape_transform=channels_first)
        try:
            saliency = cam(images, [target(place) for place in range(len(images))])
        finally:
            cam.activations_and_grads.release()
    return torch.as_tensor(saliency).to(trace.images)


@family(r"torchcam:(\w+)", form="torchcam:NAME")
def find_torchcam(name: str, explainer: str) -> Method:
    """A class of torchcam.methods, called as it is by default."""
    package = _package("torchcam", "torchcam.methods", "torchcam")
    base = importlib.import_module("torchcam.methods.core")._CAM
    found = _find("torchcam", explainer, package, base)
    return Method(name, partial(_torchcam, found), name, ("outside",), "torchcam", package="torchcam")


def _torchcam(explainer: Any, trace: Trace) -> Tensor:
    # Some of its classes run the model themselves, and look the class up in what it gives.
    model = _AsModule(trace.network.model, partial(_class_utilities, trace)).eval()
    images = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), _layer(trace) as layer:
        model.layer = layer  # torchcam looks for its layer among the model's modules
        with explainer(model, target_layer=layer) as extractor:
            (maps,) = extractor(trace.target.tolist(), model(images), normalized=False)
    return maps.detach()


def _class_utilities(trace: Trace, images: Tensor) -> Tensor:
    """Images (n, 3, H, W) to utilities (n, K): those of the explained classes, 0 in the other columns."""
    logits = trace.network.run(images)
    utilities = torch.zeros_like(logits)
    for target in trace.target.unique():
        utilities[:, target] = trace.utility(logits, target.expand(len(logits)))
    return utilities
