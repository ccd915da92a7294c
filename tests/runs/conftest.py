"""Several processes that divide a run, one after the other in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import RunAs, tiny_config

from camkit.runs.bench import bench


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set the environment as torchrun does."""

    def become(rank: int, world: int) -> None:
        for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))

    return become


@pytest.fixture
def run_as(as_rank: Callable[[int, int], None]) -> RunAs:
    """Run one process of several, from its start to its end; give its summary and the lines it says."""

    def run(rank: int, world: int, data: Path, out: Path, **changes: object) -> tuple:
        as_rank(rank, world)
        lines: list[str] = []
        return bench(tiny_config(data, out, **changes), lines.append), lines

    return run
