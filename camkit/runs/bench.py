"""A run: models, images, cells in; results folder out."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from camkit.config import RunConfig
from camkit.errors import CamkitError, PluginError, RunError, Say, UsageError
from camkit.network.numerics import numerics
from camkit.results.folder import file_name, run_folders
from camkit.results.merge import is_whole, refresh_summary, set_aside
from camkit.runs.job import Job
from camkit.runs.selection import select
from camkit.runs.stop import Stop, stop_signals
from camkit.share import Share


def bench(config: RunConfig, say: Say = print) -> pd.DataFrame | None:
    """Run a benchmark; see :class:`camkit.config.RunConfig`.

    Whatever ends it, but for a second signal, summary.csv is made from the rows that are there.

    Args:
        say: takes each line that the user should see.

    Returns:
        One row per cell of the results folder, as in its summary.csv. Of several processes (see
        :mod:`camkit.share`) the last to end has it, the others None.

    Raises:
        UsageError: a name does not exist, or the folder holds results of another protocol.
        RunError: the folder cannot be written, another run is at work in it, or `--on-error stop`.
        CamkitError: models failed: weights or images cannot be had, out of memory. All others were run.
        PluginError: a plugin's method or metric failed; all other rows are written.
        KeyboardInterrupt: SIGINT or SIGTERM came; the batch in hand was finished and written first. If it was
            the last one, nothing is raised.
    """
    share = Share.from_environment()
    with stop_signals(say if share.rank == 0 else _silent) as stop:
        run = _Run(config, share, stop, say)
        try:
            run.run_models()
        except (Exception, KeyboardInterrupt) as error:
            refused = isinstance(error, UsageError) and run.begun < 2  # the folder stays as it is
            if not (stop.twice or refused) and run_folders(config.out):
                with suppress(CamkitError):
                    refresh_summary(config.out)
            raise
        summary = refresh_summary(config.out)
        stop.check()
        if stop.asked:
            run.say("That was the last batch: the run is done.")
    whole = run.is_whole()
    # Of several processes the last to end speaks of plugins: an exit code of 1 would end the others too.
    if run.failed or (run.failures and whole):
        raise what_failed(run.failed, run.failures, len(run.models), config.out if whole else None)
    return summary if whole else None


class _Run:
    """All models of one process's run.

    Attributes:
        begun: models that were begun; `failed`: those that failed. Names only: an error would keep its model
            in memory.
        is_last: whether this process put the last rows of the last model into the results folder.
        failures: plugin errors, a line each.
    """

    def __init__(self, config: RunConfig, share: Share, stop: Stop, say: Say) -> None:
        self.config = config
        self.share = share
        self.stop = stop
        self.warn = say
        self.say = say if share.rank == 0 else _silent  # the first of several processes speaks for all
        self.begun = 0
        self.is_last = False
        self.failed: list[str] = []
        self.failures: list[str] = []

    def run_models(self) -> None:
        """Make all rows that are not there, model by model.

        Raises:
            UsageError, RunError: nothing more can be done.
            CamkitError: the only model failed.
        """
        config = self.config
        if config.out.is_symlink() and not config.out.exists():
            raise UsageError(f"--out {config.out} is a link to {config.out.readlink()}, which does not exist")
        selected = select(config, self.say)
        self.config = config = selected.config
        self.models, self.data, self.items = selected.models, selected.data, selected.items
        if self.share.world > 1:
            mine = len(self.share.of(self.items))
            self.warn(
                f"process {self.share.rank} of {self.share.world} (RANK and WORLD_SIZE in the environment, "
                f"as torchrun sets them): {mine} of {len(self.items)} images"
            )
        if config.force:
            _start_afresh(config.out, self.share, self.say)
        for name in self.models:
            if self.stop.asked:
                self.stop.cut = True
                break
            self.begun += 1
            job = Job(name, config, self.data, self.items, self.share, self.stop, self.say)
            try:
                with numerics(config.tf32, config.deterministic) as record:
                    self.is_last, failures = job.run(record)
                self.failures += failures
            except (UsageError, RunError):
                raise
            except CamkitError as error:
                if len(self.models) == 1 and self.share.world == 1:
                    raise
                self.failed.append(name)
                process = f"process {self.share.rank}: " if self.share.rank else ""
                self.warn(f"error: {process}{name}: {error}")
            gc.collect()

    def is_whole(self) -> bool:
        """Whether all processes' rows are in the results folder, and this process put the last ones there."""
        images = [item.id for item in self.items]
        return self.share.world == 1 or (
            self.is_last and all(is_whole(self.config.out, file_name(name), images) for name in self.models)
        )


def what_failed(failed: Sequence[str], failures: Sequence[str], models: int, out: Path | None) -> CamkitError:
    """The error that a run ends with of which everything else is finished.

    Args:
        failed: the models that failed, of `models`.
        failures: plugin errors, a line each.
        out: the results folder, where all else is finished.
    """
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {models} models failed, as said above: {', '.join(failed)}")
    if failures:
        others = f"\n({len(failures) - 1} more; all in failures.csv)" if len(failures) > 1 else ""
        lines.append(failures[0] + others)
    if out is not None and (out / "summary.csv").exists():
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
