"""Results folders as one typed structure: blocks of scores, aligned by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camkit.errors import Say, UsageError
from camkit.methods.altered import is_altered
from camkit.report.scores import Score, is_ceiling, is_control, known_scores, table_place
from camkit.results.columns import ROW
from camkit.results.folder import (
    FAILURES,
    MODEL_TABLES,
    PREDICTIONS,
    file_name,
    model_counts,
    read_run,
    read_scores,
    run_folders,
    top1,
)
from camkit.results.protocol import check_agreement
from camkit.results.table import merge_rows


@dataclass(frozen=True)
class Block:
    """One model, layer and utility: the methods of one block of a table.

    Attributes:
        folder: where the cells' files lie.
        source: the results folder, see :func:`source_names`.
        alone: it is the study's only results folder, which titles then need not name.
        protocol: all that decided the numbers; `segments`: with what, and when, they were made.
        methods: then the controls, then the ceilings.
        images: names, those of all methods together, in the run's order.
        values: scores as fractions, float32 (images, methods, scores); NaN where there is none.
        explained: class index that the maps explain, and its probability, (images, 2); NaN where not known.
        top1: share of labelled images that the model gets right; NaN without labels.
        flags: (method, flag) -> number of images.
        errors: number of images that could not be read.
        failures: method -> number of images on which a plugin failed.
        unknown: score columns that no metric declares.
    """

    folder: Path
    source: str
    alone: bool
    protocol: Mapping[str, Any]
    segments: Sequence[Mapping[str, Any]]
    methods: tuple[str, ...]
    scores: tuple[Score, ...]
    images: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    explained: np.ndarray = field(repr=False)
    top1: float
    flags: Mapping[tuple[str, str], int]
    errors: int
    failures: Mapping[str, int]
    unknown: tuple[str, ...]

    @property
    def model(self) -> str:
        return self.protocol["model"]

    @property
    def layer(self) -> str:
        return self.protocol["layer"]

    @property
    def utility(self) -> str:
        return self.protocol["utility"]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(score.name for score in self.scores)

    @cached_property
    def controls(self) -> np.ndarray:
        """(methods,), true for controls."""
        return np.array([is_control(name) for name in self.methods])

    @cached_property
    def ceilings(self) -> np.ndarray:
        """(methods,), true for ceilings."""
        return np.array([is_ceiling(name) for name in self.methods])

    @property
    def explaining(self) -> np.ndarray:
        """(methods,), true for those that are neither controls nor ceilings."""
        return ~(self.controls | self.ceilings)

    @property
    def of_mosaics(self) -> bool:
        """Whether the images are tiles of mosaics."""
        return self.protocol.get("mosaic") is not None

    @cached_property
    def units(self) -> tuple[str, ...]:
        """What was sampled, and is independent: the images, or the mosaics that they are tiles of."""
        return tuple(dict.fromkeys(map(self.unit_of, self.images)))

    def unit_of(self, image: str) -> str:
        """The one of :attr:`units` that an image is, or is a tile of."""
        return image.rpartition("#")[0] if self.of_mosaics else image

    @cached_property
    def sampled(self) -> np.ndarray:
        """Scores of the units, (units, methods, scores): a mosaic's are the means of its tiles'."""
        if not self.of_mosaics:
            return self.values
        place = {unit: number for number, unit in enumerate(self.units)}
        members = np.array([place[self.unit_of(image)] for image in self.images])
        known = ~np.isnan(self.values)
        total, count = np.zeros((2, len(place), *self.values.shape[1:]))
        np.add.at(total, members, np.where(known, self.values, 0))
        np.add.at(count, members, known)
        return np.divide(total, count, where=count > 0, out=np.full(total.shape, np.nan))

    @cached_property
    def counts(self) -> np.ndarray:
        """Units that have each score, (methods, scores)."""
        return (~np.isnan(self.sampled)).sum(axis=0)

    def only_units(self, units: Collection[str]) -> Block:
        """The same of some units."""
        kept = [place for place, image in enumerate(self.images) if self.unit_of(image) in units]
        return replace(
            self,
            images=tuple(self.images[place] for place in kept),
            values=self.values[kept],
            explained=self.explained[kept],
        )

    def only_methods(self, keep: Callable[[str], bool]) -> Block | None:
        """The same of some methods; None where there are none."""
        rows = [row for row, name in enumerate(self.methods) if keep(name)]
        methods = tuple(self.methods[row] for row in rows)
        return replace(self, methods=methods, values=self.values[:, rows]) if rows else None

    @property
    def name(self) -> str:
        return f"{self.model} · {self.layer} · {self.utility}" + ("" if self.alone else f" · {self.source}")

    @property
    def title(self) -> str:
        accuracy = "" if np.isnan(self.top1) else f", top-1 {100 * self.top1:.2f} %"
        return f"{self.name} ({self.size}{accuracy})"

    @property
    def unit(self) -> str:
        """What is independent of the others: an image, or a mosaic of several tiles."""
        return "mosaic" if self.of_mosaics else "image"

    @property
    def size(self) -> str:
        """How many images the methods have, and of mosaics how many these are."""
        images = count_of(*(~np.isnan(self.values)).any(axis=2).sum(axis=0))
        return f"{count_of(len(self.units), of=self.unit)}, {images}" if self.of_mosaics else images

    def describe(self) -> str:
        """The protocol in one line, for a caption."""
        p = self.protocol
        words = [f"layer {self.layer}", f"utility {self.utility}", f"target {p.get('target_rule')}"]
        words.append(self.size)
        if {"deletion_auc", "insertion_auc"} & set(self.columns):
            of = f"{p['sample']} of " if p.get("sample") else ""
            words.append(f"{of}{p.get('steps')} steps")
        return ", ".join(words)


def count_of(*counts: int, of: str = "image") -> str:
    """How many of something; of several counts from the least to the most."""
    least, most = min(counts), max(counts)
    if least < most:
        return f"{least} to {most} {of}s"
    return f"1 {of}" if most == 1 else f"{most} {of}s"


def load_study(
    folders: Sequence[Path], say: Say = lambda line: None, *, altered: bool = False
) -> list[Block]:
    """All blocks below some results folders; a folder that is named twice counts once.

    Args:
        altered: with methods whose maps were changed on purpose (:mod:`camkit.methods.altered`).
        say: takes a line for each block that is left out, having no score that a metric here declares.

    Raises:
        UsageError: a folder does not exist or holds no results, what it holds disagrees, or no block is left.
        CamkitError: a file cannot be read.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    blocks: list[Block] = []
    for folder, source in zip(folders, source_names(folders), strict=True):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        alone = len(folders) == 1
        check_agreement(folder)
        found = [block for cells in run_folders(folder) if (block := _load_block(cells, source, alone))]
        if not altered:
            found = [one for block in found if (one := block.only_methods(lambda name: not is_altered(name)))]
        if not found:
            raise UsageError(f"{folder}: no results found (camkit bench --out {folder} makes some)")
        blocks += found
    for block in blocks:
        if not block.scores:
            columns = f" ({', '.join(block.unknown)})" if block.unknown else ""
            say(f"{block.name} is left out: no metric here declares any of its scores{columns}.")
    known = [block for block in blocks if block.scores]
    if not known:
        raise UsageError("no score in these results is known here: --plugin FILE loads metrics of your own")
    return known


def source_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many folders above it as tell it from the others."""
    whole = [folder.resolve() for folder in folders]

    def ending(path: Path, parts: int) -> str:
        return str(Path(*path.parts[-parts:]))

    def shortest(path: Path) -> str:
        for parts in range(1, len(path.parts)):
            name = ending(path, parts)
            if all(other == path or ending(other, parts) != name for other in whole):
                return name
        return str(path)

    return [shortest(path) for path in whole]


def _load_block(folder: Path, source: str, alone: bool) -> Block | None:
    run = read_run(folder)
    tables = {
        method: rows
        for method in sorted(run["methods"], key=table_place)
        if (path := folder / f"{file_name(method)}.csv").exists() and len(rows := read_scores(path))
    }
    if not tables:
        return None
    methods = tuple(tables)
    images = pd.Index(
        list(dict.fromkeys(image for rows in tables.values() for image in rows.index)), dtype=object
    )
    columns = dict.fromkeys(
        c for rows in tables.values() for c in rows if c not in ROW and rows[c].notna().any()
    )
    scores = known_scores(columns)
    names = [score.name for score in scores]
    values = np.stack(
        [rows.reindex(index=images, columns=names).to_numpy(np.float32) for rows in tables.values()], axis=1
    )
    explained = np.full((len(images), 2), np.nan)
    for rows in tables.values():
        found = rows.reindex(index=images, columns=["target", "probability"]).to_numpy()
        explained = np.where(np.isnan(explained), found, explained)
    protocol = run["protocol"]
    counts = model_counts(folder, protocol)
    return Block(
        folder=folder,
        source=source,
        alone=alone,
        protocol=protocol,
        segments=run["segments"],
        methods=methods,
        scores=tuple(scores),
        images=tuple(images),
        values=values,
        explained=explained,
        top1=top1(folder.parent / PREDICTIONS),
        flags={(name, flag): n for name, found in counts["flags"].items() for flag, n in found.items()},
        errors=counts["errors"],
        failures=_failures(folder.parent / FAILURES, protocol),
        unknown=tuple(column for column in columns if column not in names),
    )


def _failures(path: Path, protocol: Mapping[str, Any]) -> dict[str, int]:
    rows = merge_rows([path], MODEL_TABLES[FAILURES][1])[1].values()
    place = (protocol["layer"], protocol["utility"])
    images = {(row["method"], row["image"]) for row in rows if (row["layer"], row["utility"]) == place}
    return dict(Counter(method for method, _ in sorted(images)))
