"""Layers: where they stand in a model, and hooks on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from camkit.errors import UsageError
from camkit.registry import unknown_name

SEVERAL = "+"  # between the layers of one name: `layer3+layer4`
Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]


def parts_of(layer: str) -> list[str]:
    """The single layers of a name or module path: `["layer3", "layer4"]` of `layer3+layer4`."""
    return list(dict.fromkeys(layer.split(SEVERAL)))


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


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Let an attribute of a module, class or library be something else, until the end or an exception."""
    own = {name: vars(owner)[name]} if name in vars(owner) else {}  # else it is the class's, or inherited
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        for one, before in own.items():
            setattr(owner, one, before)


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
