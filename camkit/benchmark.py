"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import CellScores, Evaluation
from camkit.pixels import Batch, batches
from camkit.prepare import Prepared, Say, find_methods, find_models, find_utilities, numerics, prepare
from camkit.registry import METRICS
from camkit.results import summarise, write_summary
from camkit.run import ModelRun

# Without --max-errors: 1 %, and in folders where that is less than three, three.
DEFAULT_MAX_ERRORS, FEW_ERRORS = 0.01, 3
# Where `--batch-size auto` starts, by kind of device.
AUTO_BATCH_SIZE = {"cuda": 512, "cpu": 64}


def select(config: RunConfig, say: Say) -> tuple[list[str], DataSet, list[Item]]:
    """The models, the data set, and the images of it that a run takes.

    Raises:
        UsageError: a name does not exist, there are no images, or they lack the labels that are needed.
    """
    models = find_models(config.model)
    find_methods(config.method)
    for name in config.metrics:
        METRICS[name]
    find_utilities(config.utility)
    data = find_images(config.data, config.seed, config.layout, config.labels)
    for note in data.notes:
        say(note)
    if config.data == "sample":
        say("The data are scikit-image's six sample photos: a demonstration, not a benchmark (see --data).")
    items = list(data.items[: config.limit])
    if config.target != "predicted":
        labelled = [item for item in items if item.label is not None]
        if not labelled:
            raise UsageError(
                f"--target {config.target} needs labels, and these images have none (see --labels)"
            )
        if len(labelled) < len(items):
            say(
                f"{len(items) - len(labelled)} images without a label are left out (--target {config.target})"
            )
        items = labelled
    return models, data, items


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
    models, data, items = select(config, say)
    for name in models:
        with numerics(config.tf32, config.deterministic) as record:
            _bench_model(name, config, data, items, record, say)
        gc.collect()
    summary = summarise(config.out)
    write_summary(config.out, summary)
    return summary


def _bench_model(
    name: str,
    config: RunConfig,
    data: DataSet,
    items: Sequence[Item],
    numeric_record: Mapping[str, Any],
    say: Say,
) -> None:
    prepared = prepare(name, config.layer, data.items, config, say)
    run = ModelRun(prepared, config, data, items)
    todo = run.todo()
    if not todo:
        say(f"{name}: nothing to do, all {len(items)} images are there")
        return
    if len(todo) < len(items):
        say(f"{name}: going on with {len(todo)} of {len(items)} images")
    size = first_batch_size(config, prepared.network.device, len(items))
    while True:
        run.begin(size, numeric_record)
        try:
            score_images(prepared, run, todo, size, config, say)
            return
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if config.batch_size != "auto" or size == 1:
                raise CamkitError(
                    f"out of memory at --batch-size {size}; finished rows are kept. "
                    "Start again with a smaller one, or with --batch-size auto."
                ) from error
        size //= 2
        say(f"{name}: out of memory, going on with {size} images in a pass")
        gc.collect()
        torch.cuda.empty_cache()
        todo = run.todo()


def first_batch_size(config: RunConfig, device: torch.device, images: int) -> int:
    """Images in a pass: never more than there are; `auto` starts high and comes down."""
    if config.batch_size == "auto":
        return min(AUTO_BATCH_SIZE["cuda" if device.type == "cuda" else "cpu"], images)
    return min(config.batch_size, images)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def make_evaluation(prepared: Prepared, config: RunConfig, batch_size: int) -> Evaluation:
    """The scoring of one model's batches."""
    return Evaluation(
        prepared.network,
        prepared.loaded.preprocess,
        list(dict.fromkeys(prepared.paths.values())),
        target=config.target,
        batch_size=batch_size,
        steps=config.steps,
        seed=config.seed,
        absent=config.absent,
        budget=config.budget,
    )


def load_batches(prepared: Prepared, config: RunConfig, items: Sequence[Item], size: int) -> Iterator[Batch]:
    """Decoded batches of `items` for one model."""
    return batches(
        items,
        prepared.loaded.preprocess,
        size,
        config.workers,
        cache=config.cache,
        pin_memory=prepared.network.device.type == "cuda",
    )


class _Timed(Iterator[Batch]):
    """Passes batches on, and adds up the seconds spent waiting for them."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self.source = source
        self.seconds = 0.0

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self.source)
        finally:
            self.seconds += time.perf_counter() - started


def score_images(
    prepared: Prepared, run: ModelRun, todo: Sequence[Item], size: int, config: RunConfig, say: Say
) -> None:
    """The loop: batches of `todo` in, every cell's rows on disk before the next batch.

    Raises:
        CamkitError: not one image could be read.
    """
    name = prepared.loaded.row.name
    evaluation = make_evaluation(prepared, config, size)
    loader = _Timed(load_batches(prepared, config, todo, size))
    started, passes = time.perf_counter(), prepared.network.passes
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
                _check_errors(config, faults, len(run.items), run.errors.path)
        finally:
            run.finish(
                images=done,
                seconds=time.perf_counter() - started,
                waiting=loader.seconds,
                passes=prepared.network.passes - passes,
            )
    if faults:
        say(f"{name}: {faults} images could not be read; see {run.errors.path}")
    if not done and len(todo) == len(run.items):
        raise CamkitError(f"none of the {len(todo)} images could be read; see {run.errors.path}")


def _check_errors(config: RunConfig, faults: int, images: int, listed: Path) -> None:
    """End the run where too many images could not be read.

    Raises:
        CamkitError: `--on-error stop` and one fault, or more than `--max-errors`.
    """
    if config.on_error == "stop" and faults:
        raise CamkitError(f"stopped at an image that cannot be read; finished rows are kept; see {listed}")
    if config.max_errors is None:
        allowed, share = max(FEW_ERRORS, DEFAULT_MAX_ERRORS * images), DEFAULT_MAX_ERRORS
    else:
        allowed, share = config.max_errors * images, config.max_errors
    if faults > allowed:
        raise CamkitError(
            f"stopped: {faults} of {images} images cannot be read, more than --max-errors "
            f"{100 * share:g}%; finished rows are kept; see {listed}"
        )


def _progress(name: str, total: int) -> tqdm:
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=name,
        unit="img",
        mininterval=0.2 if terminal else 10,  # a log file needs no moving bar
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
    )
