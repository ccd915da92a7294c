"""What of scripts/speed.py needs processes of its own: other packages, peak memory, the allocator."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from speed_jobs import Line, Setting, interleaved, temporary_folder

from camkit.network.glibc import keep_freed_memory
from camkit.network.loading import load_model

T = TypeVar("T")
MODEL = "tf_efficientnet_lite0"
IMAGES = (50, 200)
SHAPE, PASSES = (16, 3, 224, 224), 20


def memory(setting: Setting) -> list[Line]:
    """Peak resident memory of `camkit bench` with 200 images and with 50, in megabytes."""
    pairs = []
    for _ in range(setting.repetitions):
        few, many = (peak_megabytes(setting, images) for images in IMAGES)
        pairs.append((many, few))
    case = f"{MODEL}, ADCC scores, one method: peak memory with {IMAGES[1]} images against {IMAGES[0]}"
    return [Line(case, pairs, "≤ 1.05", 1.05)]


def peak_megabytes(setting: Setting, images: int) -> float:
    words = f"-m camkit bench --model {MODEL} --method shapleycam --metrics adcc --device cpu --workers 0"
    with temporary_folder(setting.folder) as out:
        command = [sys.executable, *words.split(), "--data", str(setting.photos), "--limit", str(images)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(setting.threads)}
        with subprocess.Popen(
            [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(said.decode())
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Elsewhere:
    """A process in which functions run that know nothing of camkit's settings.

    Args:
        keep: have it keep freed memory, as camkit does.
    """

    def __init__(self, threads: int, keep: bool = False) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(keep, threads))

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def call(self, function: Callable[..., T], *args: object) -> T:
        return self.pool.submit(function, *args).result()


def allocator(setting: Setting) -> list[Line]:
    """Bare passes in a process that keeps freed memory, and in one that does not."""
    with Elsewhere(setting.threads, keep=True) as keeping, Elsewhere(setting.threads) as plain:
        pairs = interleaved(
            lambda: keeping.call(_bare_passes), lambda: plain.call(_bare_passes), setting.repetitions
        )
    return [Line(f"{MODEL}, bare passes: freed memory kept or not", pairs, inverse=True)]


def _start(keep: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


@cache
def _network() -> torch.nn.Module:
    return load_model(MODEL).model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def _bare_passes() -> None:
    images = torch.zeros(SHAPE).contiguous(memory_format=torch.channels_last)
    for _ in range(PASSES):
        _network()(images)
