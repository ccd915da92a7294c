"""What the adapters share: a class by its name, and the network as another package takes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from camkit.errors import UsageError
from camkit.network.layers import find_module, hooked
from camkit.network.reshape import find_reshape
from camkit.network.trace import PixelView
from camkit.registry import unknown_name

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What an explainer can be given: the network and a layer when it is made, images when it explains.
GIVEN = {"self", "model", "forward_func", "layer", "target_layer", "target_layers", "inputs"}


def find_package(prefix: str, module: str, install: str) -> ModuleType:
    """An optional package.

    Raises:
        UsageError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{prefix}:NAME needs the package {install}: pip install {install}") from error


def takes(explainer: type, name: str) -> bool:
    """Whether a class's constructor has a parameter of this name."""
    return name in inspect.signature(explainer).parameters


def find_class(
    prefix: str,
    name: str,
    package: ModuleType,
    explains: Callable[[type], bool],
    call: str = "__init__",
    refused: Mapping[str, str] | None = None,
) -> type:
    """The class of a package by its name.

    Args:
        explains: tells the package's explainers from its other classes.
        call: the method that explains, beside the constructor.
        refused: class -> why it cannot explain here.

    Raises:
        UsageError: there is no such class, it needs more than a model and a layer, or it is refused.
    """
    refused = refused or {}
    known = {key: one for key, one in vars(package).items() if inspect.isclass(one) and explains(one)}
    if name not in known:
        able = [key for key, one in known.items() if key not in refused and not _lacks(one, call)]
        raise unknown_name(f"{prefix} class", name, able)
    if name in refused:
        raise UsageError(f"{prefix}:{name} {refused[name]}")
    lacking = _lacks(known[name], call)
    if lacking:
        raise UsageError(f"{prefix}:{name} needs more than a model and a layer: {', '.join(lacking)}")
    return known[name]


def _lacks(explainer: type, call: str) -> list[str]:
    """What a class takes besides, in its constructor or its call, and has no default for."""
    parameters = [
        *inspect.signature(explainer).parameters.values(),
        *inspect.signature(getattr(explainer, call)).parameters.values(),
    ]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in VARIADIC]
    return [name for name in needed if name not in GIVEN]


class AsModule(nn.Module):
    """A function of images as a module, which holds the network that it runs."""

    def __init__(self, view: PixelView, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = view.network.model
        self.function = function
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Explained(AsModule):
    """The same with stand-ins for layers.

    Attributes:
        layers: one stand-in per layer, see :meth:`seen`.
    """

    def __init__(self, view: PixelView, function: Callable[[Tensor], Tensor], paths: Sequence[str]) -> None:
        super().__init__(view, function)
        self.layers = nn.ModuleList(nn.Identity() for _ in paths)
        self._view = view
        self._paths = paths

    @contextmanager
    def seen(self) -> Iterator[list[nn.Module]]:
        """Let each layer's output pass through its stand-in as a map (B, C, h, w).

        A package can hook a stand-in, or put another module in its place: the model itself stays as it is.
        """
        modules = [find_module(self.model, path) for path in self._paths]
        hooks = [(module, partial(self._through, place)) for place, module in enumerate(modules)]
        with hooked(hooks):
            yield list(self.layers)

    def _through(self, place: int, module: nn.Module, _: tuple, output: Tensor) -> Tensor:
        images = torch.empty(len(output), 0, *self._view.images.shape[2:])  # a package may pass other batches
        positions = self._view.network.positions.at(images)
        reshape = find_reshape(self._paths[place], module, output, positions)
        # Packages keep the map as it is: it must be no view, and a later in-place operation change a copy.
        return reshape.from_map(self.layers[place](reshape.to_map(output).clone()).clone(), output)


def class_utilities(view: PixelView, images: Tensor, every: bool = False) -> Tensor:
    """Utilities (n, K) of images (n, 3, H, W), one pass; see :func:`utilities_of`."""
    return utilities_of(view, view.network.run(images), every)


def utilities_of(view: PixelView, logits: Tensor, every: bool = False) -> Tensor:
    """Utilities (n, K) of logits (n, K): those of the explained classes, 0 in the other columns.

    Args:
        every: fill all columns, for what compares classes.
    """
    classes = torch.arange(logits.shape[1], device=logits.device) if every else view.target.unique()
    columns = [view.utility(logits, one.expand(len(logits))) for one in classes]
    return torch.zeros_like(logits).index_copy(1, classes, torch.stack(columns, dim=1))
