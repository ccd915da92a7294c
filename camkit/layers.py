"""Layers: where they stand in a model, and how their outputs become activation maps and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camkit.errors import UsageError
from camkit.registry import unknown_name

# Class, distillation and register tokens of the known transformers number at most eight.
MAX_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes an activation map (B, C, h, w) and back.

    The map has the memory order that the rest of the network works best in: channels last where the layer
    gives them last; else channels first, as the gradient of a pooling comes (a backward pass in which the
    two orders meet takes several times as long).
    """

    to_map: Callable[[Tensor], Tensor]
    from_map: Callable[[Tensor, Tensor], Tensor]  # (map, the layer's output) -> tensor handed on


def layout_of(output: Tensor) -> Layout | None:
    """Recognise (B, C, h, w), (B, h, w, C) and token sequences (B, prefix + h * w, C) of square images.

    Prefix tokens (class, registers) have no position: they stay as they are. None where the output has
    no positions.
    """
    if output.ndim == 4:
        _, first, second, third = output.shape
        channels_last = first == second != third  # the two equal sides are the positions
        sides = (first, second) if channels_last else (second, third)
        if sides == (1, 1):
            return None
        if channels_last:
            return Layout(lambda t: t.permute(0, 3, 1, 2), lambda m, _: m.permute(0, 2, 3, 1))
        return Layout(lambda t: t.contiguous(), lambda m, _: m)
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        prefix = output.shape[1] - side * side
        if side > 1 and prefix <= MAX_PREFIX_TOKENS:
            return Layout(
                lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (side, side)),
                lambda m, t: torch.cat([t[:, :prefix], m.flatten(2).transpose(1, 2)], dim=1),
            )
    return None


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`, written `layer4.2.conv3` or `layer4[-1].conv3`.

    Raises:
        UsageError: there is none; the message names the nearest and what stands at that level.
    """
    module = model
    for step in path.replace("[", ".").replace("]", "").strip(".").split("."):
        children = dict(module.named_children())
        if step.lstrip("-").isdigit() and step not in children:
            modules = list(children.values())
            if not -len(modules) <= int(step) < len(modules):
                raise unknown_name("layer", path, children)
            module = modules[int(step)]
        elif step in children:
            module = children[step]
        else:
            raise unknown_name("layer", step, children, also=f" (looking for {path!r})")
    return module


def find_layout(layer: str, module: nn.Module, output: object) -> Layout:
    """The layout of a layer's output.

    Raises:
        UsageError: it has no positions.
    """
    layout = layout_of(output) if isinstance(output, Tensor) else None
    if layout is None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"layer {layer!r} ({type(module).__name__}) gives {shape}: expected (B, C, h, w), "
            "(B, h, w, C) or (B, tokens, C). Choose a --layer before pooling."
        )
    return layout
