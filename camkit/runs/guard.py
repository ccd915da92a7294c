"""Calling methods and metrics; what plugins get is theirs to change, and what they give is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from camkit.entries import Method, Metric
from camkit.errors import PluginError
from camkit.methods.saliency import to_saliency
from camkit.metrics import Subject
from camkit.network.trace import ImageView, Trace
from camkit.plugins import blamed

# How far outside [0, 1] a plugin's saliency may lie: resizing and dividing leave the last bits there.
ROUNDING = 1e-5


class _Copies:
    """What a plugin gets in place of a trace or a subject: the same, but each tensor is a copy.

    The built-in methods and metrics of the batch have the tensors themselves, and an edit in place (`a =
    trace.activation; a[a < 0] = 0`) would change their numbers.
    """

    def __init__(self, shared: ImageView | Subject) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        return _lent(getattr(self._shared, name))


def _lent(value: Any) -> Any:
    """An argument as a plugin gets it."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):  # the traces of several layers, the attention of all blocks
        return tuple(map(_lent, value))
    if isinstance(value, MethodType):  # of a trace or a subject, which may give what it keeps
        return lambda *given, **named: _lent(value(*given, **named))
    return _Copies(value) if isinstance(value, ImageView | Subject) else value


def make_maps(method: Method, view: ImageView) -> tuple[Tensor, Tensor]:
    """Signed maps (B, h, w) and saliency maps (B, H, W) of a method.

    Args:
        view: a :class:`camkit.network.trace.Trace`, but for methods that are `of_image`.

    Raises:
        PluginError: a plugin's method fails, or gives something else.
    """
    # Of several layers only methods have signed maps whose grid is the same at each.
    like = view.layers[0].activation if isinstance(view, Trace) else view.images
    size = (view.images.shape[2], view.images.shape[3])
    grid = size if method.saliency else (like.shape[2], like.shape[3])
    with torch.no_grad(), blamed("method", method):
        given = method.function(_lent(view) if method.origin else view)
        maps = _expect_tensor(given, (len(view.images), *grid)).to(like)
        if not method.saliency:
            return maps, to_saliency(maps, size)
        saliency = maps.where(maps.isfinite(), 0)
        if method.origin:
            _expect_fractions(saliency)
        return maps, saliency


def _expect_tensor(given: object, shape: tuple[int, ...], name: str = "") -> Tensor:
    """What a plugin gives (as `name`), cut from its graph.

    Raises:
        PluginError: it is no tensor of this shape.
    """
    if isinstance(given, Tensor) and given.shape == shape:
        return given.detach()
    raise PluginError(f"gives {_described(given)}{name and f' as {name!r}'}, expected {tuple(shape)}")


def _described(given: object) -> str:
    return str(tuple(given.shape)) if isinstance(given, Tensor) else f"{type(given).__name__} (no tensor)"


def _expect_fractions(saliency: Tensor) -> None:
    lowest, highest = (end.item() for end in saliency.aminmax())
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise PluginError(f"gives values from {lowest:.4g} to {highest:.4g}, expected saliency in [0, 1]")


def compute_scores(metric: Metric, subject: Subject) -> dict[str, Tensor]:
    """A metric's columns (B,), curves (B, points) and flags (B,) of bool, by name.

    Raises:
        PluginError: a plugin's metric, or a plugin's method that it calls again, fails or gives something
            else than it declares.
    """
    if not metric.sees_layer:
        subject = replace(subject, _find_trace=_undeclared)
    with blamed("metric", metric):
        found = metric.function(_lent(subject) if metric.origin else subject)
        if not isinstance(found, Mapping):
            raise PluginError(f"gives {type(found).__name__}, expected a dict of columns")
        for name in (*metric.columns, *metric.curves, *metric.flags):
            if name not in found:
                raise PluginError(f"gives {', '.join(map(repr, found)) or 'nothing'}, expected {name!r}")
        return {name: _checked(metric, name, value, subject.probability) for name, value in found.items()}


def _undeclared() -> Trace:
    raise PluginError("reads subject.trace: register it with sees_layer=True")


def _checked(metric: Metric, name: str, value: object, like: Tensor) -> Tensor:
    """A column in the number format of `like` (B,); a flag or a curve as it is."""
    if name in metric.columns:
        return _expect_tensor(value, like.shape, name).to(like)
    if name in metric.flags and isinstance(value, Tensor) and value.dtype == torch.bool:
        return _expect_tensor(value, like.shape, name).to(like.device)
    if name in metric.curves and isinstance(value, Tensor) and value.ndim == 2 and len(value) == len(like):
        return value.detach().to(like.device)
    kind = (
        f"expected a flag, ({len(like)},) of bool" if name in metric.flags
        else f"expected a curve, ({len(like)}, points)" if name in metric.curves
        else "none of its columns, curves and flags"
    )  # fmt: skip
    raise PluginError(f"gives {_described(value)} as {name!r}: {kind}")
