"""`camkit score`: scores from the maps that a run saved, without explaining again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from camkit.benchmark import first_batch_size, load_batches, make_evaluation
from camkit.config import RunConfig
from camkit.data import DataSet, find_images
from camkit.errors import UsageError
from camkit.evaluate import Cell, Predictions
from camkit.lock import hold
from camkit.merge import refresh_summary
from camkit.plugins import load_plugins
from camkit.prepare import Say, numerics, prepare
from camkit.provenance import as_it_ran
from camkit.registry import METHODS, METRICS
from camkit.results import file_name, read_run, run_folders
from camkit.run import ModelRun
from camkit.share import Share
from camkit.tracing import Trace


def rescore(
    out: Path,
    *,
    metrics: Sequence[str],
    data: str,
    say: Say,
    weights: str = "pretrained",
    batch_size: int = 32,
    device: str = "auto",
    plugin: Sequence[str] = (),
) -> pd.DataFrame:
    """Add scores to every cell of a results folder that has saved maps.

    Args:
        metrics: groups of scores; those that explain changed images (`adcc`) cannot be had from saved maps.
        data: the images of the run; they are compared with its fingerprint.
        weights: the file, where the run's weights came from one.

    Returns:
        The folder's summary.

    Raises:
        UsageError: there are no saved maps, a metric needs more than maps, or the data are others.
        CamkitError: as :func:`camkit.benchmark.bench`.
    """
    load_plugins(plugin)
    for name in metrics:
        METRICS[name]
    folders = {folder: saved for folder in run_folders(out) if (saved := _saved_maps(folder))}
    if not folders:
        raise UsageError(f"{out} holds no saved maps: they are written by camkit bench --save-maps")
    for folder, saved in folders.items():
        config = RunConfig(model=(), weights=weights, data=data, device=device, plugin=tuple(plugin), out=out)
        config = replace(
            as_it_ran(folder, config), method=tuple(saved), metrics=tuple(metrics), batch_size=batch_size
        )
        _rescore_folder(config, saved, find_images(data, config.seed), say)
    return refresh_summary(out)


def _saved_maps(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Method -> image -> map (h, w)."""
    found = {}
    for method in read_run(folder)["methods"]:
        path = folder / f"{file_name(method)}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as saved:
                found[method] = dict(zip(saved["images"].tolist(), saved["maps"], strict=True))
    return found


def _rescore_folder(
    config: RunConfig, saved: Mapping[str, Mapping[str, np.ndarray]], data: DataSet, say: Say
) -> None:
    everywhere = set.intersection(*(set(maps) for maps in saved.values()))
    items = [item for item in data.items if item.id in everywhere]
    if not items:
        raise UsageError(f"none of the images in --data {config.data} has a saved map in {config.out}")
    (name,) = config.model
    with hold(config.out / file_name(name)), numerics(config.tf32, config.deterministic) as record:
        prepared = prepare(name, config.layer, data.items, config, say)
        run = ModelRun(prepared, config, data, items, Share())
        size = first_batch_size(config, prepared.network.device, len(items))
        evaluation = make_evaluation(prepared, config, size)
        originals = {_with_saved_map(cell, saved): cell for cell in run.cells}
        run.start(size, record, say)
        started, passes = time.perf_counter(), prepared.network.passes
        for batch in load_batches(prepared, config, items, size):
            wanted = run.wanted(batch.items)
            lacking = {new: wanted[cell] for new, cell in originals.items() if cell in wanted}
            for result in evaluation.run(batch, lacking, run.predicted):
                if not isinstance(result, Predictions):
                    result = replace(result, cell=originals[result.cell])
                run.write(result)
        seconds = time.perf_counter() - started
        counts = {"images": len(items), "seconds": seconds, "waiting_seconds": 0.0}
        run.end(counts | {"passes": prepared.network.passes - passes})
        run.finish()


def _with_saved_map(cell: Cell, saved: Mapping[str, Mapping[str, np.ndarray]]) -> Cell:
    function: Any = partial(_saved_map, cell.method.name, saved[cell.method.name])
    return replace(cell, method=replace(METHODS[cell.method.name], function=function))


def _saved_map(method: str, maps: Mapping[str, np.ndarray], trace: Trace) -> Tensor:
    if trace.draw:
        raise UsageError(
            f"a score asks for {method} on changed images, and only maps of the images themselves are saved: "
            "use camkit bench"
        )
    return torch.as_tensor(np.stack([maps[name] for name in trace.image_ids])).to(trace.activation)
