"""Twenty kills at random moments, by scripts/soak.py: `make soak` does hundreds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent.parent / "scripts" / "soak.py"


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
