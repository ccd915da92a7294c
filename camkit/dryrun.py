"""`camkit bench --dry-run`: what is left of a run would cost, from two probe batches a model."""

from __future__ import annotations

import gc
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import pandas as pd
import torch

from camkit.benchmark import (
    OutOfMemory,
    Timed,
    failures_named,
    first_batch_size,
    load_batches,
    make_evaluation,
    select,
)
from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import Cell, CellScores
from camkit.pixels import Batch, pad
from camkit.prepare import Prepared, Say, numerics, prepare
from camkit.rows import ModelRows
from camkit.share import Share
from camkit.tables import CURVE_POINTS, ODD_NAMES, UTF8, number

PROBE_STEPS = (2, 3)
BARE_PASSES = 3


def curve_points(steps: int, pixels: int) -> int:
    """Steps that deletion and insertion really take: ceil(HW / N) pixels each, until all have changed."""
    return math.ceil(pixels / math.ceil(pixels / steps))


def dry_run(config: RunConfig, say: Say) -> tuple[pd.DataFrame, list[str]]:
    """What is left of a run, one row a model: cells, images, passes of a batch, disk in MB, time in seconds.

    What the results folder has already is not counted. Passes grow linearly with the points of a curve,
    whatever methods and metrics are asked for: two batches at two and three steps give the line. Time is that
    of the second batch (the first warms up), and what a bare scoring pass takes for each pass that it lacks;
    photos are decoded as if no cache had them, and with workers that takes no time until it takes longer than
    the network. Under `--target correct` every image counts as if the model got it right. Nothing is written.

    Returns:
        The table, and the names of models that failed, whose errors were said.

    Raises:
        UsageError, CamkitError: as :func:`camkit.benchmark.bench`.
    """
    models, data, items = select(config, say)
    if config.target == "correct":
        say("--target correct: upper bounds, as if the model got every image right that it has not seen yet")
    if config.force:  # a folder that is not there: the old results would be out of the way
        config = replace(config, out=config.out / uuid.uuid4().hex)
    estimates, failed = [], []
    for name in models:
        try:
            with numerics(config.tf32, config.deterministic):
                estimates.append({"model": name, **_estimate(name, config, data, items, say)})
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
    rows = ModelRows(prepared, config, data, items, Share())
    rows.check_protocols()
    rows.read()
    size = first_batch_size(config, prepared.network.device, len(items))
    while True:
        try:
            return _estimate_at(rows, prepared, size)
        except OutOfMemory:
            if config.batch_size != "auto" or size == 1:
                raise
        size //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _estimate_at(rows: ModelRows, prepared: Prepared, size: int) -> dict[str, float]:
    groups = [(images, rows.wanted(images)) for images in rows.todo()]  # of images that lack the same
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
    images: list[Item], wanted: Mapping[Cell, Sequence[str]], prepared: Prepared, config: RunConfig, size: int
) -> tuple[int, int, float, float]:
    """Passes, head passes, bytes on disk and seconds of images that all lack `wanted`.

    Raises:
        CamkitError: none of them can be read, or a pass does not fit into memory.
    """
    batches, decoding = _probe_batches(images, prepared, config, size)
    height, width = batches[0].pixels.shape[2:]  # type: ignore[union-attr]
    more_points = curve_points(config.steps, height * width) - PROBE_STEPS[0]
    with failures_named(size, kept="Nothing was written."):
        first, second = (
            _probe(batch, wanted, prepared, config, size, steps)
            for steps, batch in zip(PROBE_STEPS, batches, strict=True)
        )
        bare = _bare_seconds(batches[1], prepared, size)
    passes = first.passes + (second.passes - first.passes) * more_points
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


def _probe(
    batch: Batch,
    wanted: Mapping[Cell, Sequence[str]],
    prepared: Prepared,
    config: RunConfig,
    size: int,
    steps: int,
) -> _Probe:
    # Whether the model gets an image right or not: the probes' few images say nothing of the others.
    target = "label" if config.target == "correct" else config.target
    evaluation = make_evaluation(prepared, replace(config, target=target, steps=steps), size)
    network = prepared.network
    passes, head_passes, started = network.passes, network.head_passes, time.perf_counter()
    made = list(evaluation.run(batch, wanted))
    return _Probe(
        network.passes - passes,
        network.head_passes - head_passes,
        time.perf_counter() - started,
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
    loader = Timed(load_batches(prepared, replace(config, cache=None, workers=0), images, size))
    found: list[Batch] = []
    decoding: list[float] = []
    waited = 0.0
    for batch in loader:
        seconds, waited = loader.seconds - waited, loader.seconds
        if batch.pixels is not None:
            found.append(batch)
            decoding.append(seconds / len(batch.items))
        if len(found) == len(PROBE_STEPS):
            break
    if not found:
        raise CamkitError(f"none of the {len(images)} images could be read")
    return [found[0], found[-1]], min(decoding)  # the first photo of all also loads what decodes it


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
