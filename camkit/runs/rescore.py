"""`camkit score`: scores from the maps that a run saved, without explaining again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from camkit.config import RunConfig
from camkit.data import DataSet, Item
from camkit.data.given import GivenMaps
from camkit.entries import METRICS, Method
from camkit.errors import Say, UsageError
from camkit.methods.saliency import to_saliency
from camkit.network.numerics import numerics
from camkit.network.prepare import Prepared
from camkit.network.trace import Trace
from camkit.plugins import load_plugins
from camkit.results.arrays import Maps
from camkit.results.folder import file_name, read_run, run_folders
from camkit.results.lock import hold
from camkit.results.merge import refresh_summary
from camkit.results.model_run import ModelRun
from camkit.runs.bench import what_failed
from camkit.runs.cells import check_located
from camkit.runs.describe import by_model, prepare_for
from camkit.runs.evaluate import ONLY_MAPS
from camkit.runs.job import open_run
from camkit.runs.loop import Groups, Loop, first_batch_size
from camkit.runs.selection import data_of_run
from camkit.share import Share

SavedMaps = Mapping[str, Mapping[str, np.ndarray]]  # method -> image -> map (h, w)


def rescore(config: RunConfig, say: Say) -> pd.DataFrame:
    """Add scores to every cell of a results folder that has saved maps, for the images that have one.

    Args:
        config: the folder (`out`), the scores to add (`metrics`; none that explains again, as `adcc` and
            `null` do) and the batch size. The images (`data`, and how they are read) and a file of `weights`
            as in the run: they are compared with its records. What else decides numbers is as the folder's
            runs had it; the device, workers and plugins are those named here.

    Returns:
        The folder's summary.

    Raises:
        UsageError: there are no saved maps, a metric needs more than maps, or the data are others.
        CamkitError: as :func:`camkit.runs.bench.bench`.
        PluginError: a plugin's metric failed; all other rows and the summary are written.
    """
    load_plugins(config.plugin)
    folders = _scorable(config.out, config.metrics, say)
    groups = by_model((folder for folder, saved in folders.items() if saved), config)
    check_located(config)
    failures: list[str] = []
    scored = 0
    try:
        for group in groups:
            settings = {
                folder: replace(
                    as_it_ran,
                    method=tuple(folders[folder]),
                    metrics=config.metrics,
                    batch_size=config.batch_size,
                )
                for folder, as_it_ran in group.items()
            }
            failures += _rescore_model(settings, folders, say)
            scored += 1
    except (Exception, KeyboardInterrupt) as error:
        if scored or not isinstance(error, UsageError):  # else it was refused: the folder stays as it is
            refresh_summary(config.out)
        raise
    summary = refresh_summary(config.out)
    if failures:
        raise what_failed([], failures, len(folders), config.out)
    return summary


def _scorable(out: Path, metrics: Iterable[str], say: Say) -> dict[Path, dict[str, Path]]:
    """Folder of cells -> method -> the file with its maps.

    Raises:
        UsageError: there are none, or a metric needs more than maps.
    """
    expect_no_explanation(metrics)
    folders = {folder: _saved_maps(folder) for folder in run_folders(out)}
    if not any(folders.values()):
        raise UsageError(f"{out} holds no saved maps: they are written by camkit bench --save-maps")
    for folder, saved in folders.items():
        without = [method for method in read_run(folder)["methods"] if method not in saved]
        if without:
            say(f"{folder}: no saved maps of {', '.join(without)} (saliency methods have none)")
    return folders


def expect_no_explanation(metrics: Iterable[str]) -> None:
    """No metric needs more than maps of the images themselves.

    Raises:
        UsageError: one explains again: changed images, other classes, a changed network.
    """
    for name in metrics:
        if METRICS[name].explains_again:
            raise UsageError(f"{name} {ONLY_MAPS} --metrics {name}")


def _saved_maps(folder: Path) -> dict[str, Path]:
    """Method -> the file with its maps."""
    files = {method: folder / f"{file_name(method)}.npz" for method in read_run(folder)["methods"]}
    return {method: path for method, path in files.items() if path.exists()}


def _rescore_model(
    folders: Mapping[Path, RunConfig], files: Mapping[Path, Mapping[str, Path]], say: Say
) -> list[str]:
    """Score the maps of the folders that one loaded model serves; plugin errors, a line each."""
    config = next(iter(folders.values()))
    data = data_of_run(config)
    for folder in folders:
        if data.fingerprint != read_run(folder)["protocol"]["data_fingerprint"]:
            raise UsageError(f"--data {config.data} is not the data of this run (another fingerprint)")
    failures: list[str] = []
    with (
        hold(config.out / file_name(config.model[0])),
        numerics(config.tf32, config.deterministic) as record,
    ):
        prepared = prepare_for(folders, data, say)
        for folder, settings in folders.items():
            saved = {method: Maps(path) for method, path in files[folder].items()}
            failures += _rescore_folder(settings, saved, prepared, data, record, say)
    return failures


def _rescore_folder(
    config: RunConfig,
    saved: Mapping[str, Maps],
    prepared: Prepared,
    data: DataSet,
    numeric_record: Mapping[str, Any],
    say: Say,
) -> list[str]:
    run = open_run(prepared, config, data, data.items, Share(), say)
    return score_saved(run, config, saved, prepared, numeric_record, say)


def score_saved(
    run: ModelRun,
    config: RunConfig,
    saved: Mapping[str, Maps | GivenMaps],
    prepared: Prepared,
    numeric_record: Mapping[str, Any],
    say: Say,
) -> list[str]:
    """Make the rows of a run from maps that are there already.

    Args:
        saved: method -> its maps.

    Returns:
        Plugin errors, a line each.
    """
    groups = _with_maps(run.todo(), saved)
    images = sum(len(items) for items, _ in groups)
    if not images:
        say(f"{run.model}: nothing to do, all maps have these scores")
        return []
    size = first_batch_size(config, prepared.network.device, images)
    run.start(size, numeric_record, say)
    loop = Loop(prepared, config, size, make_maps=partial(_saved, _read(groups, saved)), explains=False)
    with loop.failures_named():
        for batch, _, results in loop.run(groups, run.predicted):
            for item, reason in batch.errors:
                say(f"{item.source}: {reason}")
            for result in results:
                run.write(result)
    run.end(loop.took())
    run.finish()
    return run.failure_lines(run.items)


def _with_maps(todo: Groups, saved: Mapping[str, Maps | GivenMaps]) -> Groups:
    """The images that lack scores, each with the cells of which it has a map."""
    groups: dict[tuple, list[Item]] = {}
    for items, wanted in todo:
        for item in items:
            there = tuple(
                (cell, *metrics)
                for cell, metrics in wanted.items()
                if item.id in saved[cell.method.name].names
            )
            if there:
                groups.setdefault(there, []).append(item)
    return [(items, {cell: metrics for cell, *metrics in there}) for there, items in groups.items()]


def _read(groups: Groups, saved: Mapping[str, Maps | GivenMaps]) -> SavedMaps:
    """The maps that are scored, read from disk."""
    images: dict[str, set[str]] = {}
    for items, wanted in groups:
        for cell in wanted:
            images.setdefault(cell.method.name, set()).update(item.id for item in items)
    return {method: saved[method].read(names) for method, names in images.items()}


def _saved(saved: SavedMaps, method: Method, trace: Trace) -> tuple[Tensor, Tensor]:
    """Saved maps (B, h, w) and their saliency maps (B, H, W), as methods give them."""
    maps = [saved[method.name][name] for name in trace.image_ids]
    size = (trace.images.shape[2], trace.images.shape[3])
    if method.saliency:  # of any sizes
        made = [to_saliency(torch.as_tensor(one)[None].to(trace.images), size) for one in maps]
        saliency = torch.cat(made)
        return saliency, saliency
    signed = torch.as_tensor(np.stack(maps)).to(trace.images)
    return signed, to_saliency(signed, size)
