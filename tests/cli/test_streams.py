"""What a terminal cannot show, a pipe that nobody reads, a terminal without colours: none ends the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_data import made_up, write_results
from terminals import in_a_terminal


@pytest.fixture
def results(tmp_path: Path) -> Path:
    cells = {"gradcam": made_up(20, 0), "shapleycam": made_up(20, 1)}
    return write_results(tmp_path / "résultats → β", cells)


def camkit(*words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "camkit", *map(str, words)],
        capture_output=True,
        env={**os.environ, **environment},
    )


def test_letters_that_an_encoding_lacks_become_question_marks(results: Path) -> None:
    encoding = "cp1252"
    told = camkit("report", results, PYTHONIOENCODING=encoding)
    assert told.returncode == 0 and b"Traceback" not in told.stderr
    text = told.stdout.decode(encoding)
    whole = camkit("report", results, PYTHONIOENCODING="utf-8").stdout.decode("utf-8")
    assert whole.encode(encoding, errors="replace").decode(encoding) == text != whole


def test_an_error_with_such_letters_is_still_one_line(results: Path) -> None:
    told = camkit("report", results / "→", PYTHONIOENCODING="ascii")
    assert told.returncode == 2
    assert told.stderr.startswith(b"error: ") and b"unexpected" not in told.stderr


@pytest.mark.parametrize("words", [("list", "methods", "--format", "json"), ("report", "DIR"), ("--help",)])
def test_a_pipe_that_nobody_reads_ends_quietly(results: Path, words: tuple[str, ...]) -> None:
    arguments = [str(results) if word == "DIR" else word for word in words]
    child = subprocess.Popen(
        [sys.executable, "-m", "camkit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    told = child.stderr.read()
    assert (child.wait(), told) == (0, b"")


def test_no_escape_codes_where_none_are_wanted(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for colours, terminal, styled in (("", "xterm", True), ("1", "xterm", False), ("", "dumb", False)):
        monkeypatch.setenv("NO_COLOR", colours)
        monkeypatch.setenv("TERM", terminal)
        assert ("\x1b[" in in_a_terminal(100, "report", results)) is styled


def test_no_escape_codes_down_a_pipe(results: Path) -> None:
    assert b"\x1b" not in camkit("report", results, TERM="xterm").stdout


def test_a_line_stands_above_the_bar_and_the_bar_reaches_its_end(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    from camkit.console import Bar, say

    with Bar(3, "tiny") as bar:
        bar.reach(1.4)
        say("a notice")
        bar.reach(3.0000001)  # shares of images, added up
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "a notice" in lines
    assert not recwarn.list
    assert lines[-1].startswith("tiny: 100%") and " 3/3 " in lines[-1] and "-" not in lines[-1].split("[")[1]
