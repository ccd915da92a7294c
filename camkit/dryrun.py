"""`camkit bench --dry-run`: what is left of a run would cost, from two probe batches a model."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import pandas as pd

from camkit.benchmark import (
    OutOfMemory,
    failures_named,
    first_batch_size,
    load_batches,
    make_evaluation,
    select,
)
from camkit.config import RunConfig
from camkit.data import Item
from camkit.errors import CamkitError
from camkit.evaluate import Cell, CellScores
from camkit.pixels import Batch
from camkit.prepare import Prepared, Say, numerics, prepare
from camkit.rows import ModelRows
from camkit.share import Share
from camkit.tables import CURVE_POINTS, ODD_NAMES, UTF8, number

PROBE_STEPS = (2, 3)


def curve_points(steps: int, pixels: int) -> int:
    """Steps that deletion and insertion really take: ceil(HW / N) pixels each, until all have changed."""
    return math.ceil(pixels / math.ceil(pixels / steps))


def dry_run(config: RunConfig, say: Say) -> pd.DataFrame:
    """What is left of a run, one row a model: cells, images, passes of a batch, disk in MB, time in seconds.

    What the results folder has already is not counted. Passes grow linearly with the points of a curve,
    whatever methods and metrics are asked for: two batches at two and three steps give the line. Time is that
    of the second batch (the first warms up) per pass. Nothing is written.

    Raises:
        UsageError, CamkitError: as :func:`camkit.benchmark.bench`.
    """
    models, data, items = select(config, say)
    if config.force:  # a folder that is not there: the old results would be out of the way
        config = replace(config, out=config.out / uuid.uuid4().hex)
    estimates = []
    for name in models:
        with numerics(config.tf32, config.deterministic):
            prepared = prepare(name, config.layer, data.items, config, say)
            rows = ModelRows(prepared, config, data, items, Share())
            rows.check_protocols()
            rows.read()
            size = first_batch_size(config, prepared.network.device, len(items))
            while True:
                try:
                    estimates.append({"model": name, **_estimate(rows, prepared, size)})
                    break
                except OutOfMemory:
                    if config.batch_size != "auto" or size == 1:
                        raise
                size //= 2
    return pd.DataFrame(estimates)


def _estimate(rows: ModelRows, prepared: Prepared, size: int) -> dict[str, float]:
    groups = [(images, rows.wanted(images)) for images in rows.todo()]  # of images that lack the same
    costs = [_cost(images, wanted, prepared, rows.config, size) for images, wanted in groups]
    passes, stored, seconds = (sum(parts) for parts in zip((0, 0, 0), *costs, strict=True))
    return {
        "cells": len({cell for _, wanted in groups for cell in wanted}),
        "images": sum(len(images) for images, _ in groups),
        "batch_size": size,
        "passes": passes,
        "megabytes": round(stored / 1e6, 1),
        "seconds": round(seconds, 3),
    }


def _cost(
    images: list[Item], wanted: Mapping[Cell, Sequence[str]], prepared: Prepared, config: RunConfig, size: int
) -> tuple[int, float, float]:
    """Passes, bytes on disk and seconds of images that all lack `wanted`.

    Raises:
        CamkitError: none of them can be read, or a pass does not fit into memory.
    """
    probes = _probes(images, prepared, config, size)
    height, width = probes[0].pixels.shape[2:]  # type: ignore[union-attr]
    more_points = curve_points(config.steps, height * width) - PROBE_STEPS[0]
    passes: list[int] = []
    seconds: list[float] = []
    results: list[dict[Cell, CellScores]] = []
    for steps, batch in zip(PROBE_STEPS, probes, strict=True):
        evaluation = make_evaluation(prepared, config, size)
        evaluation.steps = steps
        before, started = prepared.network.passes, time.perf_counter()
        with failures_named(size, kept="Nothing was written."):
            made = list(evaluation.run(batch, wanted))
        results.append({result.cell: result for result in made if isinstance(result, CellScores)})
        passes.append(prepared.network.passes - before)
        seconds.append(time.perf_counter() - started)
    first, second = results
    total = math.ceil(len(images) / size) * (passes[0] + (passes[1] - passes[0]) * more_points)
    stored = sum(
        _bytes(first[cell], second[cell], more_points, config) for cell in first.keys() & second.keys()
    )
    return total, stored * len(images), total * seconds[1] / passes[1]


def _probes(images: Sequence[Item], prepared: Prepared, config: RunConfig, size: int) -> list[Batch]:
    """Two batches of images that can be read; one of them twice where there is no other."""
    decoded = load_batches(prepared, replace(config, cache=None, workers=0), images, size)
    found = list(islice((batch for batch in decoded if batch.pixels is not None), 2))
    if not found:
        raise CamkitError(f"none of the {len(images)} images could be read")
    return [found[0], found[-1]]


def _bytes(first: CellScores, second: CellScores, more_points: int, config: RunConfig) -> int:
    """What one image takes in a cell: its row, its curves, and its map where maps are saved.

    Args:
        first, second: of the probes, whose curves grow from one to the other as they will further on.
    """
    name = second.items[0].id
    row = ",".join([name, *(number(column[0]) for column in second.scores.values())])
    arrays = [second.maps[0].numel() * 4] if config.save_maps and second.maps is not None else []
    for column, curve in second.curves.items():
        before = first.curves[column].shape[1]
        points = before + (curve.shape[1] - before) * more_points
        arrays.append(points * 4 if config.curves else min(points, CURVE_POINTS) * 2)
    return len(row.encode(UTF8, ODD_NAMES)) + sum(4 * len(name) + size for size in arrays)
