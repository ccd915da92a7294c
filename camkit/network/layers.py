"""Layers: where they stand in a model, and hooks on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import UsageError
from camkit.network.reshape import Positions
from camkit.registry import unknown_name

Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]


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


@contextmanager
def hooked(after: Hooks, before: Hooks = ()) -> Iterator[None]:
    """Attach forward hooks to modules, and remove them at the end, also after an exception.

    They run before hooks that are there already.

    Args:
        after: hooks that run behind a module's forward, see `torch.nn.Module.register_forward_hook`.
        before: hooks that run in front of it.
    """
    with ExitStack() as attached:
        for module, hook in before:
            attached.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in after:
            attached.callback(module.register_forward_hook(hook, prepend=True).remove)
        yield


def last_feature_layer(model: nn.Module, images: Tensor) -> str | None:
    """Path of the last module before pooling: its output has positions, and the logits depend on them.

    A ViT's last blocks are passed over: after the last attention nothing but the class token counts. So are
    the inner projections of an attention (they have another number of channels), what stands inside a
    pooling by attention (the module around it gives no positions), and class logits per position.
    """
    outputs: list[tuple[str, Tensor, Tensor]] = []
    without: set[str] = set()  # modules whose output has no positions
    positions = Positions.of(model, images)

    def keep(path: str, module: nn.Module, _: tuple, output: object) -> None:
        reshape = positions.reshape(output, path)
        if reshape is not None:
            outputs.append((path, reshape.to_map(output), output))  # type: ignore[arg-type]
        elif isinstance(output, Tensor):
            without.add(path)

    inner = ((module, partial(keep, path)) for path, module in model.named_modules() if path)
    with hooked(inner), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = logits_of(model(images.detach().clone().requires_grad_()))
    heads = {
        name
        for name, one in model.named_children()
        if isinstance(one, nn.Linear) and one.out_features == logits.shape[1]
    }
    outputs = [one for one in outputs if one[0] not in heads and not _parents(one[0]) & without]
    top = logits.max(dim=1).values.sum()
    for path, maps, output in reversed(outputs):
        if maps.shape[1] != outputs[-1][1].shape[1] or not output.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(top, output, retain_graph=True, allow_unused=True)
        if gradient is not None:
            reshape = positions.reshape(gradient)
            assert reshape is not None  # it has the shape of the output
            if (reshape.to_map(gradient) != 0).any():
                return path
    return None


def _parents(path: str) -> set[str]:
    """`{"a", "a.b"}` of `a.b.c`."""
    steps = path.split(".")
    return {".".join(steps[:count]) for count in range(1, len(steps))}


def logits_of(output: object) -> Tensor:
    """The logits in what a model returns: a tensor, its attribute or entry `logits`, or the first of several.

    Raises:
        UsageError: it returns something else.
    """
    found = output
    if not isinstance(found, Tensor):
        found = getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits", next(iter(output.values()), None))
    if found is None and isinstance(output, Sequence) and output:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    raise UsageError(
        f"it returns {type(output).__name__}, expected logits (B, classes): not a classifier (detection?)"
    )
