"""Name -> thing: the two registries (methods, metrics) and the error for an unknown name."""

from __future__ import annotations

import difflib
import re
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
        self._families: dict[str, tuple[re.Pattern[str], Callable[..., T]]] = {}
        self._members: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register `entry`; a name can be taken once only.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} exists already")
        self._entries[name] = entry

    def add_family(self, form: str, pattern: str, find: Callable[..., T]) -> None:
        """Register entries whose names have a parameter: they are made when they are asked for.

        Args:
            form: how such a name is written, for people (`aumann-N`).
            pattern: regular expression of the whole name.
            find: takes the name and the pattern's groups, gives the entry.
        """
        self._families[form] = re.compile(pattern), find

    @property
    def forms(self) -> tuple[str, ...]:
        """How the names of the families are written."""
        return tuple(self._families)

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        for pattern, find in self._families.values():
            match = pattern.fullmatch(name)
            if match:
                if name not in self._members:
                    self._members[name] = find(name, *match.groups())
                return self._members[name]
        also = f"; and {', '.join(self.forms)}" if self._families else ""
        raise unknown_name(self.kind, name, self._entries, also)

    def __contains__(self, name: object) -> bool:
        if name in self._entries:
            return True
        return isinstance(name, str) and any(p.fullmatch(name) for p, _ in self._families.values())

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
        value: the map divides the utility among the positions, as a Shapley value does.
    """

    name: str
    function: Callable[..., Any]
    groups: tuple[str, ...]
    source: str
    saliency: bool = False
    value: bool = False


@dataclass(frozen=True)
class Metric:
    """A group of scores.

    Attributes:
        function: takes a :class:`camkit.metrics.Subject`, saliency maps (B, H, W) and the function that
            explains other images the same way; returns column -> scores (B,).
        columns: the columns of the per-image CSV that it fills.
        directions: column -> "higher" or "lower", whichever is better; "neither" where it is no score of
            the map.
        source: the paper where the scores are defined.
        needs_trace: the function also takes the signed maps (B, h, w), or None from methods that give
            saliency maps, and the :class:`camkit.tracing.Trace`.
    """

    name: str
    function: Callable[..., Any]
    directions: Mapping[str, str]
    source: str
    needs_trace: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.directions)


METHODS: Registry[Method] = Registry("method")
METRICS: Registry[Metric] = Registry("metric")


def method(
    name: str,
    *,
    groups: tuple[str, ...] = (),
    source: str = "",
    saliency: bool = False,
    value: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a CAM method; see :class:`Method` for what it takes and returns."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS.add(name, Method(name, function, groups, source, saliency, value))
        return function

    return register


def family(
    pattern: str, *, form: str, listed: Iterable[str] = ()
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Register methods whose names have a parameter, see :meth:`Registry.add_family`.

    Args:
        listed: those that stand in every list and in their groups.
    """

    def register(find: Callable[..., Method]) -> Callable[..., Method]:
        METHODS.add_family(form, pattern, find)
        for name in listed:
            METHODS.add(name, METHODS[name])
        return find

    return register


def metric(
    name: str, *, directions: Mapping[str, str], source: str = "", needs_trace: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a metric group; see :class:`Metric` for what it takes and returns."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METRICS.add(name, Metric(name, function, directions, source, needs_trace))
        return function

    return register
