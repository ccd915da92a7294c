"""Name -> thing: the two registries (methods, metrics) and the error for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from camkit.errors import UsageError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str], also: str = "") -> UsageError:
    """The error for a name that does not exist: what was asked, the nearest, the list; then `also`."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    plural = f"{kind.removesuffix('y')}ies" if kind.endswith("y") else f"{kind}s"
    return UsageError(f"unknown {kind} {name!r}.{nearest}\n{plural}: {', '.join(names)}{also}")


class Registry(Mapping[str, T]):
    """A dict from name to entry whose failed look-up is a :class:`UsageError` with the nearest name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register `entry`; a name can be taken once only.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} exists already")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class Method:
    """A CAM method.

    Attributes:
        function: takes a :class:`camkit.tracing.Trace`; returns signed maps (B, h, w) at the layer's
            resolution or, where `saliency` is true, finished saliency maps (B, H, W) in [0, 1].
        groups: the collective names it goes by (`paper`, `controls`).
        source: the paper, or where the method is defined.
        saliency: the result is taken as it stands: no ReLU, resize or min-max.
    """

    name: str
    function: Callable[..., Any]
    groups: tuple[str, ...]
    source: str
    saliency: bool


@dataclass(frozen=True)
class Metric:
    """A group of scores.

    Attributes:
        function: takes a :class:`camkit.metrics.Subject`, saliency maps (B, H, W) and the function that
            explains other images the same way; returns column -> scores (B,).
        columns: the columns of the per-image CSV that it fills.
        directions: column -> "higher" or "lower", whichever is better.
        source: the paper where the scores are defined.
    """

    name: str
    function: Callable[..., Any]
    directions: Mapping[str, str]
    source: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.directions)


METHODS: Registry[Method] = Registry("method")
METRICS: Registry[Metric] = Registry("metric")


def method(
    name: str, *, groups: tuple[str, ...] = (), source: str = "", saliency: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a CAM method; see :class:`Method` for what it takes and returns."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS.add(name, Method(name, function, groups, source, saliency))
        return function

    return register


def metric(
    name: str, *, directions: Mapping[str, str], source: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a metric group; see :class:`Metric` for what it takes and returns."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METRICS.add(name, Metric(name, function, directions, source))
        return function

    return register
