"""One of several processes that divide a run's images, as torchrun starts them.

No process waits for another: there is no process group and no collective call, only files. Process k of n
computes images k, k + n, k + 2n, … of the run's order and writes into OUT/.parts/rank-k, a results folder of
its own, which it folds into OUT at its end (:mod:`camkit.results.merge`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from camkit.errors import UsageError

T = TypeVar("T")
PARTS = ".parts"


@dataclass(frozen=True)
class Share:
    """Which part of a run this process does.

    Attributes:
        rank: 0 to `world` - 1.
        local_rank: the same within this machine: which of its devices to take.
        start: names this start of all the processes where that is known: another one has another name.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    start: str = ""

    @classmethod
    def from_environment(cls) -> Share:
        """From RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets; the whole run without them.

        A start on one machine is known by torchrun's run, restart and port. The torchruns of several
        machines count their restarts each for itself.

        Raises:
            UsageError: they make no sense.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        texts = [os.environ.get(name) for name in names]
        if texts[0] is None or texts[1] is None:
            return cls()
        try:
            rank, world, local_rank = (int(text or 0) for text in texts)
        except ValueError:
            rank, world, local_rank = -1, 0, 0
        if not 0 <= rank < world:
            found = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
            raise UsageError(
                f"{found} in the environment: expected 0 <= RANK < WORLD_SIZE, as torchrun sets them"
            )
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == texts[1]
        started = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT") if one_machine else ()
        return cls(rank, world, local_rank, " ".join(os.environ.get(name, "") for name in started))

    def of(self, images: Sequence[T]) -> Sequence[T]:
        """This process's images: none twice and none left out over all ranks."""
        return images[self.rank :: self.world]

    def folder(self, out: Path) -> Path:
        """Where this process writes."""
        return out if self.world == 1 else out / PARTS / f"rank-{self.rank}"

    def folders(self, out: Path) -> list[Path]:
        """Where the processes of this run write, in the order of their ranks."""
        return [replace(self, rank=rank).folder(out) for rank in range(self.world)]

    def device(self, name: str) -> str:
        """The device to take where `name` leaves the choice."""
        return f"cuda:{self.local_rank}" if self.world > 1 and name == "cuda" else name


def part_folders(out: Path) -> list[Path]:
    """The parts that wait to be merged into a results folder."""
    return sorted(path for path in (out / PARTS).glob("rank-*") if path.is_dir())


def available_cores() -> int:
    """Cores that this process may use: by its affinity, and by the limit of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))  # "max" is no number: no limit
    return max(1, cores)
