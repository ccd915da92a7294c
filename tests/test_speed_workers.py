"""Worker processes: how many fit into shared memory, and what failures of memory and time are called."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_speed_cache import SMALL, items_of
from tiny import TINY

from camkit.config import RunConfig
from camkit.data import DataSet
from camkit.data.batches import affordable_workers, batches
from camkit.errors import CamkitError, is_out_of_memory
from camkit.network.numerics import numerics
from camkit.network.passes import Network
from camkit.runs.accuracy import measure_top1
from camkit.runs.bench import bench
from camkit.runs.loop import OutOfMemory, failures_named
from camkit.runs.photos import explain_images

BATCH = 4 * 3 * 32 * 32  # bytes of four of SMALL's crops


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Shared memory with `room.free` bytes left, in blocks of one."""
    system = SimpleNamespace(free=0)
    monkeypatch.setattr("camkit.data.pixels.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=system.free, f_frsize=1))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return system


@pytest.mark.parametrize(
    ("free", "workers"),
    [
        (7 * BATCH, 3),
        (7 * BATCH - 1, 2),
        (5 * BATCH - 1, 1),
        (3 * BATCH, 1),
        (3 * BATCH - 1, 0),
        (0, 0),
    ],
)
def test_as_many_workers_as_fit(room: SimpleNamespace, free: int, workers: int) -> None:
    """Two batches a worker are on their way, and one is in use."""
    room.free = free
    said: list[str] = []
    assert affordable_workers(SMALL, 4, 1000, 3, said.append) == workers
    assert len(said) == (workers < 3)
    assert all("--shm-size" in line for line in said)


def test_few_images_need_little_room(room: SimpleNamespace) -> None:
    room.free = 2 * BATCH
    assert affordable_workers(SMALL, 4, 8, 3) == 2  # two batches in all
    assert affordable_workers(SMALL, 8, 4, 3) == 1  # one batch of four
    assert affordable_workers(SMALL, 4, 0, 3) == 0


def test_processes_of_one_machine_share_the_room(
    room: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.free = 7 * BATCH
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert affordable_workers(SMALL, 4, 1000, 3) == 1


def test_without_shared_memory_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("camkit.data.pixels.SHARED_MEMORY", tmp_path / "none")
    assert affordable_workers(SMALL, 4, 1000, 3) == 3


def test_the_loader_takes_that_many(
    room: SimpleNamespace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None here: a fork would fail."""
    monkeypatch.setattr("camkit.data.pixels._start_worker", lambda number: os._exit(1))
    found = [batch.pixels for batch in batches(items_of(photos), SMALL, 2, workers=2)]
    assert sum(len(pixels) for pixels in found if pixels is not None) == 6
    room.free = math.prod((100, *SMALL.shape))
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches(items_of(photos), SMALL, 2, workers=2))


def test_one_line_says_it(room: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    options = TINY | {"method": ("flat",), "metrics": ("adcc",), "batch_size": 2, "workers": 2}
    said: list[str] = []
    bench(RunConfig(**options | {"data": str(photos), "out": tmp_path / "out"}), say=said.append)
    assert len([line for line in said if "--shm-size" in line]) == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
    ],
)
def test_out_of_memory_in_all_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory, match="out of memory at --batch-size 8"), failures_named(8):
        raise error


def test_other_errors_are_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"))
    with pytest.raises(RuntimeError, match="shapes"), failures_named(8):
        raise RuntimeError("shapes do not match")


def test_workers_that_are_silent(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    """As a worker is that waits for room in shared memory."""
    monkeypatch.setattr("camkit.data.pixels.TIMEOUT", 1)
    monkeypatch.setattr("camkit.data.pixels._start_worker", lambda number: time.sleep(30))
    with pytest.raises(CamkitError, match="no batch came .* try --workers 0"), failures_named(2):
        list(batches(items_of(photos), SMALL, 2, workers=1))


def test_tf32_is_off_in_pictures_and_top1(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    seen: list[bool] = []
    logits, trace = Network.logits, Network.trace

    def look() -> None:
        seen.extend((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    monkeypatch.setattr(Network, "logits", lambda *arguments: look() or logits(*arguments))
    monkeypatch.setattr(Network, "trace", lambda *arguments: look() or trace(*arguments))
    config = RunConfig(**TINY | {"data": str(photos), "method": ("flat",)})
    items = tuple(replace(item, label=0) for item in items_of(photos))
    with numerics(tf32=True, deterministic=False):
        explain_images([items[0].source], config, say=lambda line: None)
        explained = len(seen)
        measure_top1("timm/camkit_tiny", DataSet("photos", items, ""), config, 2, lambda line: None)
        look()
    assert 0 < explained < len(seen) - 2
    assert not any(seen[:-2])
    assert all(seen[-2:])
