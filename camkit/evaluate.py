"""One batch through the network: every cell's maps and scores from as few passes as they need."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from camkit.config import DEFAULT_BUDGET
from camkit.data import Item
from camkit.errors import PluginError, UsageError
from camkit.metrics import Subject
from camkit.pixels import Batch, Preprocess, pad
from camkit.plugins import blamed
from camkit.registry import METRICS, Method, Metric
from camkit.saliency import is_degenerate, to_saliency
from camkit.tracing import ImageView, Network, Trace, TracedPass
from camkit.utilities import UTILITIES

NOT_FINITE = "gives values that are not finite"
# How far outside [0, 1] a plugin's saliency may lie: resizing and dividing leave the last bits there.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Cell:
    """One row of a table: `layer` is what the user calls it, `path` the module it stands for."""

    layer: str
    path: str
    utility: str
    method: Method


@dataclass(frozen=True)
class Predictions:
    """What the model says of the images as they are.

    Attributes:
        predicted: class indices.
        probability: of the predicted class.
        classes: how many the model has.
    """

    items: tuple[Item, ...]
    predicted: tuple[int, ...]
    probability: tuple[float, ...]
    classes: int


@dataclass(frozen=True)
class CellScores:
    """One cell's results for one batch.

    Attributes:
        target: the explained classes.
        scores: column -> one value an image.
        curves: name -> (B, points), what a metric's score is the summary of.
        flags: name (as `degenerate`) -> the images it holds for, true or false.
        maps: signed maps (B, h, w) at the layer's resolution; None for methods that give saliency maps.
        saliency: saliency maps (B, H, W).
    """

    cell: Cell
    items: tuple[Item, ...]
    target: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]
    curves: Mapping[str, Tensor]
    flags: Mapping[str, tuple[bool, ...]]
    maps: Tensor | None
    saliency: Tensor


@dataclass(frozen=True)
class CellFailure:
    """What a plugin did wrong in one cell, on one batch or on some of its images."""

    cell: Cell
    items: tuple[Item, ...]
    reason: str


Result = Predictions | CellScores | CellFailure


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
    return _Copies(value) if isinstance(value, ImageView | Subject) else value


def explain(method: Method, view: ImageView) -> tuple[Tensor, Tensor]:
    """Signed maps (B, h, w) and saliency maps (B, H, W) of a method.

    Args:
        view: a :class:`camkit.tracing.Trace`, but for methods that are `of_image`.

    Raises:
        PluginError: a plugin's method fails, or gives something else.
    """
    like = view.activation if isinstance(view, Trace) else view.images
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


def score(metric: Metric, subject: Subject, *arguments: Any) -> dict[str, Tensor]:
    """What a metric gives: its columns (B,), and beside them flags (B,) of bool and curves (B, points).

    Raises:
        PluginError: a plugin's metric, or a plugin's method that it calls again, fails or gives something
            else.
    """
    with blamed("metric", metric):
        given = [subject, *arguments]
        found = metric.function(*(map(_lent, given) if metric.origin else given))
        if not isinstance(found, Mapping):
            raise PluginError(f"gives {type(found).__name__}, expected a dict of columns")
        for name in metric.columns:
            if name not in found:
                raise PluginError(f"gives {', '.join(map(repr, found)) or 'nothing'}, expected {name!r}")
        return {name: _column(metric, name, value, subject.probability) for name, value in found.items()}


def _column(metric: Metric, name: str, value: object, like: Tensor) -> Tensor:
    """A column in the number format of `like` (B,); a flag or a curve as it is."""
    if name in metric.columns:
        return _expect_tensor(value, like.shape, name).to(like)
    if isinstance(value, Tensor):
        is_flag = value.shape == like.shape and value.dtype == torch.bool
        if is_flag or (value.ndim == 2 and len(value) == len(like)):
            return value.detach().to(like.device)
    raise PluginError(
        f"gives {_described(value)} as {name!r}, which is none of its columns: expected a flag, "
        f"({len(like)},) of bool, or a curve, ({len(like)}, points)"
    )


def _not_finite(cell: Cell, maps: Tensor, explained: _Explained) -> Iterator[CellFailure]:
    """Images for which a plugin's map holds NaN or infinities: named, besides counting as degenerate."""
    if not cell.method.origin:
        return
    finite = explained.of_kept(maps).flatten(1).isfinite().all(dim=1).tolist()
    wrong = tuple(item for item, fine in zip(explained.items, finite, strict=True) if not fine)
    if wrong:
        reason = f"plugin {cell.method.origin}: method {cell.method.name!r}: {NOT_FINITE}"
        yield CellFailure(cell, wrong, reason)


def _defined(columns: Mapping[str, Tensor], optional: Container[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Scores (B,) with NaN for whatever is not finite, and where (B,) there is such a one.

    Columns in `optional` are NaN where a map has no such score.

    Logits that are not finite give no probability. Without p_c of the image none of its scores is defined;
    without that of a changed image, those that need it are not.
    """
    known = columns["probability"].isfinite()
    kept = {name: column.where(column.isfinite() & known, torch.nan) for name, column in columns.items()}
    required = [column.isnan() for name, column in kept.items() if name not in optional]
    return kept, torch.stack(required).any(dim=0)


def _of_target(logits: Tensor, target: Tensor) -> Tensor:
    """p_c (B,) of logits (B, K)."""
    return logits.detach().softmax(dim=1).gather(1, target[:, None])[:, 0]


@dataclass
class _Explained:
    """What is explained of one batch, for every cell.

    Attributes:
        target: the classes (B,).
        kept: positions in the batch of the images whose scores are wanted.
        classes: their target classes.
        subject: with p_c of the pass that gave the predictions.
        traced, trace: the pass, and the view of it, that the last cell had.
    """

    batch: Batch
    target: Tensor
    kept: list[int]
    classes: tuple[int, ...]
    subject: Subject
    traced: TracedPass
    trace: Trace | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(self.batch.items[position] for position in self.kept)

    def of_kept(self, values: Tensor) -> Tensor:
        """Of values (B, ...) those of the kept images, without a copy where no image between is left out."""
        count = len(self.kept)
        return values[:count] if self.kept == list(range(count)) else values[self.kept]


@dataclass
class _Made:
    """What is made once for all cells that have the same maps.

    Attributes:
        found: what a metric gave; under its name, with the cell's module and utility where it sees them.
    """

    subject: Subject
    explain: Callable[[], tuple[Tensor, Tensor]]
    found: dict[tuple[str, ...], dict[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        return self.explain()


def _together(wanted: Mapping[Cell, Sequence[str]]) -> list[tuple[Cell, Sequence[str]]]:
    """Cells by module, utility and method, each in the order of first appearance.

    Those of two layer names for one module are neighbours: their maps need not be kept for longer.
    """
    groups: dict[tuple[str, str, Method], list[tuple[Cell, Sequence[str]]]] = {}
    for cell, metrics in wanted.items():
        groups.setdefault((cell.path, cell.utility, cell.method), []).append((cell, metrics))
    return [entry for group in groups.values() for entry in group]


class Evaluation:
    """Scores batches of one model.

    Args:
        layers: module paths to trace.
        target: `predicted`, `label` or `correct`.
        batch_size: every pass has this many images; a smaller batch is padded.
        steps: N of deletion and insertion.
        seed: of random methods.
        absent, budget: of Shapley values, see :class:`camkit.tracing.Trace`.

    Attributes:
        explain: gives a method's maps, as :func:`explain` does; another one may have them already.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocess,
        layers: Sequence[str],
        *,
        target: str = "predicted",
        batch_size: int = 32,
        steps: int = 224,
        seed: int = 0,
        absent: str = "zero",
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        self.network = network
        self.preprocess = preprocess
        self.layers = layers
        self.target = target
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.absent = absent
        self.budget = budget
        self.explain: Callable[[Method, Any], tuple[Tensor, Tensor]] = explain

    def run(
        self,
        batch: Batch,
        wanted: Mapping[Cell, Sequence[str]],
        predicted_before: Mapping[str, int] | None = None,
    ) -> Iterator[Result]:
        """Predictions of a batch, then the scores of every cell in the metric groups wanted for it.

        Args:
            predicted_before: image -> class that an earlier run found: it stays, where on this machine two
                classes should be so near that the other one comes out first.
        """
        if batch.pixels is None:
            return
        pixels = pad(batch.pixels, self.batch_size).to(self.network.device, non_blocking=True)
        images = self.preprocess.normalise(pixels)
        traced = self._first_pass(images)
        logits = traced.logits.detach()
        predicted = self._predicted(batch, logits, predicted_before or {})
        target = self._target(batch, predicted, classes=logits.shape[1])
        count = len(batch.items)
        best, classes = predicted[:count].tolist(), target[:count].tolist()
        yield Predictions(
            batch.items,
            tuple(best),
            tuple(_of_target(logits, predicted)[:count].tolist()),
            logits.shape[1],
        )
        pairs = enumerate(zip(best, classes, strict=True))
        kept = [position for position, (one, other) in pairs if one == other or self.target != "correct"]
        if not kept:
            return
        explained = _Explained(
            batch,
            target,
            kept,
            tuple(classes[position] for position in kept),
            Subject(
                images,
                _of_target(logits, target),
                lambda changed: self.network.score(changed, target),
                self.steps,
            ),
            traced,
        )
        made: dict[tuple[Any, ...], _Made] = {}
        for cell, metrics in _together(wanted):
            key = (cell.method,) if cell.method.of_image else (cell.method, cell.path, cell.utility)
            if key not in made:
                # Maps of another layer or utility have no further cell.
                made = {one: maps for one, maps in made.items() if len(one) == 1}
                made[key] = self._make(explained, cell)
            yield from self._cell(explained, cell, metrics, made[key])

    def _first_pass(self, images: Tensor) -> TracedPass:
        """The pass that gives the predictions: in float32 also every layer's activation.

        Below float32 a traced layer changes the logits, as float32 begins there: no layer is traced, and a
        cell then has a pass of its own layer's, whichever others the run has.
        """
        if self.network.dtype == torch.float32:
            return self.network.trace(images, self.layers)
        return TracedPass(self.network.logits(images).clone(), {})  # no longer a tensor of inference mode

    def _make(self, explained: _Explained, cell: Cell) -> _Made:
        if cell.method.of_image:
            view = ImageView(**self._seen(explained, explained.subject.images, draw=0))
            return _Made(explained.subject, partial(self.explain, cell.method, view))
        trace = self._trace(explained, cell)
        subject = replace(explained.subject, probability=_of_target(trace.logits, explained.target))
        return _Made(subject, partial(self.explain, cell.method, trace))

    def _trace(self, explained: _Explained, cell: Cell) -> Trace:
        """The trace of a cell's layer and utility: what one method or metric asks of it, the next one has."""
        trace = explained.trace
        if trace is None or (trace.layer, trace.utility) != (cell.path, UTILITIES[cell.utility]):
            images = explained.subject.images
            if cell.path not in explained.traced.leaves:
                explained.traced = self.network.trace(images, [cell.path])
            trace = explained.trace = self._view(explained, cell, images, explained.traced, draw=0)
        return trace

    def _cell(
        self, explained: _Explained, cell: Cell, metrics: Sequence[str], made: _Made
    ) -> Iterator[CellScores | CellFailure]:
        items, subject = explained.items, made.subject
        try:
            maps, saliency = made.maps
        except PluginError as error:
            yield CellFailure(cell, items, str(error))
            return
        yield from _not_finite(cell, maps, explained)
        columns = {"probability": subject.probability}
        curves: dict[str, Tensor] = {}
        flags = {"degenerate": is_degenerate(saliency), "zero_probability": subject.probability == 0}
        again = partial(self._explain_again, explained, cell)
        for name in sorted(metrics, key=lambda name: -len(METRICS[name].columns)):
            metric = METRICS[name]
            if columns.keys() >= set(metric.columns):  # another group has the same scores
                continue
            key = (name, cell.path, cell.utility) if metric.needs_trace else (name,)
            if key not in made.found:
                signed = None if cell.method.saliency else maps
                also = (signed, self._trace(explained, cell)) if metric.needs_trace else ()
                try:
                    made.found[key] = score(metric, subject, saliency, again, *also)
                except PluginError as error:
                    yield CellFailure(cell, items, str(error))
                    continue
            for column, value in made.found[key].items():
                kind = curves if value.ndim == 2 else flags if value.dtype == torch.bool else columns
                kind[column] = value
        optional = {column for name in metrics for column in METRICS[name].optional}
        columns, flags["not_finite"] = _defined(columns, optional)
        values = torch.stack([column.double() for column in (*columns.values(), *flags.values())])
        rows = values.cpu()[:, explained.kept].tolist()  # one transfer
        yield CellScores(
            cell,
            items,
            explained.classes,
            dict(zip(columns, map(tuple, rows[: len(columns)]), strict=True)),
            {name: explained.of_kept(curve) for name, curve in curves.items()},
            {name: tuple(map(bool, row)) for name, row in zip(flags, rows[len(columns) :], strict=True)},
            None if cell.method.saliency else explained.of_kept(maps),
            explained.of_kept(saliency),
        )

    def _predicted(self, batch: Batch, logits: Tensor, before: Mapping[str, int]) -> Tensor:
        predicted = logits.argmax(dim=1)
        fixed = [before.get(item.id, -1) for item in batch.items]
        fixed += [-1] * (self.batch_size - len(fixed))
        earlier = torch.tensor(fixed, device=predicted.device)
        return earlier.where(earlier >= 0, predicted)

    def _target(self, batch: Batch, predicted: Tensor, classes: int) -> Tensor:
        if self.target == "predicted":
            return predicted
        labels = [-1 if item.label is None else item.label for item in batch.items]
        if max(labels) >= classes:
            raise UsageError(
                f"the data has class {max(labels)}, the model gives {classes} classes: use --target predicted"
            )
        labels += labels[-1:] * (self.batch_size - len(labels))
        return torch.tensor(labels, device=predicted.device)

    def _seen(self, explained: _Explained, images: Tensor, draw: int) -> dict[str, Any]:
        """The fields of an image view."""
        ids = [item.id for item in explained.batch.items]
        return {
            "images": images,
            "image_ids": ids + ids[-1:] * (self.batch_size - len(ids)),
            "pixels": partial(self.preprocess.denormalise, images),
            "target": explained.target,
            "seed": self.seed,
            "draw": draw,
            "network": self.network,
        }

    def _view(
        self, explained: _Explained, cell: Cell, images: Tensor, traced: TracedPass, draw: int
    ) -> Trace:
        return Trace(
            **self._seen(explained, images, draw),
            utility=UTILITIES[cell.utility],
            layer=cell.path,
            absent=self.absent,
            budget=self.budget,
            _logits=traced.logits,
            _leaf=traced.leaves[cell.path],
        )

    def _explain_again(self, explained: _Explained, cell: Cell, images: Tensor) -> tuple[Tensor, Tensor]:
        """p_c (B,) and saliency maps (B, H, W) of other images, in one pass."""
        if cell.method.of_image:
            view = ImageView(**self._seen(explained, images, draw=1))
            return explained.subject.score(images), self.explain(cell.method, view)[1]
        traced = self.network.trace(images, [cell.path])
        view = self._view(explained, cell, images, traced, draw=1)
        return _of_target(traced.logits, explained.target), self.explain(cell.method, view)[1]
