"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, PluginError, RunError, UsageError, is_out_of_memory
from camkit.evaluate import CellScores, Evaluation
from camkit.lock import hold
from camkit.merge import mark_through, refresh_summary, set_aside, unmark_through, wait_for_parts
from camkit.pixels import SHARED_MEMORY, TIMEOUT, Batch, affordable_workers, batches
from camkit.plugins import load_plugins
from camkit.prepare import Prepared, Say, check_names, find_models, numerics, prepare
from camkit.results import ERRORS, file_name, run_folders
from camkit.run import ModelRun
from camkit.share import Share
from camkit.stop import Stop, stop_signals

# Without --max-errors: 1 % of a process's images, and where that is less than three, three.
DEFAULT_MAX_ERRORS, FEW_ERRORS = 0.01, 3
# Where `--batch-size auto` starts, by kind of device.
AUTO_BATCH_SIZE = {"cuda": 512, "cpu": 64}


class OutOfMemory(CamkitError):
    """A pass did not fit into the device's memory."""


def select(config: RunConfig, say: Say) -> tuple[list[str], DataSet, list[Item]]:
    """The models, the data set, and the images of it that a run takes.

    Raises:
        UsageError: a name does not exist, there are no images, or they lack the labels that are needed.
    """
    load_plugins(config.plugin)
    models = find_models(config.model)
    check_names(config.method, config.utility, config.metrics)
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


def bench(config: RunConfig, say: Say = print) -> pd.DataFrame | None:
    """Run a benchmark; see :class:`camkit.config.RunConfig`.

    Whatever ends it, but for a second signal, summary.csv is made from the rows that are there.

    Args:
        say: takes each line that the user should see.

    Returns:
        One row a cell of the results folder, as in its summary.csv; None in all but the first of several
        processes (see :mod:`camkit.share`).

    Raises:
        UsageError: a name does not exist, or the folder holds results of another protocol.
        RunError: the folder cannot be written, another run is at work in it, or `--on-error stop`.
        CamkitError: models failed: weights or images cannot be had, out of memory. All others were run.
        PluginError: a plugin's method or metric failed; all other rows are written.
        KeyboardInterrupt: SIGINT or SIGTERM came; the batch in hand was finished and written first.
    """
    share = Share.from_environment()
    warn = say
    if share.rank:  # the first of several processes speaks for all, but for errors
        say = _silent
    failed: list[str] = []  # names only: an error would keep its model in memory
    failures: list[str] = []
    with stop_signals(say) as stop:
        models, data, items = select(config, say)
        if config.force:
            _start_afresh(config.out, share, say)
        try:
            for name in models:
                try:
                    with numerics(config.tf32, config.deterministic) as record:
                        failures += _bench_model(name, config, data, items, record, share, stop, say)
                except (UsageError, RunError):
                    raise
                except CamkitError as error:
                    if len(models) == 1 and not share.rank:
                        raise
                    failed.append(name)
                    process = f"process {share.rank}: " if share.rank else ""
                    warn(f"error: {process}{name}: {error}")
                gc.collect()
                if stop.asked:
                    break
        except (Exception, KeyboardInterrupt) as error:
            refused = isinstance(error, UsageError) and name == models[0]  # the folder stays as it is
            if not (share.rank or stop.twice or refused) and run_folders(config.out):
                with suppress(CamkitError):
                    refresh_summary(config.out)
            raise
        summary = None if share.rank else refresh_summary(config.out)
        stop.check()
    if summary is not None and (failed or failures):
        raise what_failed(failed, failures, len(models), config.out)
    return summary


def what_failed(failed: Sequence[str], failures: Sequence[str], models: int, out: Path) -> CamkitError:
    """The error that a run ends with of which everything else is finished.

    Args:
        failed: the models that failed, of `models`.
        failures: what plugins did wrong, a line each.
    """
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {models} models failed, as said above: {', '.join(failed)}")
    if failures:
        others = f"\n({len(failures) - 1} more; all in failures.csv)" if len(failures) > 1 else ""
        lines.append(failures[0] + others)
    if (out / "summary.csv").exists():
        lines.append(f"All else is finished: {out / 'summary.csv'}")
    return (CamkitError if failed else PluginError)("\n".join(lines))


def _silent(_: str) -> None:
    pass


def _start_afresh(out: Path, share: Share, say: Say) -> None:
    if share.world > 1:
        raise UsageError(
            f"--force: several processes cannot move {out} aside; move it by hand: mv {out} {out}.old"
        )
    old = set_aside(out)
    if old is not None:
        say(f"The results that were in {out} are in {old} now.")


def _bench_model(
    name: str,
    config: RunConfig,
    data: DataSet,
    items: Sequence[Item],
    numeric_record: Mapping[str, Any],
    share: Share,
    stop: Stop,
    say: Say,
) -> list[str]:
    """What plugins did wrong, a line each; the first of several processes says it for all."""
    folder = share.folder(config.out) / file_name(name)
    failure: CamkitError | None = None
    with ExitStack() as locks:
        for held in dict.fromkeys([folder] if share.rank else [config.out / file_name(name), folder]):
            locks.enter_context(hold(held))
        unmark_through(folder)
        try:
            prepared = prepare(name, config.layer, data.items, config, say)
            run = ModelRun(prepared, config, data, items, share)
            try:
                _make_missing(run, prepared, numeric_record, stop, say)
            except RunError:
                raise
            except CamkitError as error:
                if share.rank or share.world == 1:
                    raise
                failure = error  # what the other processes make is folded all the same
        finally:
            if share.rank and not stop.asked:
                mark_through(folder, share)
    if share.rank:
        return []
    if share.world > 1 and not stop.asked:
        with suppress(CamkitError) if failure else nullcontext():
            wait_for_parts(run, stop, say)
    if failure:
        raise failure
    errors = config.out / file_name(name) / ERRORS
    unreadable = run.unreadable()
    if unreadable:
        say(f"{name}: {unreadable} images could not be read; see {errors}")
    if not run.predicted and not stop.asked:
        raise CamkitError(f"none of the {len(items)} images could be read; see {errors}")
    if run.predicted and not any(run.is_wanted(item) for item in items if item.id in run.predicted):
        say(f"{name}: no image's predicted class is its own, so there is none to explain (--target correct)")
    return run.failure_lines()


def _make_missing(
    run: ModelRun, prepared: Prepared, numeric_record: Mapping[str, Any], stop: Stop, say: Say
) -> None:
    """Make the rows of this process's images that are not there, and finish the tables.

    Raises:
        CamkitError: see :func:`score_images`; the tables are finished as far as that can be done.
    """
    config, name = run.config, prepared.loaded.row.name
    missing, mine = sum(map(len, run.todo())), len(run.share.of(run.items))
    if not missing:
        say(f"{name}: nothing to do, all {mine} images are there")
    elif run.begun:
        say(f"{name}: going on with {missing} of {mine} images")
    size = first_batch_size(config, prepared.network.device, len(run.items))
    affordable_workers(prepared.loaded.preprocess, size, missing, config.workers, say)
    try:
        while missing:
            run.start(size, numeric_record, say)
            try:
                run.end(score_images(run, prepared, size, stop))
                break
            except OutOfMemory:
                if config.batch_size != "auto" or size == 1:
                    raise
            size //= 2
            say(f"{name}: out of memory, going on with {size} images in a pass")
            gc.collect()
            torch.cuda.empty_cache()
    except CamkitError:
        with suppress(CamkitError):
            run.finish()
        raise
    run.finish()


def first_batch_size(config: RunConfig, device: torch.device, images: int) -> int:
    """Images in a pass: never more than there are; `auto` starts high and comes down."""
    if config.batch_size == "auto":
        return min(AUTO_BATCH_SIZE["cuda" if device.type == "cuda" else "cpu"], images)
    return min(config.batch_size, images)


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


class Timed(Iterator[Batch]):
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


def score_images(run: ModelRun, prepared: Prepared, size: int, stop: Stop) -> dict[str, float]:
    """The loop: every cell's rows of a batch are on disk before the next batch.

    Args:
        size: images in a pass.

    Returns:
        What it took: `images`, `seconds`, `waiting_seconds` (for data), `passes`, `head_passes`.

    Raises:
        OutOfMemory: a pass of `size` images does not fit.
        CamkitError: too many images cannot be read, or a worker process died.

        What it took is then in run.json.
    """
    todo = run.todo()
    evaluation = make_evaluation(prepared, run.config, size)
    loader = Timed(chain.from_iterable(load_batches(prepared, run.config, items, size) for items in todo))
    network = prepared.network
    started, passes, head_passes = time.perf_counter(), network.passes, network.head_passes
    scored = faults = 0

    def took() -> dict[str, float]:
        return {
            "images": scored,
            "seconds": time.perf_counter() - started,
            "waiting_seconds": loader.seconds,
            "passes": network.passes - passes,
            "head_passes": network.head_passes - head_passes,
        }

    try:
        with _progress(run, sum(map(len, todo))) as bar, stop.patiently(), failures_named(size):
            for batch in loader:
                run.write_errors(batch.errors)
                wanted = run.wanted(batch.items)
                for result in evaluation.run(batch, wanted, run.predicted):
                    run.write(result)
                    if isinstance(result, CellScores):
                        bar.update(len(batch.items) / len(wanted))
                scored += len(batch.items)
                faults += len(batch.errors)
                bar.n = scored + faults  # exact again after a batch's fractions
                _check_errors(run, faults)
                if stop.asked:
                    break
    except CamkitError as error:
        if stop.asked and not isinstance(error, RunError):
            return took()  # who signals every process of a job also ends those that decode
        with suppress(CamkitError):
            run.end(took())
        raise
    return took()


def _check_errors(run: ModelRun, faults: int) -> None:
    """End a model where too many of this process's images could not be read.

    Raises:
        RunError: `--on-error stop` and one fault.
        CamkitError: more than `--max-errors`.
    """
    config, images, listed = run.config, len(run.share.of(run.items)), run.errors.path
    if config.on_error == "stop" and faults:
        raise RunError(f"stopped at an image that cannot be read; finished rows are kept; see {listed}")
    if config.max_errors is None:
        allowed, share = max(FEW_ERRORS, DEFAULT_MAX_ERRORS * images), DEFAULT_MAX_ERRORS
    else:
        allowed, share = config.max_errors * images, config.max_errors
    if faults > allowed:
        raise CamkitError(
            f"stopped: {faults} of {images} images cannot be read, more than --max-errors "
            f"{100 * share:g}%; finished rows are kept; see {listed}\n"
            "The same command meets these first, and stops again until they can be read or --max-errors is "
            "higher."
        )


@contextmanager
def failures_named(
    batch_size: int, kept: str = "Finished rows are kept: the same command goes on from there."
) -> Iterator[None]:
    """What the system does to a run, in the user's words; `kept`: what is left of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error)
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"out of memory at --batch-size {batch_size}: try a smaller one, or auto. {kept}"
            ) from error
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise CamkitError(
                f"--compile: torch.compile failed ({reason.splitlines()[0]}).\n"
                "On a CPU it needs a C++ compiler, on a GPU Triton. Without --compile scores are the same "
                f"but for last digits. {kept}"
            ) from error
        if "DataLoader timed out" in reason:
            raise CamkitError(
                f"for {TIMEOUT} seconds no batch came from the processes that decode images (does the disk "
                f"answer? is there room in {SHARED_MEMORY}?): try --workers 0. {kept}"
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
