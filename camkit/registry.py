"""Name -> thing: the two registries (methods, metrics) and the error for an unknown name."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from camkit.errors import UsageError

T = TypeVar("T", bound="Entry")

MAIN = "__main__"
# What stands for several names of one kind, whatever is registered.
ALL = "all"
# What a row has beside scores.
ROW_FIELDS = ("image", "label", "target", "probability")
# And what the rows of summary.csv have.
SUMMARY_FIELDS = (
    "model", "layer", "utility", "method", "target_rule", "images", "degenerate", "degenerate_masked", "top1",
    "adcc_image_mean", "zero_probability", "not_finite", "value",
)  # fmt: skip


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's docstring."""
    function = getattr(function, "func", function)  # of a partial, what it is made from
    return (function.__doc__ or "").strip().split("\n")[0]


def file_of(function: Callable[..., Any]) -> str:
    """Where a registered function comes from: "" for camkit's own, else its file's path or its module's name.

    The main module is `__main__`: a notebook's cells run again, and register their things again.
    """
    function = getattr(function, "func", function)  # of a partial, what it is made from
    name = getattr(function, "__module__", None) or "an unnamed module"
    if name.partition(".")[0] == "camkit":
        return ""
    file = getattr(sys.modules.get(name), "__file__", None)
    return name if name == MAIN or not file else str(Path(file).resolve())


def origin_of(file: str) -> str:
    """The short name of what :func:`file_of` gives: for people."""
    return Path(file).name if Path(file).is_absolute() else file


def unknown_name(kind: str, name: str, known: Iterable[str], also: str = "") -> UsageError:
    """The error for a name that does not exist: what was asked, the nearest, the list; then `also`."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    if kind.endswith("y"):
        plural = f"{kind.removesuffix('y')}ies"
    else:
        plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return UsageError(f"unknown {kind} {name!r}.{nearest}\n{plural}: {', '.join(names)}{also}")


class Entry(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> str: ...

    @property
    def origin(self) -> str: ...


def groups_of(entry: Entry) -> tuple[str, ...]:
    """The groups that an entry belongs to; only methods have any."""
    return getattr(entry, "groups", ())


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
            ValueError: the name is taken, cannot be written in a list of names, or is that of a family's
                member or of a group; or a group of the entry is the name of another one.
        """
        if not name or re.search(r"[\s,]", name):
            raise ValueError(f"{self.kind} {name!r}: a name has no spaces and no commas")
        known = self._entries.get(name)
        if known is not None and not known.file == entry.file == MAIN:
            where = f", in {known.file}" if known.file else ""
            raise ValueError(f"{self.kind} {name!r} exists already{where}")
        self._check_family(name, entry)
        if name in self.groups or name in groups_of(entry):
            raise ValueError(f"{self.kind} {name!r} is the name of a group")
        taken = [group for group in groups_of(entry) if group in self._entries]
        if taken:
            raise ValueError(f"{self.kind} {name!r}: its group {taken[0]!r} is the name of a {self.kind}")
        self._entries[name] = entry

    def _check_family(self, name: str, entry: T) -> None:
        for form, (pattern, _) in self._families.items():
            if entry.file and pattern.fullmatch(name):
                raise ValueError(f"{self.kind} {name!r} is one of camkit's own: {form}")

    def forget(self, file: str) -> None:
        """Drop what a file has registered: it is about to be loaded again."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.file != file}

    @property
    def groups(self) -> set[str]:
        """Names that stand for several entries."""
        return {ALL, *(group for entry in self._entries.values() for group in groups_of(entry))}

    def add_family(self, form: str, pattern: str, find: Callable[..., T]) -> None:
        """Register entries whose names have a parameter: they are made when they are asked for.

        Args:
            form: how such a name is written, for people (`aumann-N`).
            pattern: regular expression of the whole name.
            find: takes the name and the pattern's groups, gives the entry.
        """
        self._families[form] = re.compile(pattern), find
        for name, entry in self._entries.items():
            self._check_family(name, entry)

    @property
    def forms(self) -> dict[str, str]:
        """How the names of the families are written, and one line on each."""
        return {form: first_line(find) for form, (_, find) in self._families.items()}

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
        of_image: the map is the same for every layer and utility, and made once for all; the function takes a
            :class:`camkit.tracing.ImageView`, which has neither.
        origin: the plugin it comes from; "" for camkit's own.
        file: where it is registered, see :func:`file_of`.
    """

    name: str
    function: Callable[..., Any]
    groups: tuple[str, ...]
    source: str
    saliency: bool = False
    value: bool = False
    of_image: bool = False
    origin: str = ""
    file: str = ""


@dataclass(frozen=True)
class Metric:
    """A group of scores.

    Attributes:
        function: takes a :class:`camkit.metrics.Subject`, saliency maps (B, H, W) and the function that
            explains other images the same way; returns column -> scores (B,), and may return a curve
            (B, points), which is kept beside the scores.
        columns: the columns of the per-image CSV that it fills.
        directions: column -> "higher" or "lower", whichever is better; "neither" where it is no score of
            the map.
        source: the paper where the scores are defined.
        needs_trace: the function also takes the signed maps (B, h, w), or None from methods that give
            saliency maps, and the :class:`camkit.tracing.Trace`.
        optional: columns that are NaN for maps that have no such score.
        of_values: columns that judge a map as a division of the utility, see :attr:`Method.value`.
        jumps: columns that a last bit can move far: 0 or 1, a correlation of ranks, an order of pixels.
        origin: the plugin it comes from; "" for camkit's own.
        file: where it is registered, see :func:`file_of`.
    """

    name: str
    function: Callable[..., Any]
    directions: Mapping[str, str]
    source: str
    needs_trace: bool = False
    optional: tuple[str, ...] = ()
    of_values: tuple[str, ...] = ()
    jumps: tuple[str, ...] = ()
    origin: str = ""
    file: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.directions)


@dataclass(frozen=True)
class Model:
    """A model that a plugin adds.

    Attributes:
        build: takes `pretrained`, true or false; gives the module, logits (B, K) of images (B, 3, H, W).
        conv, prepool: module paths of the layers of these names; None: the last feature layer.
        mean, std: of the images it takes, per channel, in units of [0, 1].
        origin: the plugin it comes from.
        file: where it is registered, see :func:`file_of`.
    """

    name: str
    build: Callable[..., Any]
    conv: str | None
    prepool: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str
    file: str


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

METHODS: Registry[Method] = Registry("method")
METRICS: Registry[Metric] = Registry("metric")
MODELS: Registry[Model] = Registry("model")


def method(
    name: str,
    *,
    groups: tuple[str, ...] = (),
    source: str = "",
    saliency: bool = False,
    value: bool = False,
    of_image: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a CAM method; see :class:`Method` for what it takes and returns.

    Raises:
        ValueError: the name is taken, or `of_image` without `saliency`: a map (B, h, w) has a layer's size.
    """
    if of_image and not saliency:
        raise ValueError(f"method {name!r}: of_image=True needs saliency=True, maps of the images' size")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        file = file_of(function)
        shown = origin_of(file)
        METHODS.add(name, Method(name, function, groups, source, saliency, value, of_image, shown, file))
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
    name: str,
    *,
    directions: Mapping[str, str],
    source: str = "",
    needs_trace: bool = False,
    optional: tuple[str, ...] = (),
    of_values: tuple[str, ...] = (),
    jumps: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a metric group; see :class:`Metric` for what it takes and returns.

    Groups of one origin may have columns in common: the same scores.

    Raises:
        ValueError: the name, or the name of a column, is taken, or there are no columns.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        file = file_of(function)
        shown = origin_of(file)
        entry = Metric(
            name, function, directions, source, needs_trace, optional, of_values, jumps, shown, file
        )
        reserved = [column for column in directions if column in (*ROW_FIELDS, *SUMMARY_FIELDS)]
        if reserved or not directions:
            raise ValueError(
                f"metric {name!r}: {reserved[0]!r} is no score"
                if reserved
                else f"metric {name!r} has no columns"
            )
        for other in METRICS.values():  # rows, tables and resuming know a score by its column
            taken = [column for column in directions if column in other.columns]
            if taken and other.file != entry.file:
                raise ValueError(f"metric {name!r}: {taken[0]!r} is a column of metric {other.name!r}")
        METRICS.add(name, entry)
        return function

    return register


def model(
    name: str,
    *,
    conv: str | None = None,
    prepool: str | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that builds a model; see :class:`Model`."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        file = file_of(build)
        MODELS.add(name, Model(name, build, conv, prepool, mean, std, origin_of(file), file))
        return build

    return register


def columns_of_values(columns: Iterable[str]) -> list[str]:
    """Those of `columns` that judge maps as divisions of the utility, see :attr:`Metric.of_values`."""
    known = {column for entry in METRICS.values() for column in entry.of_values}
    return [column for column in columns if column in known]


def method_place(name: str) -> tuple[int, str]:
    """Sorts methods: camkit's own as they are registered, then all others by name, loaded or not."""
    own = [entry.name for entry in METHODS.values() if not entry.origin]
    return (own.index(name) if name in own else len(own), name)


def is_value(name: str) -> bool:
    """Whether maps of a method divide the utility among the positions.

    False where a method cannot be had here, as of a package that is not installed: none of those does.
    """
    try:
        return METHODS[name].value
    except UsageError:
        return False
