"""`camkit submit`: the grid of a run as one job per model, on this machine or, through submitit, on Slurm."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camkit.errors import CamkitError, Say, UsageError
from camkit.results.folder import file_name
from camkit.runs.stop import stop_signals

LOGS = ".jobs"
# A job that reaches its time limit, of so many minutes unless told otherwise, is queued again, so often.
TIME, REQUEUES = 240, 100
# Settings that submitit reads itself and counts with; sbatch gets all others as they stand.
NUMBERS = ("nodes", "ntasks_per_node", "array_parallelism", "signal_delay_s")
# Those that take a list, and those that submitit makes.
NOT_SETTINGS = (
    "setup", "teardown", "srun_args", "additional_parameters", "stderr_to_stdout", "use_srun",
    "array", "output", "error", "open_mode", "signal", "map_count", "wrap",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """`camkit bench` for one model. Started again it goes on where it stopped, so that it can be requeued."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The model."""
        return self.words[-1]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "camkit", *self.words]

    def __call__(self) -> None:
        """Run it.

        Raises:
            subprocess.CalledProcessError: it failed; so does the job then.
        """
        subprocess.run(self.command, check=True, preexec_fn=_leave_warnings_to_submitit)

    def checkpoint(self) -> Any:
        """What the cluster runs after a time limit or a preemption: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __str__(self) -> str:
        return shlex.join(["camkit", *self.words])


def _leave_warnings_to_submitit() -> None:
    """Ignore the signal that Slurm sends before a time limit to all processes of a job.

    It would end the run, and with it the job, before submitit has queued the job again.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


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
        found = value if equals else next(remaining, "--")
        if found.startswith("--"):
            raise UsageError(f"--slurm-{name}: expected a value (of a switch: --slurm-{name}=)")
        slurm[name.replace("-", "_")] = found
    return slurm, rest


def slurm_settings(slurm: Mapping[str, str]) -> dict[str, Any]:
    """What submitit takes, from the values of `--slurm-NAME`.

    Raises:
        UsageError: a value makes no sense, or camkit cannot pass the setting on.
    """
    settings: dict[str, Any] = {"job_name": "camkit", "time": TIME}
    others: dict[str, str | bool] = {}
    for name, text in slurm.items():
        option = f"--slurm-{name.replace('_', '-')}"
        if name in NOT_SETTINGS:
            raise UsageError(f"{option} cannot be set: it takes a list, or submitit sets it")
        if name == "time":
            settings[name] = minutes(text)
        elif name in NUMBERS:
            if not re.fullmatch(r"[0-9]+", text):
                raise UsageError(f"{option} {text}: expected a whole number")
            settings[name] = int(text)
        else:
            others[name] = text or True
    return {**settings, "additional_parameters": others}


def minutes(text: str) -> int:
    """A time limit as Slurm writes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up.

    Raises:
        UsageError: it is none, or 0.
    """
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+(?::[0-9]+){0,2})", text)
    days, clock = match.groups() if match else (None, "0")
    fields = [int(field) for field in clock.split(":")]
    units = (3600, 60, 1) if days or len(fields) == 3 else (60, 1)
    seconds = 86400 * int(days or 0) + sum(n * unit for n, unit in zip(fields, units, strict=False))
    if not seconds:
        raise UsageError(f"--slurm-time {text}: expected minutes, H:M:S or D-H:M:S")
    return math.ceil(seconds / 60)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = range(torch.cuda.device_count())
    return named.split(",")[: len(there)] if named else [str(place) for place in there]


def run_here(jobs: Sequence[Job], at_a_time: int, out: Path, gpus: Sequence[str], say: Say) -> None:
    """Run jobs on this machine; what they print goes to OUT/.jobs/<model>.log.

    Args:
        gpus: dealt out to the `at_a_time` slots where there are several; see :func:`visible_gpus`.

    Raises:
        CamkitError: a job failed; the others were finished.
        KeyboardInterrupt: SIGINT or SIGTERM came; the jobs finished their batches, and some are not done.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    waiting = list(jobs)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    failed: list[str] = []
    told = False
    with stop_signals(say) as stop, stop.patiently():
        try:
            while waiting or running:
                if stop.asked and not told:
                    told, stop.cut = True, bool(waiting)
                    waiting.clear()
                    _interrupt(running.values())
                for slot in range(at_a_time):
                    if waiting and slot not in running:
                        job = waiting.pop(0)
                        gpu = gpus[slot % len(gpus)] if len(gpus) > 1 else None
                        running[slot] = job, _start(job, _log(job, out), gpu, at_a_time)
                        say(f"started: {job}")
                time.sleep(0.2)
                for slot, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        say(f"{'failed' if process.returncode else 'done'}: {job.name}")
                        failed += [f"{job.name} (see {_log(job, out)})"] * bool(process.returncode)
        except BaseException:  # a second signal, or a job that cannot be started
            _interrupt(running.values())
            for _, process in running.values():
                process.wait()
            raise
        stop.cut |= told and bool(failed)
        stop.check()
    if failed:
        raise CamkitError(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")


def _log(job: Job, out: Path) -> Path:
    return out / LOGS / f"{file_name(job.name)}.log"


def _start(job: Job, log: Path, gpu: str | None, at_a_time: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LOCAL_WORLD_SIZE": str(at_a_time)}  # they share the memory for batches
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with log.open("ab") as file:
        # A session of its own: a Ctrl-C comes once, from here, and not from the terminal as well.
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _interrupt(running: Iterable[tuple[Job, subprocess.Popen[bytes]]]) -> None:
    for _, process in running:
        process.send_signal(signal.SIGINT)


def submit(jobs: Sequence[Job], settings: Mapping[str, Any], out: Path) -> list[str]:
    """Hand jobs to Slurm as one array; give their ids.

    Args:
        settings: see :func:`slurm_settings`.

    Raises:
        CamkitError: submitit is not installed, there is no Slurm here, or it refuses the jobs.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise CamkitError("camkit submit needs submitit: pip install 'camkit[slurm]'") from error
    try:
        executor = SlurmExecutor(out / LOGS, max_num_timeout=REQUEUES)
    except RuntimeError as error:
        raise CamkitError(f"no Slurm here ({error}); --local N runs the jobs on this machine") from error
    executor.update_parameters(**settings)
    try:
        with executor.batch():
            handles = [executor.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise CamkitError(f"Slurm refused the jobs: {'; '.join(str(error).splitlines())}") from error
    return [handle.job_id for handle in handles]
