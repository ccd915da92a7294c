"""What can be registered: methods, metrics with their columns, utilities and models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from camkit.entries.columns import CORRELATION, NOT_NEGATIVE, UNIT, Column, Mean
from camkit.registry import Registry, origin_of, source_of

# Handed on, so that whoever declares a metric has all from one place.
__all__ = ["CORRELATION", "NOT_NEGATIVE", "UNIT", "Column", "Mean"]

# Columns of CSV files that no metric may have; camkit/results/columns.py enters its own.
NO_SCORES: set[str] = set()
# Ends the name of a plain mean in summary.csv, beside a column with a mean of its own.
IMAGE_MEAN = "_image_mean"
COSTLY = "perturbation"  # the group of methods that take many passes
CURVE = "_curve"  # ends the name of a curve
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Method:
    """A CAM method.

    Attributes:
        function: takes a :class:`camkit.network.trace.Trace`; returns signed maps (B, h, w) at the layer's
            resolution or, where `saliency` is true, finished saliency maps (B, H, W) in [0, 1].
        title: its name in tables and pictures for people.
        groups: the collective names it goes by (`paper`, `controls`); `all` leaves out :data:`COSTLY`.
        source: the paper, or where the method is defined.
        saliency: the result is taken as it stands: no ReLU, resize or min-max.
        value: the map divides the utility among the positions, as a Shapley value does.
        of_image: the map is the same for every layer and utility, and made once for all; the function takes a
            :class:`camkit.network.trace.ImageView`, which has neither.
        of_pixels: the map is an attribution of the utility to pixels, the same for every layer, and made once
            for all; the function takes a :class:`camkit.network.trace.PixelView`, which has no layer.
        blind: the map is the same for every image: a score on which it is the best says nothing.
        uses: what it takes beside the images: `activation`, `gradient`, `Hessian term`, `head`, `passes`,
            `attention`, `stages` (their ends, where one layer is named), `layers` (several), `regions`,
            `tiles` (of mosaics).
        cost: what it costs per image beside the pass that all methods share, as a formula: C channels, P
            positions; 1 grad, 1 head and 1 pass are a gradient at the layer, a pass through what follows the
            layer, and one through all.
        lacks: takes a :class:`camkit.network.passes.Network` and a layer's module path; says why they cannot
            have the method, "" where they can.
        package: the other package that computes it; "" for camkit's own and plugins.
        source_file: where it is registered, see :func:`camkit.registry.source_of`.
    """

    name: str
    function: Callable[..., Any]
    title: str
    groups: tuple[str, ...]
    source: str
    saliency: bool = False
    value: bool = False
    of_image: bool = False
    of_pixels: bool = False
    blind: bool = False
    uses: tuple[str, ...] = ()
    cost: str = ""
    lacks: Callable[[Any, str], str] | None = None
    package: str = ""
    source_file: str = ""

    @property
    def origin(self) -> str:
        """The plugin or the package it comes from; "" for camkit's own."""
        return self.package or origin_of(self)

    @property
    def of_one_layer(self) -> bool:
        """Whether its map is that of the layer that is named: another layer has another map."""
        return not (self.of_image or self.of_pixels or {"attention", "stages", "layers"} & {*self.uses})


@dataclass(frozen=True)
class Metric:
    """A group of scores.

    Attributes:
        function: takes a :class:`camkit.metrics.Subject`; returns name -> tensor for each of its columns (B,)
            and curves (B, points) and, as bool (B,), its flags.
        columns: the columns of the per-image CSV that it fills.
        curves: what it returns beside scores, and is kept beside them.
        flags: what it counts, and how reports call that; the images are listed in flags.csv.
        explains_again: it asks for maps of changed images, of other classes or of a changed network.
        sees_layer: its scores depend on the layer and the utility, beside the map.
        passes: what it costs per image and method beside the pass that explains, as a formula; N: --steps.
        source: the paper where the scores are defined.
        source_file: where it is registered, see :func:`camkit.registry.source_of`.
    """

    name: str
    function: Callable[..., Any]
    columns: Mapping[str, Column]
    curves: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    explains_again: bool = False
    sees_layer: bool = False
    passes: str = ""
    source: str = ""
    source_file: str = ""

    @property
    def origin(self) -> str:
        return origin_of(self)


@dataclass(frozen=True)
class Utility:
    """What a coalition is worth: `function` takes logits (B, K) and classes (B,), gives (B,)."""

    name: str
    function: Callable[..., Any]
    source_file: str = ""


@dataclass(frozen=True)
class Model:
    """A model that a plugin adds.

    Attributes:
        build: takes `pretrained`, true or false; gives the module, logits (B, K) of images (B, 3, H, W).
        conv, prepool: module paths of the layers of these names; None: the last feature layer.
        mean, std: of the images it takes, per channel, in units of [0, 1]; of one channel they are grey.
        size: side of the square images it takes, or (H, W), in pixels.
        crop: PIL RGB image -> uint8 (C, H, W), in place of the resize and crop to `size`.
        family: of models that are no independent examples, see `camkit list models`; "": its own.
    """

    name: str
    build: Callable[..., Any]
    conv: str | None
    prepool: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | tuple[int, int] = 224
    source_file: str = field(default="")
    family: str = ""
    crop: Callable[[Any], Any] | None = None

    @property
    def origin(self) -> str:
        return origin_of(self)


METHODS: Registry[Method] = Registry("method")
METRICS: Registry[Metric] = Registry("metric")
UTILITIES: Registry[Utility] = Registry("utility")
MODELS: Registry[Model] = Registry("model")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def method(
    name: str,
    *,
    title: str = "",
    groups: tuple[str, ...] = (),
    source: str = "",
    saliency: bool = False,
    value: bool = False,
    of_image: bool = False,
    of_pixels: bool = False,
    blind: bool = False,
    uses: tuple[str, ...] = (),
    cost: str = "",
    lacks: Callable[[Any, str], str] | None = None,
) -> Decorator:
    """Register a function as a CAM method; see :class:`Method` for what it takes and returns.

    Raises:
        ValueError: the name is taken, or `of_image` or `of_pixels` without `saliency`: a map (B, h, w) has a
            layer's size.
    """
    if (of_image or of_pixels) and not saliency:
        switch = "of_image" if of_image else "of_pixels"
        raise ValueError(f"method {name!r}: {switch}=True needs saliency=True, maps of the images' size")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        METHODS.add(
            Method(
                name, function, title or name, groups, source, saliency, value, of_image, of_pixels, blind,
                uses, cost, lacks, source_file=source_of(function),
            )
        )  # fmt: skip
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
            METHODS.add(METHODS[name])
        return find

    return register


def metric(
    name: str,
    *,
    columns: Mapping[str, Column | str],
    curves: tuple[str, ...] = (),
    flags: Mapping[str, str] | None = None,
    explains_again: bool = False,
    sees_layer: bool = False,
    passes: str = "",
    source: str = "",
) -> Decorator:
    """Register a function as a metric group; see :class:`Metric` for what it takes and returns.

    Groups of one origin may have columns in common: the same scores.

    Args:
        columns: name -> :class:`Column`, or only its better side.
        flags: name -> what the flagged images or maps are, in words.

    Raises:
        ValueError: the name, or the name of a column, is taken, there are no columns, or flags have no words.
    """
    declared = {key: one if isinstance(one, Column) else Column(one) for key, one in columns.items()}

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = Metric(
            name, function, declared, curves, flags or {}, explains_again, sees_layer, passes, source,
            source_of(function),
        )  # fmt: skip
        _check_columns(entry)
        METRICS.add(entry)
        return function

    return register


def _check_columns(entry: Metric) -> None:
    if not entry.columns:
        raise ValueError(f"metric {entry.name!r} has no columns")
    if not isinstance(entry.flags, Mapping):
        raise ValueError(f"metric {entry.name!r}: flags are a dict, name -> what the flagged images are")
    for curve in entry.curves:
        if not curve.endswith(CURVE):
            raise ValueError(f"metric {entry.name!r}: the name of a curve ends in {CURVE!r}, not {curve!r}")
    for column in entry.columns:
        if column in NO_SCORES or column.endswith(IMAGE_MEAN):
            raise ValueError(f"metric {entry.name!r}: {column!r} is no score")
        for other in METRICS.values():  # rows, tables and resuming know a score by its column
            if column in other.columns and other.source_file != entry.source_file:
                raise ValueError(f"metric {entry.name!r}: {column!r} is a column of metric {other.name!r}")


def utility(name: str) -> Decorator:
    """Register a function as a utility; see :class:`Utility`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        UTILITIES.add(Utility(name, function, source_of(function)))
        return function

    return register


def model(
    name: str,
    *,
    conv: str | None = None,
    prepool: str | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    size: int | tuple[int, int] = 224,
    family: str = "",
    crop: Callable[[Any], Any] | None = None,
) -> Decorator:
    """Register a function that builds a model; see :class:`Model`."""

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        MODELS.add(Model(name, build, conv, prepool, mean, std, size, source_of(build), family, crop))
        return build

    return register


def all_columns() -> dict[str, Column]:
    """Every score column that a metric declares, in the order of registration."""
    return {name: column for entry in METRICS.values() for name, column in entry.columns.items()}
