"""Worker processes: how many fit into shared memory, and that they end with their run."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from crops import SMALL, items_of
from places import HELPERS
from tiny import run

from camkit.data.batches import affordable_workers, batches
from camkit.share import available_cores

BATCH = 4 * 3 * 32 * 32  # bytes of four of SMALL's crops

# A run whose first worker kills it, before the worker itself is set up.
KILLED = """
import os, signal, sys, time
from camkit.data import batches
from camkit.runs import check

def kills_its_run(number):
    run = os.getppid()
    os.kill(run, signal.SIGKILL)
    while os.getppid() == run:
        time.sleep(0.001)
    print(os.getpid(), flush=True)
    start(number)

start = batches.start_worker
batches.start_worker = check.start_worker = kills_its_run
if sys.argv[1] == "batches":
    from crops import SMALL, items_of
    list(batches.batches(items_of(sys.argv[2]), SMALL, 2, workers=1))
else:
    check.check_data(sys.argv[2], workers=1, say=lambda line: None)
"""


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Shared memory with `room.free` bytes left, in blocks of one."""
    system = SimpleNamespace(free=0)
    monkeypatch.setattr("camkit.data.batches.SHARED_MEMORY", tmp_path)
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
    monkeypatch.setattr("camkit.data.batches.SHARED_MEMORY", tmp_path / "none")
    assert affordable_workers(SMALL, 4, 1000, 3) == 3


def test_the_loader_takes_that_many(
    room: SimpleNamespace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None here: a fork would fail."""
    monkeypatch.setattr("camkit.data.batches.start_worker", lambda number: os._exit(1))
    found = [batch.pixels for batch in batches(items_of(photos), SMALL, 2, workers=2)]
    assert sum(len(pixels) for pixels in found if pixels is not None) == 6
    room.free = math.prod((100, *SMALL.shape))
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches(items_of(photos), SMALL, 2, workers=2))


def test_one_line_says_it(room: SimpleNamespace, photos: Path, tmp_path: Path) -> None:
    said = run(photos, tmp_path / "out", method=("flat",), metrics=("adcc",), batch_size=2, workers=2)
    assert len([line for line in said if "--shm-size" in line]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("work", ["batches", "check"])
def test_a_worker_ends_with_a_run_that_is_killed_while_it_starts(photos: Path, work: str) -> None:
    """The pipe is open as long as a process of the run lives."""
    path = {"PYTHONPATH": os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, work, str(photos)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **path},
    )
    assert killed.stdout
    assert killed.wait(timeout=120) == -signal.SIGKILL
    worker = int(killed.stdout.readline())
    try:
        killed.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("limit", "cores"), [("150000 100000", 2), ("max 100000", 3), ("50000 100000", 1), ("not readable", 3)]
)
def test_cores_are_those_of_the_affinity_and_of_the_control_groups_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    monkeypatch.setattr("camkit.share.Path.read_text", lambda path: limit)
    assert available_cores() == cores
