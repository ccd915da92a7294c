"""Classes of captum.attr.

Attributions to a layer (captum's Layer...) are summed over channels into maps (B, h, w). Attributions to
pixels become saliency maps by one rule: absolute values summed over the colour channels, then min-max.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camkit.entries import Method, family
from camkit.methods.adapters.common import AsModule, Explained, find_class, find_package, takes
from camkit.methods.saliency import min_max
from camkit.network.layers import find_module, hooked
from camkit.network.trace import PixelView, Trace


@family(r"captum:(\w+)", form="captum:NAME")
def find_captum(name: str, explainer: str) -> Method:
    """A class of captum.attr, called as it is by default."""
    package = find_package("captum", "captum.attr", "captum")

    def explains(one: type) -> bool:
        return issubclass(one, package.Attribution) and hasattr(one, "attribute")

    found = find_class("captum", explainer, package, explains, call="attribute")
    of_layer = issubclass(found, package.LayerAttribution)
    # LIME and KernelSHAP fit a linear model to one image, and call for the utility of that image alone.
    alone = issubclass(found, package.LimeBase)
    return Method(
        name,
        partial(_of_layer, found) if of_layer else partial(_of_pixels, found, alone=alone),
        name,
        ("outside",),
        "captum",
        saliency=not of_layer,
        of_pixels=not takes(found, "layer"),
        package="captum",
    )


def _of_layer(explainer: Any, trace: Trace) -> Tensor:
    leaf = trace.images.detach().clone().requires_grad_()
    with torch.enable_grad(), _layer(trace) as layer:
        return _map(trace, _made(explainer, trace, trace.target, layer).attribute(leaf))


def _of_pixels(explainer: Any, view: Any, alone: bool) -> Tensor:
    at_once = 1 if alone else len(view.target)
    # A class that takes a layer sees a trace, see find_captum.
    layer = find_module(view.network.model, view.layer) if takes(explainer, "layer") else None
    attributions = []
    for images, target in zip(view.images.split(at_once), view.target.split(at_once), strict=True):
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            attributions.append(_made(explainer, view, target, layer).attribute(leaf).detach())
    return min_max(torch.cat(attributions).abs().sum(dim=1))


def _made(explainer: Any, view: PixelView, target: Tensor, layer: nn.Module | None) -> Any:
    utility = _utility(view, target)
    # Some of captum's classes hook the model's modules, and take nothing but a module.
    model = AsModule(view, utility) if takes(explainer, "model") else utility
    return explainer(model, layer) if takes(explainer, "layer") else explainer(model)


def _utility(view: PixelView, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Images (n, 3, H, W) to utilities (n,) of the classes (B,), n a multiple of B: steps are stacked."""

    def utility(images: Tensor) -> Tensor:
        repeated = target.repeat(len(images) // len(target))
        return view.utility(view.network.run(images), repeated)

    return utility


@contextmanager
def _layer(trace: Trace) -> Iterator[nn.Module]:
    """The traced layer itself, whose type some rules go by; a stand-in where it gives no (B, C, h, w)."""
    layer = find_module(trace.network.model, trace.layer)
    shapes: list[torch.Size] = []
    with hooked([(layer, lambda _, __, output: shapes.append(output.shape))]), torch.no_grad():
        trace.network.run(trace.images)
    if shapes[0] == trace.activation.shape:
        yield layer
    else:
        with Explained(trace, trace.network.run, [trace.layer]).seen() as (stand_in,):
            yield stand_in


def _map(trace: Trace, attribution: Tensor) -> Tensor:
    """An attribution to a layer (B, C, h, w) to a map (B, h, w)."""
    if attribution.shape[2:] != trace.activation.shape[2:]:
        raise ValueError(f"an attribution of shape {tuple(attribution.shape)} has no positions")
    return attribution.sum(dim=1).detach()
