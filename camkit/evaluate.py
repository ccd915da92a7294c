"""One batch through the network: every cell's maps and scores from as few passes as they need."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from camkit.tracing import Network, Trace, TracedPass
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

    def __init__(self, shared: Trace | Subject) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        return _lent(getattr(self._shared, name))


def _lent(value: Any) -> Any:
    """An argument as a plugin gets it."""
    if isinstance(value, Tensor):
        return value.clone()
    return _Copies(value) if isinstance(value, Trace | Subject) else value


def explain(method: Method, trace: Trace) -> tuple[Tensor, Tensor]:
    """Signed maps (B, h, w) and saliency maps (B, H, W) of a method.

    Raises:
        PluginError: a plugin's method fails, or gives something else.
    """
    images, activation = trace.images, trace.activation
    size = (images.shape[2], images.shape[3])
    grid = size if method.saliency else (activation.shape[2], activation.shape[3])
    with torch.no_grad(), blamed("method", method):
        given = method.function(_lent(trace) if method.origin else trace)
        maps = _expect_tensor(given, (len(images), *grid)).to(activation)
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


def _not_finite(cell: Cell, maps: Tensor, items: tuple[Item, ...]) -> Iterator[CellFailure]:
    """Images for which a plugin's map holds NaN or infinities: named, besides counting as degenerate."""
    if not cell.method.origin:
        return
    finite = maps.flatten(1).isfinite().all(dim=1).tolist()
    wrong = tuple(item for item, fine in zip(items, finite, strict=True) if not fine)
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


@dataclass(frozen=True)
class _Explained:
    """What is explained of one batch, for every cell.

    Attributes:
        target: the classes (B,).
        kept: positions in the batch of the images whose scores are wanted.
    """

    batch: Batch
    target: Tensor
    kept: list[int]
    subject: Subject

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(self.batch.items[position] for position in self.kept)


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
        self.explain: Callable[[Method, Trace], tuple[Tensor, Tensor]] = explain

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
        traced = self.network.trace(images, self.layers)
        probabilities = traced.logits.detach().softmax(dim=1)
        predicted = self._predicted(batch, traced.logits.detach(), predicted_before or {})
        target = self._target(batch, predicted, classes=probabilities.shape[1])
        yield Predictions(
            batch.items,
            tuple(predicted[: len(batch.items)].tolist()),
            tuple(probabilities.gather(1, predicted[:, None])[: len(batch.items), 0].tolist()),
            probabilities.shape[1],
        )
        hits = (predicted == target)[: len(batch.items)].tolist()
        kept = [position for position, hit in enumerate(hits) if hit or self.target != "correct"]
        if not kept:
            return
        subject = Subject(
            images,
            probabilities.gather(1, target[:, None])[:, 0],
            lambda changed: self.network.score(changed, target),
            self.steps,
        )
        explained = _Explained(batch, target, kept, subject)
        trace = None
        for cell, metrics in wanted.items():
            if trace is None or (trace.layer, trace.utility) != (cell.path, UTILITIES[cell.utility]):
                # What one method asks of it, the next one has.
                trace = self._view(explained, cell, images, traced, draw=0)
            yield from self._cell(explained, cell, metrics, trace)

    def _cell(
        self, explained: _Explained, cell: Cell, metrics: Sequence[str], trace: Trace
    ) -> Iterator[CellScores | CellFailure]:
        items, kept, subject = explained.items, explained.kept, explained.subject
        try:
            maps, saliency = self.explain(cell.method, trace)
        except PluginError as error:
            yield CellFailure(cell, items, str(error))
            return
        yield from _not_finite(cell, maps[kept], items)
        columns = {"probability": subject.probability}
        curves: dict[str, Tensor] = {}
        flags = {"degenerate": is_degenerate(saliency), "zero_probability": subject.probability == 0}
        again = partial(self._explain_again, explained, cell)
        for name in metrics:
            if columns.keys() >= set(METRICS[name].columns):  # another group has the same scores
                continue
            also = (None if cell.method.saliency else maps, trace) if METRICS[name].needs_trace else ()
            try:
                found = score(METRICS[name], subject, saliency, again, *also)
            except PluginError as error:
                yield CellFailure(cell, items, str(error))
                continue
            for column, value in found.items():
                kind = curves if value.ndim == 2 else flags if value.dtype == torch.bool else columns
                kind[column] = value
        optional = {column for name in metrics for column in METRICS[name].optional}
        columns, flags["not_finite"] = _defined(columns, optional)
        values = torch.stack([column.double() for column in (*columns.values(), *flags.values())])
        rows = values.cpu()[:, kept].tolist()  # one transfer
        yield CellScores(
            cell,
            items,
            tuple(explained.target[kept].tolist()),
            dict(zip(columns, map(tuple, rows[: len(columns)]), strict=True)),
            {name: curve[kept] for name, curve in curves.items()},
            {name: tuple(map(bool, row)) for name, row in zip(flags, rows[len(columns) :], strict=True)},
            None if cell.method.saliency else maps[kept],
            saliency[kept],
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

    def _view(
        self, explained: _Explained, cell: Cell, images: Tensor, traced: TracedPass, draw: int
    ) -> Trace:
        ids = [item.id for item in explained.batch.items]
        return Trace(
            images=images,
            image_ids=ids + ids[-1:] * (self.batch_size - len(ids)),
            pixels=partial(self.preprocess.denormalise, images),
            target=explained.target,
            utility=UTILITIES[cell.utility],
            seed=self.seed,
            draw=draw,
            network=self.network,
            layer=cell.path,
            absent=self.absent,
            budget=self.budget,
            _logits=traced.logits,
            _leaf=traced.leaves[cell.path],
        )

    def _explain_again(self, explained: _Explained, cell: Cell, images: Tensor) -> tuple[Tensor, Tensor]:
        """p_c (B,) and saliency maps (B, H, W) of other images, in one pass."""
        traced = self.network.trace(images, [cell.path])
        target = explained.target[:, None]
        probability = traced.logits.detach().softmax(dim=1).gather(1, target)[:, 0]
        return probability, self.explain(cell.method, self._view(explained, cell, images, traced, draw=1))[1]
