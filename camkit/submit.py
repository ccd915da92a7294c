"""`camkit submit`: the grid of a run over a cluster, one job a model, through submitit."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError, UsageError
from camkit.prepare import Say

LOGS = ".jobs"
# A job that reaches its time limit goes on as a new one, so often.
REQUEUES = 100
YEAR = 365 * 24 * 60  # minutes


@dataclass(frozen=True)
class Job:
    """`camkit bench` for one model. Started again it goes on where it stopped, so that it can be requeued."""

    words: tuple[str, ...]

    def __call__(self) -> int:
        """Its exit code."""
        return subprocess.run([sys.executable, "-m", "camkit", *self.words], check=False).returncode

    def checkpoint(self) -> Any:
        """What the cluster runs after a time limit or a preemption: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __str__(self) -> str:
        return shlex.join(["camkit", *self.words])


def split_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The words of a command line: `--slurm-NAME VALUE` settings, and those for `camkit bench`.

    Raises:
        UsageError: a setting has no value.
    """
    slurm: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("--slurm-"):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--slurm-").partition("=")
        found = value if equals else next(remaining, None)
        if found is None:
            raise UsageError(f"{word}: expected a value")
        slurm[name.replace("-", "_")] = found
    return slurm, rest


def make_jobs(words: Sequence[str], models: Sequence[str]) -> list[Job]:
    """One job a model from the words of `camkit bench`, whose own --model they replace."""
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--model":
            next(remaining, None)
        elif not word.startswith("--model="):
            rest.append(word)
    return [Job(("bench", *rest, "--model", model)) for model in models]


def run_here(jobs: Sequence[Job], at_a_time: int, out: Path, say: Say) -> None:
    """Run jobs on this machine.

    Raises:
        CamkitError: submitit is not installed, or a job failed; the others were finished.
    """
    executor = _submitit().LocalExecutor(out / LOGS)
    executor.update_parameters(timeout_min=YEAR)
    waiting, failed = list(jobs), []
    running: list[tuple[Job, Any]] = []
    while waiting or running:
        while waiting and len(running) < at_a_time:
            job = waiting.pop(0)
            running.append((job, executor.submit(job)))
            say(f"started: {job}")
        time.sleep(0.2)
        for job, handle in [pair for pair in running if pair[1].done()]:
            running.remove((job, handle))
            error = handle.exception()
            if error is None and handle.result() == 0:
                say(f"done: {job.words[-1]}")
            else:
                failed.append(f"{job.words[-1]} (see {handle.paths.stderr})")
    if failed:
        raise CamkitError(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")


def submit(jobs: Sequence[Job], slurm: Mapping[str, str], out: Path) -> list[str]:
    """Hand jobs to Slurm as one array; give their ids.

    Raises:
        UsageError: Slurm has no setting of that name.
        CamkitError: submitit is not installed, or there is no Slurm here.
    """
    try:
        executor = _submitit().SlurmExecutor(out / LOGS, max_num_timeout=REQUEUES)
        settings = {name: int(value) if value.isdigit() else value for name, value in slurm.items()}
        executor.update_parameters(job_name="camkit", **settings)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--slurm-…: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        raise CamkitError(f"no Slurm here ({error}); --local N runs the jobs on this machine") from error
    with executor.batch():
        handles = [executor.submit(job) for job in jobs]
    return [handle.job_id for handle in handles]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise CamkitError("camkit submit needs submitit: pip install 'camkit[slurm]'") from error
    return submitit
