"""What torchrun starts in test_processes.py: one process of a tiny run, which may kill itself once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_words

from camkit.cli import main
from camkit.results.cells import CellScores
from camkit.results.model_run import ModelRun


def die_once(rank: int, number: int, marker: Path) -> None:
    """Kill process `rank` before its `number`-th cell and batch is written; not again after a restart."""
    if os.environ.get("RANK") != str(rank) or marker.exists():
        return
    write, writes = ModelRun.write, iter(range(number))

    def dying(self: ModelRun, result: Any) -> None:
        if isinstance(result, CellScores) and next(writes, None) is None:
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, result)

    ModelRun.write = dying  # type: ignore[method-assign]


if __name__ == "__main__":
    data, out, *victim = sys.argv[1:]
    torch.set_num_threads(1)
    if victim:
        die_once(int(victim[0]), int(victim[1]), Path(out).with_suffix(".killed"))
    main(tiny_words(Path(data), Path(out)))
