"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence

import pandas as pd
import torch
from tqdm import tqdm

from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import CellScores, Evaluation
from camkit.pixels import batches
from camkit.prepare import Say, find_methods, find_models, find_utilities, prepare
from camkit.registry import METRICS
from camkit.results import summarise, write_summary
from camkit.run import ModelRun


def bench(config: RunConfig, say: Say = print) -> pd.DataFrame:
    """Run a benchmark; see :class:`camkit.config.RunConfig`.

    Args:
        say: takes each line that the user should see.

    Returns:
        One row a cell of the results folder, as in its summary.csv.

    Raises:
        UsageError: a name does not exist, or the folder holds results of another protocol.
        CamkitError: weights or images cannot be had.
    """
    models = find_models(config.model)
    find_methods(config.method)
    for name in config.metrics:
        METRICS[name]
    find_utilities(config.utility)
    data = find_images(config.data, config.seed)
    if config.data == "sample":
        say("The data are scikit-image's six sample photos: a demonstration, not a benchmark (see --data).")
    items = list(data.items[: config.limit])
    if config.target != "predicted":
        labelled = [item for item in items if item.label is not None]
        if not labelled:
            raise UsageError(f"--target {config.target} needs labels, and these images have none")
        if len(labelled) < len(items):
            say(
                f"{len(items) - len(labelled)} images without a label are left out (--target {config.target})"
            )
        items = labelled
    for name in models:
        _bench_model(name, config, data, items, say)
        gc.collect()
    summary = summarise(config.out)
    write_summary(config.out, summary)
    return summary


def _bench_model(name: str, config: RunConfig, data: DataSet, items: Sequence[Item], say: Say) -> None:
    prepared = prepare(name, config.layer, data.items, config, say)
    run = ModelRun(prepared, config, data, items)
    todo = run.todo()
    if not todo:
        say(f"{name}: nothing to do, all {len(items)} images are there")
        return
    if len(todo) < len(items):
        say(f"{name}: going on with {len(todo)} of {len(items)} images")
    evaluation = Evaluation(
        prepared.network,
        prepared.loaded.preprocess,
        list(dict.fromkeys(prepared.paths.values())),
        target=config.target,
        batch_size=min(config.batch_size, len(items)),
        steps=config.steps,
        seed=config.seed,
    )
    started = time.perf_counter()
    pinned = prepared.network.device.type == "cuda"
    loader = batches(todo, prepared.loaded.preprocess, evaluation.batch_size, config.workers, pinned)
    faults = done = 0
    with _progress(name, len(todo)) as bar:
        try:
            for batch in loader:
                run.write_errors(batch.errors)
                wanted = run.wanted(batch.items)
                for result in evaluation.run(batch, wanted):
                    run.write(result)
                    if isinstance(result, CellScores):
                        bar.update(len(batch.items) / len(wanted))
                faults += len(batch.errors)
                done += len(batch.items)
                bar.n = done + faults  # exact again after a batch's fractions
        except torch.OutOfMemoryError as error:
            raise CamkitError(
                f"out of memory at --batch-size {evaluation.batch_size}; finished rows are kept. "
                "Start again with a smaller one."
            ) from error
        finally:
            run.finish(done, time.perf_counter() - started)
    if faults:
        say(f"{name}: {faults} images could not be read; see {run.errors.path}")
    if not done:
        raise CamkitError(f"none of the {len(todo)} images could be read; see {run.errors.path}")


def _progress(name: str, total: int) -> tqdm:
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=name,
        unit="img",
        mininterval=0.2 if terminal else 10,  # a log file needs no moving bar
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
    )
