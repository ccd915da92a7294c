"""What of scripts/speed.py needs processes of its own: peak memory, and the C library's allocator."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from speed_jobs import Line, Setting, temporary_folder

from camkit.allocator import keep_freed_memory
from camkit.models import load_model

MODEL = "tf_efficientnet_lite0"
IMAGES, REPETITIONS = (50, 200), 2
SHAPE, PASSES = (16, 3, 224, 224), 5


def memory(setting: Setting) -> list[Line]:
    """Peak resident memory of `camkit bench` with 200 images and with 50, in megabytes."""
    pairs = []
    for _ in range(min(setting.repetitions, REPETITIONS)):
        few, many = (peak_megabytes(setting, images) for images in IMAGES)
        pairs.append((many, few))
    case = f"{MODEL}, ADCC scores, one method: peak memory with {IMAGES[1]} images against {IMAGES[0]}"
    return [Line("memory", case, pairs, "≤ 1.05", 1.05)]


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


def allocator(setting: Setting) -> list[Line]:
    """Bare passes in a process that keeps freed memory, and in one that does not."""
    spawn = multiprocessing.get_context("spawn")
    pools = [
        ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(keep, setting.threads))
        for keep in (True, False)
    ]
    try:
        for pool in pools:
            pool.submit(_bare_passes).result()
        pairs = [
            (pools[0].submit(_bare_passes).result(), pools[1].submit(_bare_passes).result())
            for _ in range(setting.repetitions)
        ]
    finally:
        for pool in pools:
            pool.shutdown()
    return [Line("allocator", f"{MODEL}, bare passes: freed memory kept or not", pairs, inverse=True)]


_model: torch.nn.Module


def _start(keep: bool, threads: int) -> None:
    global _model
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    _model = load_model(MODEL).model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def _bare_passes() -> float:
    images = torch.zeros(SHAPE).contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    for _ in range(PASSES):
        _model(images)
    return time.perf_counter() - started
