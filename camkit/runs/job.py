"""One model of a run: its missing rows are made, its tables finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from camkit.config import RunConfig
from camkit.console import Bar
from camkit.data import DataSet, Item
from camkit.data.batches import affordable_workers
from camkit.data.classes import outputs_named
from camkit.errors import CamkitError, RunError, Say
from camkit.network.prepare import Prepared, prepare
from camkit.network.targets import find_target
from camkit.results.cells import Cell, CellScores
from camkit.results.folder import ERRORS, FLAGS, file_name, flag_counts
from camkit.results.lock import hold
from camkit.results.merge import PATIENCE, fold, is_whole
from camkit.results.model_run import ModelRun
from camkit.results.protocol import check_protocol
from camkit.runs.cells import cells_of_model
from camkit.runs.describe import describe_protocol, describe_segment
from camkit.runs.loop import Loop, at_a_size_that_fits, errors_allowed, first_batch_size
from camkit.runs.mosaics import mosaic_items
from camkit.runs.stop import Stop
from camkit.share import Share, part_folders

# Seconds that a process waits at its start for who holds a model's folder: others may be folding their parts.
FOLDING = 10


def images_of(
    prepared: Prepared, config: RunConfig, data: DataSet, items: Sequence[Item], say: Say, keep: bool = True
) -> tuple[Sequence[Item], dict[str, int]]:
    """The images that a model scores, and the place of each image in the order of the run.

    Args:
        items: the photos of the run.
        keep: whether the choice of mosaics is written.

    Raises:
        CamkitError: labels are needed, and the model has another number of classes; or no mosaic can be made.
    """
    if prepared.classes != len(data.classes) and any(item.label is not None for item in items):
        items = _without_labels(prepared, config, data, items, say)
        data = replace(data, items=tuple(replace(item, label=None) for item in data.items))
    if not config.of_mosaics:
        return items, {item.id: place for place, item in enumerate(data.items)}
    folder = config.out / file_name(prepared.loaded.row.name)
    mosaics = mosaic_items(prepared, config, data, folder, say, keep)
    return mosaics, {item.id: place for place, item in enumerate(mosaics)}


def _without_labels(
    prepared: Prepared, config: RunConfig, data: DataSet, items: Sequence[Item], say: Say
) -> list[Item]:
    """The same images: labels of other classes than the model's say nothing of it."""
    why = (
        f"{prepared.loaded.row.name} tells apart {outputs_named(prepared.classes)}, the labels are of "
        f"{len(data.classes)} ({data.classes.title}; --classes)"
    )
    if find_target(config.target).needs_labels:
        raise CamkitError(f"--target {config.target}: {why}")
    say(f"{why}: they are left aside, and no top-1 is shown")
    return [replace(item, label=None) for item in items]


def open_run(
    prepared: Prepared,
    config: RunConfig,
    data: DataSet,
    items: Sequence[Item],
    share: Share,
    say: Say,
    given: Sequence[Cell] = (),
) -> ModelRun:
    """The rows of one model, ready to be added to; see :class:`camkit.results.model_run.ModelRun`.

    Args:
        given: the cells, where they are not those of the configuration's methods.
    """
    cells = {
        cell: describe_protocol(prepared, cell, config, data)
        for cell in given or cells_of_model(prepared, config, say)
    }
    for protocol in cells.values():  # before a choice of mosaics is written
        check_protocol([config.out, *part_folders(config.out)], protocol)
    items, order = images_of(prepared, config, data, items, say)
    segment = describe_segment(prepared, config, data)
    classes = data.classes if prepared.classes == len(data.classes) else None
    return ModelRun(prepared.loaded.row.name, cells, config, order, items, share, segment, classes)


@dataclass(frozen=True)
class Job:
    """One model of a run."""

    name: str
    config: RunConfig
    data: DataSet
    items: Sequence[Item]
    share: Share
    stop: Stop
    say: Say

    def run(self, numeric_record: Mapping[str, Any]) -> tuple[bool, list[str]]:
        """Make the rows that are not there.

        Returns:
            Whether this process put the last of all processes' rows there; and plugin errors, a line each:
            those of all images if it did, else of this process's.

        Raises:
            CamkitError: see :meth:`_make_missing`, or no image could be read.
        """
        merged, part = (
            folder / file_name(self.name) for folder in (self.config.out, self.share.folder(self.config.out))
        )
        failure: CamkitError | None = None
        with ExitStack() as locks:
            # Who folds parts holds OUT/<model>: nobody removes this part before it is held.
            with hold(merged, FOLDING) if self.share.world > 1 else nullcontext():
                locks.enter_context(hold(part))
            prepared = prepare(self.name, self.config.layer, self.data.items, self.config, self.say)
            run = open_run(prepared, self.config, self.data, self.items, self.share, self.say)
            try:
                self._make_missing(run, prepared, numeric_record)
            except (Exception, KeyboardInterrupt) as error:
                run.withdraw()
                if isinstance(error, RunError) or not isinstance(error, CamkitError):
                    raise
                failure = error  # what was made is folded all the same
        complete = self.share.world == 1 or self._fold(run)
        if failure:
            raise failure
        return complete, self._conclude(run, run.items if complete else self.share.of(run.items))

    def _make_missing(self, run: ModelRun, prepared: Prepared, numeric_record: Mapping[str, Any]) -> None:
        """Make the rows of this process's images that are not there, and finish the tables.

        Raises:
            CamkitError: too many images cannot be read, a pass does not fit into memory, or a worker process
                died; the tables are finished as far as that can be done.
        """
        config, device = self.config, prepared.network.device
        missing, mine = sum(len(items) for items, _ in run.todo()), len(run.share.of(run.items))
        if not missing:
            self.say(f"{self.name}: nothing to do, all {mine} images are there")
        elif run.begun:
            self.say(f"{self.name}: going on with {missing} of {mine} images")
        first = first_batch_size(config, device, len(run.items))
        affordable_workers(prepared.loaded.preprocess, first, missing, config.workers, self.say)

        def attempt(size: int) -> None:
            run.start(size, numeric_record, self.say)
            run.end(self._score(run, Loop(prepared, config, size)))

        try:
            if missing:
                at_a_size_that_fits(config, first, attempt, lambda line: self.say(f"{self.name}: {line}"))
        except CamkitError:
            with suppress(CamkitError):
                run.finish()
            raise
        run.finish()

    def _score(self, run: ModelRun, loop: Loop) -> dict[str, float]:
        """Every cell's rows are on disk before those of the next cell; gives what it took.

        Raises:
            CamkitError: see :meth:`_make_missing`; what it took is then in run.json.
        """
        todo = run.todo()
        images = sum(len(items) for items, _ in todo)
        faults = 0
        try:
            with (
                Bar(images, file_name(self.name), self.share.rank > 0) as bar,
                self.stop.patiently(),
                loop.failures_named(),
            ):
                for batch, wanted, results in loop.run(todo, run.predicted, lambda: self.stop.asked):
                    run.write_errors(batch.errors)
                    for item, reason in batch.notes:
                        self.say(f"{item.id}: {reason}: no localisation")
                    for result in results:
                        run.write(result)
                        if isinstance(result, CellScores):
                            bar.reach(bar.n + len(batch.items) / len(wanted))
                    faults += len(batch.errors)
                    bar.reach(loop.images + len(batch.items) + faults)  # exact again after fractions
                    _check_errors(run, faults)
        except CamkitError as error:
            if self.stop.asked and not isinstance(error, RunError):
                self.stop.cut = True
                return loop.took()  # who signals every process of a job also ends those that decode
            with suppress(CamkitError):
                run.end(loop.took())
            raise
        self.stop.cut = self.stop.asked and loop.images + faults < images
        return loop.took()

    def _fold(self, run: ModelRun) -> bool:
        """Fold this process's part and those of processes that have ended.

        Returns:
            Whether nothing is left: of processes that end together, to the one that folded the last part.
        """
        with hold(run.merged, PATIENCE):
            mine = run.folder.is_dir()  # else another process has folded it
            fold(self.config.out, run.folder.name, run.order, busy=True)
            run.reload()
            run.settle()
            return mine and is_whole(self.config.out, run.folder.name, [item.id for item in run.items])

    def _conclude(self, run: ModelRun, items: Sequence[Item]) -> list[str]:
        """Say what is odd about a finished model; plugin errors on these images, a line each."""
        errors = run.merged / ERRORS
        unreadable = run.unreadable()
        if unreadable:
            self.say(f"{self.name}: {unreadable} images could not be read; see {errors}")
        if not run.predicted and not self.stop.asked:
            raise CamkitError(f"none of the {len(run.items)} images could be read; see {errors}")
        if run.predicted and not any(run.is_wanted(item) for item in items if item.id in run.predicted):
            self.say(
                f"{self.name}: the model classifies none of these images correctly; nothing to explain "
                f"(--target {self.config.target})"
            )
        self._say_degenerate(run)
        return run.failure_lines(items)

    def _say_degenerate(self, run: ModelRun) -> None:
        """Name the cells in which no map, or no score, says anything."""
        counts = flag_counts(run.merged / FLAGS)
        for flag, words in (
            ("degenerate", "every map is constant or not finite"),
            ("not_finite", "no image has all of its scores: logits that are not finite"),
        ):
            cells = [
                cell for cell in run.cells if 0 < len(run.tables[cell].keys_there) <= counts[*cell.key, flag]
            ]
            places = dict.fromkeys((cell.layer, cell.utility) for cell in cells)
            for layer, utility in places:
                methods = [cell.method.name for cell in cells if cell.key[:2] == (layer, utility)]
                self.say(
                    f"{self.name}, {layer}, {utility}: {words}: {', '.join(methods)}. These rows say nothing."
                )


def _check_errors(run: ModelRun, faults: int) -> None:
    """End a model where too many of this process's images could not be read.

    Raises:
        RunError: `--on-error stop` and one fault.
        CamkitError: more than `--max-errors`.
    """
    config, images, listed = run.config, len(run.share.of(run.items)), run.errors.path
    if config.on_error == "stop" and faults:
        raise RunError(f"stopped at an image that cannot be read; finished rows are kept; see {listed}")
    allowed, share = errors_allowed(config, images)
    if faults > allowed:
        raise CamkitError(
            f"stopped: {faults} of {images} images cannot be read, more than --max-errors "
            f"{100 * share:g}%; finished rows are kept; see {listed}\n"
            "The same command meets these first, and stops again until they can be read or --max-errors is "
            "higher."
        )
