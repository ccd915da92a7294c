"""One batch through the network: every cell's maps and scores from as few passes as they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camkit.config import RunConfig
from camkit.data.batches import Batch, pad
from camkit.entries import METRICS, Method
from camkit.errors import PluginError
from camkit.methods.saliency import is_degenerate
from camkit.metrics import Subject
from camkit.network.layers import parts_of
from camkit.network.needs import Needs
from camkit.network.passes import TracedPass
from camkit.network.prepare import Prepared
from camkit.network.targets import Target, find_target, keeps_all
from camkit.network.transfer import Moment, arriving, sent
from camkit.results.cells import Cell, CellFailure, CellScores, Predictions, Result
from camkit.runs.batch import Explained, Made, defined, not_finite, together
from camkit.runs.guard import compute_scores, make_maps
from camkit.runs.views import Views

# What is said of a metric where maps are there already.
ONLY_MAPS = "needs maps of changed images, other classes or a changed network: use camkit bench"


def no_explanation(*_: Any, **__: Any) -> Any:
    raise PluginError(ONLY_MAPS)


class Evaluation(Views):
    """Scores batches of one model.

    Args:
        config: target rule, steps and all that methods and the game of a layer are given.
        batch_size: every pass has this many images; a smaller batch is padded.
        target: another rule than the configuration's.
        make_maps: gives a method's maps, as :func:`camkit.runs.guard.make_maps` does; another one may have
            them already.
        explains: whether methods can be asked for more than the images' own maps.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: RunConfig,
        batch_size: int,
        *,
        target: Target | None = None,
        make_maps: Callable[[Method, Any], tuple[Tensor, Tensor]] = make_maps,
        explains: bool = True,
    ) -> None:
        super().__init__(prepared, config, batch_size, make_maps)
        self.layers = {part for path in prepared.paths.values() for part in parts_of(path)}
        self.target = target or find_target(config.target)
        self.explains = explains

    def run(
        self,
        batch: Batch,
        wanted: Mapping[Cell, Sequence[str]],
        predicted_before: Mapping[str, int] | None = None,
    ) -> Iterator[Callable[[], Result]]:
        """Predictions of a batch, then the scores of every cell in the metric groups wanted for it.

        What is given has been queued on the device; to call it waits until the device has made it.

        Args:
            predicted_before: image -> class that an earlier run found: it stays, where on this machine two
                classes should be so near that the other one comes out first.
        """
        if batch.pixels is None:
            return
        images = self.preprocess.normalise(sent(pad(batch.pixels, self.batch_size), self.network.device))
        traced = self._first_pass(images, wanted)
        logits = traced.logits.detach()
        predictions, predicted = self._predictions(batch, logits, predicted_before or {})
        yield predictions
        target = self._targets(batch, logits, predicted)
        kept = self._kept(batch, predictions)
        if not kept:
            return
        probability = self.network.probability(logits, target)
        regions = self._regions(batch, target)
        explained = Explained(batch, images, target, probability, kept, traced, regions)
        made: dict[tuple[Any, ...], Made] = {}
        for cell, metrics in together(wanted):
            key, begun = _shared_by(cell), Moment(self.network.device)
            if key not in made:
                # Maps of another layer have no further cell.
                made = {one: maps for one, maps in made.items() if len(one) < 3}
                made[key] = self._make(explained, cell)
            yield from self._cell(explained, cell, metrics, made[key], begun)

    def _first_pass(self, images: Tensor, wanted: Iterable[Cell]) -> TracedPass:
        """The pass that gives the predictions: in float32 also all that the cells need, of every layer.

        Below float32 a traced layer changes the logits, as float32 begins there: no layer is traced, and a
        cell then has a pass of its own layer's, whichever others the run has.
        """
        if self.network.dtype == torch.float32:
            every = Needs(frozenset(self.layers), attention=False)
            return every.together(map(self._needs, wanted)).trace(self.network, images)
        return TracedPass(self.network.logits(images).clone(), {})  # no longer a tensor of inference mode

    def _predictions(
        self, batch: Batch, logits: Tensor, before: Mapping[str, int]
    ) -> tuple[Callable[[], Predictions], Tensor]:
        """What is said of the images, and the predicted classes (B,) of the padded batch."""
        here = logits.argmax(dim=1)
        earlier = self._column([before.get(item.id) for item in batch.items], here)
        predicted = earlier.where(earlier >= 0, here)
        probability_of = partial(self.network.probability, logits)
        columns = predicted, probability_of(predicted), here, probability_of(here)
        items = batch.items
        arrived = arriving([column[: len(items)] for column in columns])

        def result() -> Predictions:
            return Predictions(items, *(tuple(column.tolist()) for column in arrived()))

        return result, predicted

    def _kept(self, batch: Batch, predictions: Callable[[], Predictions]) -> list[int]:
        """Positions of the images that the target rule keeps; waits for the predictions if it needs them."""
        if self.target.keeps is keeps_all:
            return list(range(len(batch.items)))
        predicted = predictions().predicted
        return [
            position
            for position, item in enumerate(batch.items)
            if self.target.keeps(predicted[position], item.label)
        ]

    def _targets(self, batch: Batch, logits: Tensor, predicted: Tensor) -> Tensor:
        """The classes to explain, (B,) of the padded batch: the images' own, else by the rule."""
        self.target.expect(logits.shape[1], batch.items)
        labels = self._column([item.label for item in batch.items], predicted)
        own = self._column([item.target for item in batch.items], predicted)
        return own.where(own >= 0, self.target.class_of(logits, predicted, labels))

    def _regions(self, batch: Batch, target: Tensor) -> Tensor | None:
        """Regions (B, H, W) of the padded batch; empty where another class is explained than lies there."""
        if not self.config.has_regions:
            return None
        if batch.regions is None:  # those of all its images are broken or missing
            height, width = self.preprocess.shape[1:]
            return torch.zeros(self.batch_size, height, width, dtype=torch.bool, device=target.device)
        regions = sent(pad(batch.regions, self.batch_size), target.device)
        of = [item.label if item.target is None else item.target for item in batch.items]
        classes = self._column(of, target)
        return regions & ((classes < 0) | (classes == target))[:, None, None]

    def _column(self, values: Sequence[int | None], like: Tensor) -> Tensor:
        """Whole numbers (B,) of the padded batch, -1 for None."""
        numbers = [-1 if value is None else value for value in values]
        numbers += numbers[-1:] * (self.batch_size - len(numbers))
        return sent(torch.tensor(numbers), like.device)

    def _make(self, explained: Explained, cell: Cell) -> Made:
        view = self._without_layer(explained, cell, explained.images, draw=0)
        if view is not None:
            return Made(explained.probability, partial(self.make_maps, cell.method, view))
        trace = self._trace(explained, cell)
        probability = self.network.probability(trace.logits, explained.target)
        return Made(probability, partial(self.make_maps, cell.method, trace))

    def _subject(self, explained: Explained, cell: Cell, made: Made) -> Subject:
        """What the metrics of a cell are given.

        Raises:
            PluginError: the method fails.
        """
        maps, saliency = made.maps

        def explaining(way: Callable[..., Any]) -> Callable[..., Any]:
            return partial(way, explained, cell) if self.explains else no_explanation

        return Subject(
            images=explained.images,
            target=explained.target,
            logits=explained.traced.logits.detach(),
            probability=made.probability,
            score=lambda images: self.network.score(images, explained.target),
            logit=lambda images: self.network.logit(images, explained.target),
            options=self.config,
            saliency=saliency,
            maps=None if cell.method.saliency else maps,
            regions=explained.regions,
            image_ids=self._ids(explained),
            seed=self.config.seed,
            layer_grid=self._grid(explained, cell),
            explain_again=explaining(self._explain_again),
            explain_behind=explaining(self._explain_behind),
            explain_as=explaining(self._explain_as),
            _find_trace=partial(self._trace, explained, cell),
            _made=explained.shared,
            _of_maps=made.shared,
        )

    def _cell(
        self, explained: Explained, cell: Cell, groups: Sequence[str], made: Made, begun: Moment
    ) -> Iterator[Callable[[], CellScores | CellFailure]]:
        items = explained.items

        def failed(error: PluginError) -> Callable[[], CellFailure]:
            return partial(CellFailure, cell, items, str(error))

        try:
            subject = self._subject(explained, cell, made)
        except PluginError as error:
            yield failed(error)
            return
        maps, saliency = made.maps
        moments = begun, Moment(self.network.device)
        yield from not_finite(cell, maps, explained)
        columns = {"probability": subject.probability}
        curves: dict[str, Tensor] = {}
        flags = {"degenerate": is_degenerate(saliency), "zero_probability": subject.probability == 0}
        metrics = [METRICS[name] for name in groups]
        for metric in sorted(metrics, key=lambda metric: -len(metric.columns)):
            if columns.keys() >= set(metric.columns):  # another group has the same scores
                continue
            key = (metric.name, cell.path, cell.utility) if metric.sees_layer else (metric.name,)
            if key not in made.found:
                try:
                    made.found[key] = compute_scores(metric, subject)
                except PluginError as error:
                    yield failed(error)
                    continue
            found = made.found[key]
            columns |= {name: found[name] for name in metric.columns}
            curves |= {name: found[name] for name in metric.curves}
            flags |= {name: found[name] for name in metric.flags}
        optional = {name for metric in metrics for name, column in metric.columns.items() if column.optional}
        columns, flags["not_finite"] = defined(columns, optional)
        maps_kept = None if cell.method.saliency else maps
        yield explained.scores(cell, columns, curves, flags, maps_kept, saliency, moments)


def _shared_by(cell: Cell) -> tuple[Any, ...]:
    """What a cell has in common with all others that have the same maps."""
    if cell.method.of_image:
        return (cell.method,)
    if cell.method.of_pixels or not (cell.method.of_one_layer or len(parts_of(cell.path)) > 1):
        return (cell.method, cell.utility)
    return (cell.method, cell.path, cell.utility)
