"""`camkit bench --dry-run`: what the rest of a run would cost, from two probe batches per model."""

from __future__ import annotations

import gc
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import pandas as pd
import torch

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.data.batches import Batch, pad
from camkit.errors import CamkitError, Say, UsageError
from camkit.metrics.causal import steps_taken, stride_of
from camkit.network.numerics import numerics
from camkit.network.prepare import Prepared, prepare
from camkit.network.targets import find_target, keeps_all
from camkit.results.arrays import CURVE_POINTS
from camkit.results.cells import Cell, CellScores
from camkit.results.files import ODD_NAMES, UTF8
from camkit.results.rows import ModelRows
from camkit.results.table import number
from camkit.runs.cells import cells_of_model
from camkit.runs.describe import describe_protocol
from camkit.runs.job import images_of
from camkit.runs.loop import Loop, Wanted, at_a_size_that_fits, first_batch_size, load_batches
from camkit.runs.selection import select
from camkit.share import Share

PROBES = 2
BARE_PASSES = 3


def probe_steps(steps: int, pixels: int) -> tuple[int, int]:
    """Two small numbers of steps whose curves share passes, or do not, as those of `steps` do.

    Deletion and insertion have images in common where all steps change equally many pixels.
    """
    even = pixels % stride_of(pixels, steps) == 0
    alike = [count for count in range(2, 16) if (pixels % stride_of(pixels, count) == 0) == even]
    first, second = alike[:PROBES] if len(alike) >= PROBES else (2, 3)
    return first, second


def dry_run(config: RunConfig, say: Say) -> tuple[pd.DataFrame, list[str]]:
    """What is left of a run, one row per model: cells, images, passes of a batch, disk (MB), time (seconds).

    What the results folder has already is not counted. Passes grow linearly with the points of a curve,
    whatever methods and metrics are asked for: two batches at few steps give the line. Time is that
    of the second batch (the first warms up), and what a bare scoring pass takes for each pass that it lacks;
    photos are decoded as if no cache had them, and with workers that takes no time until it takes longer than
    the network. Where the target rule leaves images out, every image that was not seen yet counts. Nothing is
    written.

    Returns:
        The table, and the names of models that failed, whose errors were said.

    Raises:
        UsageError, CamkitError: as :func:`camkit.runs.bench.bench`.
    """
    selected = select(config, say)
    config, models = selected.config, selected.models
    if find_target(config.target).keeps is not keeps_all:
        say(f"--target {config.target}: upper bounds, as if no image were left out that was not seen yet")
    if config.force:  # a folder that is not there: the old results would be out of the way
        config = replace(config, out=config.out / uuid.uuid4().hex)
    estimates, failed = [], []
    for name in models:
        try:
            with numerics(config.tf32, config.deterministic):
                estimates.append(
                    {"model": name, **_estimate(name, config, selected.data, selected.items, say)}
                )
        except UsageError:
            raise
        except CamkitError as error:
            if len(models) == 1:
                raise
            failed.append(name)
            say(f"error: {name}: {error}")
        gc.collect()  # before the next model is loaded
    return pd.DataFrame(estimates), failed


def _estimate(
    name: str, config: RunConfig, data: DataSet, items: Sequence[Item], say: Say
) -> dict[str, float]:
    prepared = prepare(name, config.layer, data.items, config, say)
    cells = {
        cell: describe_protocol(prepared, cell, config, data)
        for cell in cells_of_model(prepared, config, say)
    }
    items, order = images_of(prepared, config, data, items, say, keep=False)
    rows = ModelRows(name, cells, config, order, items, Share())
    rows.check_protocols()
    rows.read()
    size = first_batch_size(config, prepared.network.device, len(items))
    return at_a_size_that_fits(config, size, lambda size: _estimate_at(rows, prepared, size), lambda _: None)


def _estimate_at(rows: ModelRows, prepared: Prepared, size: int) -> dict[str, float]:
    groups = rows.todo()
    costs = [_cost(images, wanted, prepared, rows.config, size) for images, wanted in groups]
    passes, head_passes, stored, seconds = (sum(parts) for parts in zip((0, 0, 0, 0), *costs, strict=True))
    return {
        "cells": len({cell for _, wanted in groups for cell in wanted}),
        "images": sum(len(images) for images, _ in groups),
        "batch_size": size,
        "passes": passes,
        "head_passes": head_passes,
        "megabytes": round(stored / 1e6, 1),
        "seconds": round(seconds, 3),
    }


@dataclass(frozen=True)
class _Probe:
    """What one batch took, and gave."""

    passes: int
    head_passes: int
    seconds: float
    scores: dict[Cell, CellScores]


def _cost(
    images: list[Item], wanted: Wanted, prepared: Prepared, config: RunConfig, size: int
) -> tuple[int, int, float, float]:
    """Passes, head passes, bytes on disk and seconds of images that all lack `wanted`.

    Raises:
        CamkitError: none of them can be read, or a pass does not fit into memory.
    """
    batches, decoding = _probe_batches(images, prepared, config, size)
    height, width = batches[0].pixels.shape[2:]  # type: ignore[union-attr]
    points = steps_taken(height * width, config.steps)
    few, some = probe_steps(config.steps, height * width)
    # How many times what the second probe has beyond the first.
    more_points = (points - few) / (some - few)
    more_scored = (min(config.sample + 1, points) - few) / (some - few) if config.sample else more_points
    first, second = (
        _probe(batch, wanted, prepared, replace(config, steps=steps, sample=None), size)
        for steps, batch in zip((few, some), batches, strict=True)
    )
    bare = _bare_seconds(batches[1], prepared, size)
    passes = first.passes + round((second.passes - first.passes) * more_scored)
    count = math.ceil(len(images) / size)
    seconds = count * (second.seconds + max(0, passes - second.passes) * bare)
    decoding *= len(images)
    workers = min(config.workers, count)
    stored = sum(
        _bytes(first.scores[cell], second.scores[cell], more_points, config)
        for cell in first.scores.keys() & second.scores.keys()
    )
    return (
        count * passes,
        count * second.head_passes,
        stored * len(images),
        max(seconds, decoding / workers) if workers else seconds + decoding,
    )


def _probe(batch: Batch, wanted: Wanted, prepared: Prepared, config: RunConfig, size: int) -> _Probe:
    # Every image is kept: the probes' few images do not say how many the model gets right.
    target = replace(find_target(config.target), keeps=keeps_all)
    loop = Loop(prepared, config, size, kept="Nothing was written.", target=target)
    with loop.failures_named():
        made = [result() for result in loop.evaluation.run(batch, wanted)]
    took = loop.took()
    return _Probe(
        int(took["passes"]),
        int(took["head_passes"]),
        took["seconds"],
        {result.cell: result for result in made if isinstance(result, CellScores)},
    )


def _bare_seconds(batch: Batch, prepared: Prepared, size: int) -> float:
    """What a scoring pass of a batch takes, to its result in the CPU's memory."""
    assert batch.pixels is not None
    network = prepared.network
    images = prepared.loaded.preprocess.normalise(pad(batch.pixels, size).to(network.device))
    target = torch.zeros(size, dtype=torch.int64, device=network.device)
    times = []
    for _ in range(BARE_PASSES):
        started = time.perf_counter()
        network.score(images, target).tolist()
        times.append(time.perf_counter() - started)
    return median(times)


def _probe_batches(
    images: Sequence[Item], prepared: Prepared, config: RunConfig, size: int
) -> tuple[list[Batch], float]:
    """Two batches of images that can be read, and the seconds that one image takes to decode.

    Where there is but one batch, it is there twice.
    """
    loader = load_batches(prepared, replace(config, cache=None, workers=0), images, size)
    found: list[Batch] = []
    decoding: list[float] = []
    started = time.perf_counter()
    for batch in loader:
        if batch.pixels is not None:
            found.append(batch)
            decoding.append((time.perf_counter() - started) / len(batch.items))
        if len(found) == PROBES:
            break
        started = time.perf_counter()
    if not found:
        raise CamkitError(f"none of the {len(images)} images could be read")
    return [found[0], found[-1]], min(decoding)  # the first photo of all also loads what decodes it


def _bytes(first: CellScores, second: CellScores, more_points: float, config: RunConfig) -> int:
    """What one image takes in a cell: its row, its curves, and its map where maps are saved.

    Args:
        first, second: of the probes, whose curves grow from one to the other as they will further on.
    """
    name = second.items[0].id
    row = ",".join([name, *(number(column[0]) for column in second.scores.values())])
    arrays = [second.maps[0].numel() * 4] if config.save_maps and second.maps is not None else []
    for column, curve in second.curves.items():
        before = first.curves[column].shape[1]
        points = before + round((curve.shape[1] - before) * more_points)
        arrays.append(points * 4 if config.curves else min(points, CURVE_POINTS) * 2)
    return len(row.encode(UTF8, ODD_NAMES)) + sum(4 * len(name) + size for size in arrays)
