"""`camkit score`: scores from the maps that a run saved, without explaining again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from camkit.benchmark import (
    failures_named,
    first_batch_size,
    load_batches,
    make_evaluation,
    what_failed,
)
from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import PluginError, UsageError
from camkit.evaluate import Cell
from camkit.lock import hold
from camkit.merge import refresh_summary
from camkit.plugins import load_plugins
from camkit.prepare import Say, numerics, prepare
from camkit.provenance import as_it_ran
from camkit.registry import METRICS, Method
from camkit.results import file_name, read_run, run_folders
from camkit.run import ModelRun
from camkit.saliency import to_saliency
from camkit.share import Share
from camkit.tables import Maps
from camkit.tracing import Trace

SavedMaps = Mapping[str, Mapping[str, np.ndarray]]  # method -> image -> map (h, w)
# Images together of which the same cells lack the same scores: (cell, metric groups) -> images.
Groups = Mapping[tuple[tuple[Cell, tuple[str, ...]], ...], list[Item]]


def rescore(
    out: Path,
    *,
    metrics: Sequence[str],
    data: str,
    say: Say,
    layout: str | None = None,
    labels: Path | None = None,
    weights: str = "pretrained",
    batch_size: int = 32,
    device: str = "auto",
    plugin: Sequence[str] = (),
) -> pd.DataFrame:
    """Add scores to every cell of a results folder that has saved maps, for the images that have one.

    Args:
        metrics: groups of scores; those that explain changed images (`adcc`) cannot be had from saved maps.
        data, layout, labels: the images of the run; they are compared with its fingerprint.
        weights: the file, where the run's weights came from one.

    Returns:
        The folder's summary.

    Raises:
        UsageError: there are no saved maps, a metric needs more than maps, or the data are others.
        CamkitError: as :func:`camkit.benchmark.bench`.
        PluginError: a plugin's metric failed; all other rows and the summary are written.
    """
    load_plugins(plugin)
    for name in metrics:
        METRICS[name]
    if "adcc" in metrics:
        raise UsageError(
            "adcc explains the masked images, and only maps of the images themselves are saved: "
            "use camkit bench --metrics adcc"
        )
    folders = {folder: _saved_maps(folder) for folder in run_folders(out)}
    if not any(folders.values()):
        raise UsageError(f"{out} holds no saved maps: they are written by camkit bench --save-maps")
    given = RunConfig(
        model=(),
        weights=weights,
        data=data,
        layout=layout,
        labels=labels,
        device=device,
        plugin=tuple(plugin),
        out=out,
    )
    failures: list[str] = []
    try:
        for folder, saved in folders.items():
            run = read_run(folder)
            without = [method for method in run["methods"] if method not in saved]
            if without:
                say(f"{folder}: no saved maps of {', '.join(without)} (saliency methods have none)")
            if not saved:
                continue
            config = replace(
                as_it_ran(folder, given), method=tuple(saved), metrics=tuple(metrics), batch_size=batch_size
            )
            found = find_images(data, config.seed, layout, labels)
            if found.fingerprint != run["protocol"]["data_fingerprint"]:
                raise UsageError(f"--data {data} is not the data of this run (another fingerprint)")
            failures += _rescore_folder(config, saved, found, say)
    finally:
        summary = refresh_summary(out)
    if failures:
        raise what_failed([], failures, len(folders), out)
    return summary


def _saved_maps(folder: Path) -> dict[str, Path]:
    """Method -> the file with its maps."""
    files = {method: folder / f"{file_name(method)}.npz" for method in read_run(folder)["methods"]}
    return {method: path for method, path in files.items() if path.exists()}


def _rescore_folder(config: RunConfig, files: Mapping[str, Path], data: DataSet, say: Say) -> list[str]:
    """Score the maps of one folder; what plugins did wrong, a line each."""
    (name,) = config.model
    with hold(config.out / file_name(name)), numerics(config.tf32, config.deterministic) as record:
        there = {method: Maps(path) for method, path in files.items()}
        prepared = prepare(name, config.layer, data.items, config, say)
        run = ModelRun(prepared, config, data, data.items, Share())
        groups = _groups(run, there)
        images = sum(map(len, groups.values()))
        if not images:
            say(f"{name}: nothing to do, all maps have these scores")
            return []
        size = first_batch_size(config, prepared.network.device, images)
        evaluation = make_evaluation(prepared, config, size)
        evaluation.explain = partial(_explain_saved, _wanted_maps(groups, there))
        run.start(size, record, say)
        network = prepared.network
        started, passes, head_passes = time.perf_counter(), network.passes, network.head_passes
        with failures_named(size):
            for wanted, items in groups.items():
                for batch in load_batches(prepared, config, items, size):
                    for item, reason in batch.errors:
                        say(f"{item.source}: {reason}")
                    for result in evaluation.run(batch, dict(wanted), run.predicted):
                        run.write(result)
        counts = {
            "images": images,
            "seconds": time.perf_counter() - started,
            "waiting_seconds": 0.0,
            "passes": network.passes - passes,
            "head_passes": network.head_passes - head_passes,
        }
        run.end(counts)
        run.finish()
        return run.failure_lines()


def _groups(run: ModelRun, saved: Mapping[str, Maps]) -> Groups:
    """Images together of which the same cells have a map and lack scores: (cell, metric groups) -> images."""
    groups: dict[tuple[tuple[Cell, tuple[str, ...]], ...], list[Item]] = {}
    for item in run.items:
        wanted = tuple(
            (cell, tuple(metrics))
            for cell, metrics in run.wanted([item]).items()
            if item.id in saved[cell.method.name].names
        )
        if wanted:
            groups.setdefault(wanted, []).append(item)
    return groups


def _wanted_maps(groups: Groups, saved: Mapping[str, Maps]) -> SavedMaps:
    """The maps that are scored, read from disk."""
    images: dict[str, set[str]] = {}
    for wanted, items in groups.items():
        for cell, _ in wanted:
            images.setdefault(cell.method.name, set()).update(item.id for item in items)
    return {method: saved[method].read(names) for method, names in images.items()}


def _explain_saved(saved: SavedMaps, method: Method, trace: Trace) -> tuple[Tensor, Tensor]:
    """Saved maps (B, h, w) and their saliency maps (B, H, W), as :func:`camkit.evaluate.explain` gives them.

    Raises:
        PluginError: a metric asks for the maps of changed images.
    """
    if trace.draw:
        raise PluginError(
            "explains changed images, and only maps of the images themselves are saved: use camkit bench"
        )
    maps = np.stack([saved[method.name][name] for name in trace.image_ids])
    signed = torch.as_tensor(maps).to(trace.activation)
    return signed, to_saliency(signed, (trace.images.shape[2], trace.images.shape[3]))
