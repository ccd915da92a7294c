"""`camkit bench --dry-run`: what a run would cost, from two probe batches a model."""

from __future__ import annotations

import math
import time
from dataclasses import replace

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
from camkit.evaluate import CellScores
from camkit.prepare import Prepared, Say, cells, numerics, prepare
from camkit.tables import number

PROBE_STEPS = (2, 3)


def curve_points(steps: int, pixels: int) -> int:
    """Steps that deletion and insertion really take: ceil(HW / N) pixels each, until all have changed."""
    return math.ceil(pixels / math.ceil(pixels / steps))


def dry_run(config: RunConfig, say: Say) -> pd.DataFrame:
    """One row a model: cells, images, network passes (of a whole batch), disk in MB and time in seconds.

    Passes grow linearly with the points of a curve, whatever methods and metrics are asked for: two batches
    at two and three steps give the line. Time is that of the second batch (the first warms up) per pass.
    Nothing is written.

    Raises:
        UsageError, CamkitError: as :func:`camkit.benchmark.bench`.
    """
    models, data, items = select(config, say)
    rows = []
    for name in models:
        with numerics(config.tf32, config.deterministic):
            prepared = prepare(name, config.layer, data.items, config, say)
            size = first_batch_size(config, prepared.network.device, len(items))
            while True:
                try:
                    rows.append({"model": name, **_estimate(prepared, config, items, size)})
                    break
                except OutOfMemory:
                    if config.batch_size != "auto" or size == 1:
                        raise
                size //= 2
    return pd.DataFrame(rows)


def _estimate(prepared: Prepared, config: RunConfig, items: list, size: int) -> dict[str, float]:
    wanted = dict.fromkeys(cells(prepared, config), config.metrics)
    probes = list(load_batches(prepared, replace(config, cache=None), (items * 2)[: 2 * size], size))
    passes, seconds, row_bytes = [], [], 0
    for steps, batch in zip(PROBE_STEPS, probes, strict=True):
        evaluation = make_evaluation(prepared, config, size)
        evaluation.steps = steps
        before, started = prepared.network.passes, time.perf_counter()
        with failures_named(size, kept="Nothing was written."):
            for result in evaluation.run(batch, wanted):
                if isinstance(result, CellScores) and result.items:
                    values = [result.items[0].id, *(number(column[0]) for column in result.scores.values())]
                    row_bytes += len(",".join(values)) if steps == PROBE_STEPS[-1] else 0
        passes.append(prepared.network.passes - before)
        seconds.append(time.perf_counter() - started)
    height, width = probes[0].pixels.shape[2:]  # type: ignore[union-attr]
    more_points = curve_points(config.steps, height * width) - PROBE_STEPS[0]
    total = math.ceil(len(items) / size) * (passes[0] + (passes[1] - passes[0]) * more_points)
    return {
        "cells": len(wanted),
        "images": len(items),
        "batch_size": size,
        "passes": total,
        "megabytes": round(row_bytes * len(items) / 1e6, 1),
        "seconds": round(total * seconds[1] / passes[1], 1),
    }
