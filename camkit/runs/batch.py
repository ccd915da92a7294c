"""What the cells of one batch share, and what is made of their values."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from camkit.data import Item
from camkit.data.batches import Batch
from camkit.entries import Method
from camkit.network.passes import TracedPass
from camkit.network.trace import Trace
from camkit.network.transfer import Moment, arriving
from camkit.results.cells import Cell, CellFailure, CellScores


def not_finite(cell: Cell, maps: Tensor, explained: Explained) -> Iterator[Callable[[], CellFailure]]:
    """Images for which a plugin's map holds NaN or infinities: named, besides counting as degenerate."""
    if not cell.method.origin:
        return
    finite = explained.of_kept(maps).flatten(1).isfinite().all(dim=1).tolist()
    wrong = tuple(item for item, fine in zip(explained.items, finite, strict=True) if not fine)
    if wrong:
        blame = f"plugin {cell.method.origin}: method {cell.method.name!r}"
        yield partial(CellFailure, cell, wrong, f"{blame}: gives values that are not finite", scored=True)


def defined(columns: Mapping[str, Tensor], optional: Container[str]) -> tuple[dict[str, Tensor], Tensor]:
    """Replace non-finite scores (B,) by NaN; also return which images (B,) have one.

    Columns in `optional` are NaN where a map has no such score.

    Logits that are not finite give no probability. Without p_c of the image none of its scores is defined;
    without that of a changed image, those that need it are not.
    """
    known = columns["probability"].isfinite()
    kept = {name: column.where(column.isfinite() & known, torch.nan) for name, column in columns.items()}
    required = [column.isnan() for name, column in kept.items() if name not in optional]
    return kept, torch.stack(required).any(dim=0)


@dataclass
class Explained:
    """What is explained of one batch, for every cell.

    Attributes:
        images: normalised, (B, 3, H, W).
        target: the classes (B,), of the padded batch.
        probability: of these classes in the pass that gave the predictions, (B,).
        kept: positions in the batch of the images whose scores are wanted.
        traced, trace: the pass, and the view of it, that the last cell had.
        changed: (module path, what the pass keeps, name of a change) -> the view, under the last utility,
            of a pass of the network that is changed behind the layer.
        others: name of what else is explained -> the view for that, in the manner of `trace`.
        regions: where the target classes are, bool (B, H, W).
        shared: what the metrics of all cells make once.
    """

    batch: Batch
    images: Tensor
    target: Tensor
    probability: Tensor
    kept: list[int]
    traced: TracedPass
    regions: Tensor | None = None
    trace: Trace | None = None
    changed: dict[tuple[str, object, str], Trace] = field(default_factory=dict)
    others: dict[str, Trace] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(self.batch.items[position] for position in self.kept)

    def of_kept(self, values: Tensor) -> Tensor:
        """Of values (B, ...) those of the kept images, without a copy where no image between is left out."""
        count = len(self.kept)
        return values[:count] if self.kept == list(range(count)) else values[self.kept]

    def scores(
        self,
        cell: Cell,
        columns: Mapping[str, Tensor],
        curves: Mapping[str, Tensor],
        flags: Mapping[str, Tensor],
        maps: Tensor | None,
        saliency: Tensor,
        moments: tuple[Moment, Moment],
    ) -> Callable[[], CellScores]:
        """A cell's results on their way to the CPU, of the kept images.

        Args:
            columns: scores, (B,); `flags`: bool, (B,).
            curves: (B, points).
            maps: signed maps (B, h, w), where the method gives any; `saliency`: (B, H, W).
            moments: when explaining began, and scoring.
        """
        stacked = [torch.stack([*some.values()], dim=1) for some in (columns, flags)]
        maps_there = [] if maps is None else [maps]
        arrived = arriving(
            [self.of_kept(one) for one in (self.target, *stacked, *curves.values(), *maps_there)]
        )
        begun, explained, scored = *moments, Moment(self.target.device)
        items, shown = self.items, self.of_kept(saliency)  # not all of this batch, until it is called

        def result() -> CellScores:
            target, scores, said, *rest = arrived()
            return CellScores(
                cell,
                items,
                tuple(target.tolist()),
                dict(zip(columns, map(tuple, scores.T.tolist()), strict=True)),
                dict(zip(curves, rest[: len(curves)], strict=True)),
                dict(zip(flags, map(tuple, said.T.tolist()), strict=True)),
                rest[-1] if maps_there else None,
                shown,
                (begun.until(explained), explained.until(scored)),
            )

        return result


@dataclass
class Made:
    """What is made once for all cells that have the same maps.

    Attributes:
        probability: p_c of the pass that the maps come from, (B,).
        found: what a metric gave; under its name, with the cell's module and utility where it sees them.
        shared: what several metrics make of the maps once.
    """

    probability: Tensor
    make: Callable[[], tuple[Tensor, Tensor]]
    found: dict[tuple[str, ...], dict[str, Tensor]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        return self.make()


def together(wanted: Mapping[Cell, Sequence[str]]) -> list[tuple[Cell, Sequence[str]]]:
    """Cells by module, utility and method, each in the order of first appearance.

    Those of two layer names for one module are neighbours: their maps need not be kept for longer.
    """
    groups: dict[tuple[str, str, Method], list[tuple[Cell, Sequence[str]]]] = {}
    for cell, metrics in wanted.items():
        groups.setdefault((cell.path, cell.utility, cell.method), []).append((cell, metrics))
    return [entry for group in groups.values() for entry in group]
