"""Layers: where they stand in a model, and how their outputs become activation maps and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import UsageError
from camkit.registry import unknown_name

Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]

# Class, distillation and register tokens of the known transformers number at most eight.
MAX_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Reshape:
    """How a layer's output becomes an activation map (B, C, h, w) and back.

    The map has the memory order that the rest of the network works best in: channels last where the layer
    gives them last; else channels first, as the gradient of a pooling comes (a backward pass in which the
    two orders meet takes several times as long).
    """

    to_map: Callable[[Tensor], Tensor]
    from_map: Callable[[Tensor, Tensor], Tensor]  # (map, the layer's output) -> tensor handed on


def reshape_of(output: Tensor) -> Reshape | None:
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
            return Reshape(lambda t: t.permute(0, 3, 1, 2), lambda m, _: m.permute(0, 2, 3, 1))
        return Reshape(lambda t: t.contiguous(), lambda m, _: m)
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        prefix = output.shape[1] - side * side
        if side > 1 and prefix <= MAX_PREFIX_TOKENS:
            return Reshape(
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


def find_reshape(layer: str, module: nn.Module, output: object) -> Reshape:
    """The reshape of a layer's output.

    Raises:
        UsageError: it has no positions.
    """
    reshape = reshape_of(output) if isinstance(output, Tensor) else None
    if reshape is None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"layer {layer!r} ({type(module).__name__}) gives {shape}: expected (B, C, h, w), "
            "(B, h, w, C) or (B, tokens, C). Choose a --layer before pooling."
        )
    return reshape


@contextmanager
def hooked(after: Hooks, before: Hooks = ()) -> Iterator[None]:
    """Attach forward hooks to modules, and remove them at the end, also after an exception.

    Args:
        after: hooks that run behind a module's forward, see `torch.nn.Module.register_forward_hook`.
        before: hooks that run in front of it.
    """
    with ExitStack() as attached:
        for module, hook in before:
            attached.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in after:
            attached.callback(module.register_forward_hook(hook).remove)
        yield


def last_feature_layer(model: nn.Module, images: Tensor) -> str | None:
    """Path of the last module before pooling: its output has positions, and the logits depend on them.

    A ViT's last blocks are passed over: after the last attention nothing but the class token counts.
    """
    outputs: list[tuple[str, Tensor, Tensor]] = []

    def keep(path: str, module: nn.Module, _: tuple, output: object) -> None:
        reshape = reshape_of(output) if isinstance(output, Tensor) else None
        if reshape is not None:
            positions = reshape.to_map(output)  # type: ignore[arg-type]
            height, width = positions.shape[2:]
            if height == width > 1:
                outputs.append((path, positions, output))  # type: ignore[arg-type]

    inner = ((module, partial(keep, path)) for path, module in model.named_modules() if path)
    with hooked(inner), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = model(images.detach().clone().requires_grad_())
    top = logits.max(dim=1).values.sum()
    for path, positions, output in reversed(outputs):
        # Inner projections of an attention (queries, keys) have another number of channels.
        if positions.shape[1] != outputs[-1][1].shape[1] or not output.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(top, output, retain_graph=True, allow_unused=True)
        if gradient is not None:
            reshape = reshape_of(gradient)
            assert reshape is not None  # it has the shape of the output
            if (reshape.to_map(gradient) != 0).any():
                return path
    return None
