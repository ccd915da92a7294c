"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import CellScores, Evaluation
from camkit.lock import hold
from camkit.merge import refresh_summary, set_aside, wait_for_parts
from camkit.pixels import batches
from camkit.prepare import Prepared, Say, find_methods, find_models, find_utilities, prepare
from camkit.registry import METRICS
from camkit.results import ERRORS, file_name
from camkit.run import ModelRun
from camkit.share import Share
from camkit.stop import Stop, stop_signals

# How the allocators of MPS and of the CPU say it, which raise plain RuntimeErrors.
NO_MEMORY = ("backend out of memory", "DefaultCPUAllocator")


def bench(config: RunConfig, say: Say = print) -> pd.DataFrame | None:
    """Run a benchmark; see :class:`camkit.config.RunConfig`.

    Args:
        say: takes each line that the user should see.

    Returns:
        One row a cell of the results folder, as in its summary.csv; None in all but the first of several
        processes (see :mod:`camkit.share`).

    Raises:
        UsageError: a name does not exist, or the folder holds results of another protocol.
        CamkitError: weights or images cannot be had, the folder cannot be written, or another run is at
            work in it.
        KeyboardInterrupt: SIGINT or SIGTERM came; the batch in hand was finished and written first.
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
    share = Share.from_environment()
    if config.force:
        _start_afresh(config.out, share, say)
    with stop_signals(say) as stop:
        for name in models:
            _bench_model(name, config, data, items, share, stop, say)
            gc.collect()
            if stop.asked:
                break
        summary = None if share.rank else refresh_summary(config.out)
        stop.check()
    return summary


def _start_afresh(out: Path, share: Share, say: Say) -> None:
    if share.world > 1:
        raise UsageError(
            f"--force: several processes cannot move {out} aside; move it by hand: mv {out} {out}.old"
        )
    old = set_aside(out)
    if old is not None:
        say(f"The results that were in {out} are in {old} now.")


def _bench_model(
    name: str, config: RunConfig, data: DataSet, items: Sequence[Item], share: Share, stop: Stop, say: Say
) -> None:
    with ExitStack() as locks:
        folders = [share.folder(config.out)] if share.rank else [config.out, share.folder(config.out)]
        for folder in dict.fromkeys(folders):
            locks.enter_context(hold(folder / file_name(name)))
        prepared = prepare(name, config.layer, data.items, config, say)
        batch_size = min(config.batch_size, len(items))
        run = ModelRun(prepared, config, data, items, batch_size, share)
        todo = run.todo()
        missing, mine = sum(map(len, todo)), len(share.of(items))
        if not missing:
            say(f"{name}: nothing to do, all {mine} images are there")
        elif missing < mine:
            say(f"{name}: going on with {missing} of {mine} images")
        if missing:
            run.start(say)
            done, seconds = _score(run, prepared, todo, batch_size, stop)
        run.finish()
        if missing:
            run.end(done, seconds)
    if share.world > 1 and share.rank == 0 and not stop.asked:
        wait_for_parts(run, stop, say)
    errors = config.out / file_name(name) / ERRORS
    if run.errors.known:
        say(f"{name}: {len(run.errors.known)} images could not be read; see {errors}")
    if share.rank == 0 and not run.predicted:
        raise CamkitError(f"none of the {len(items)} images could be read; see {errors}")


def _score(
    run: ModelRun, prepared: Prepared, todo: Sequence[Sequence[Item]], batch_size: int, stop: Stop
) -> tuple[int, float]:
    """Write the rows of all images of `todo`; give how many there were, and the seconds that it took."""
    config = run.config
    evaluation = Evaluation(
        prepared.network,
        prepared.loaded.preprocess,
        list(dict.fromkeys(prepared.paths.values())),
        target=config.target,
        batch_size=batch_size,
        steps=config.steps,
        seed=config.seed,
    )
    started = time.perf_counter()
    pinned = prepared.network.device.type == "cuda"
    loader = chain.from_iterable(
        batches(items, prepared.loaded.preprocess, batch_size, config.workers, pinned) for items in todo
    )
    scored = seen = 0
    with _progress(run, sum(map(len, todo))) as bar, stop.patiently(), _failures_named(batch_size):
        for batch in loader:
            run.write_errors(batch.errors)
            wanted = run.wanted(batch.items)
            for result in evaluation.run(batch, wanted, run.predicted):
                run.write(result)
                if isinstance(result, CellScores):
                    bar.update(len(batch.items) / len(wanted))
            scored += len(batch.items)
            seen += len(batch.items) + len(batch.errors)
            bar.n = seen  # exact again after a batch's fractions
            if stop.asked:
                break
    return scored, time.perf_counter() - started


@contextmanager
def _failures_named(batch_size: int) -> Iterator[None]:
    """What the system does to a run, in the user's words."""
    kept = "Finished rows are kept: the same command goes on from there."
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in reason for words in NO_MEMORY):
            raise CamkitError(
                f"out of memory at --batch-size {batch_size}. Finished rows are kept: start again with a "
                "smaller one."
            ) from error
        if "DataLoader worker" not in reason:
            raise
        raise CamkitError(
            f"a process that decodes images died (out of memory?): try fewer --workers, or 0. {kept}"
        ) from error


def _progress(run: ModelRun, total: int) -> tqdm:
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=run.folder.name,
        disable=run.share.rank > 0,
        unit="img",
        mininterval=0.2 if terminal else 10,  # a log file needs no moving bar
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
    )
