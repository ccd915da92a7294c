"""Twenty kills at random moments, by scripts/soak.py: `make soak` does hundreds."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SOAK = ROOT / "scripts" / "soak.py"


@pytest.mark.slow
def test_kills_lose_double_and_change_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SOAK), "--kills", "20"], capture_output=True, text=True, timeout=900
    )
    numbers = {line[:36].strip(): int(line[36:]) for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stdout + done.stderr
    ends = {name: number for name, number in numbers.items() if name.startswith("ended")}
    assert sum(ends.values()) > ends["ended at a random moment"] >= 20, ends
    assert numbers["rows computed"] > 0 and numbers["files compared"] > 0
    for wrong in ("rows computed again", "rows lost", "rows doubled", "files different"):
        assert numbers[wrong] == 0


def test_a_run_that_fails_otherwise_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SOAK.parent)
    soak = importlib.import_module(SOAK.stem)

    def work() -> None:
        raise KeyError("no such thing")

    told = tmp_path / "traceback"
    with pytest.raises(RuntimeError, match=r"a run ended with 1:\nTraceback(.|\n)*KeyError: 'no such thing'"):
        soak.killed(soak.in_child(work, told), told)
