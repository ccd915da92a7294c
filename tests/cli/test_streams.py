"""What a terminal cannot show, a pipe that nobody reads, a terminal without colours: none ends the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import run
from report_data import blind, made_up, write_results
from terminals import in_a_terminal

ENCODING = "cp1252"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = {"gradcam": made_up(50, 0, curves=True), "shapleycam-h": made_up(50, 1, curves=True)}
    cells["flat"] = blind(50, 0.3, 0.2, deletion_auc=0.3, insertion_auc=0.4)
    return write_results(tmp_path_factory.mktemp("streams") / "résultats → β", cells)


def camkit(*words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "camkit", *map(str, words)],
        capture_output=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def piped(results: Path) -> subprocess.CompletedProcess:
    """`camkit report` down a pipe of few letters, started in a narrow terminal that has colours."""
    return camkit("report", results, PYTHONIOENCODING=ENCODING, TERM="xterm", COLUMNS="80")


@pytest.fixture(scope="module")
def in_terminals(results: Path) -> list[str]:
    """`camkit report` in a terminal of 80 columns: with colours, without, and one that has none."""
    environments = [{"NO_COLOR": "", "TERM": "xterm"}, {"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}]
    return in_a_terminal(80, environments, "report", results)


def test_letters_that_an_encoding_lacks_become_question_marks(
    results: Path, piped: subprocess.CompletedProcess
) -> None:
    assert piped.returncode == 0 and b"Traceback" not in piped.stderr
    text = piped.stdout.decode(ENCODING)
    whole = run("report", results)
    assert whole.encode(ENCODING, errors="replace").decode(ENCODING) == text != whole


# In place of ASCII, click writes UTF-8.
@pytest.mark.parametrize(("encoding", "arrow"), [(ENCODING, b"?"), ("ascii", "→".encode())])
def test_an_error_with_such_letters_is_still_one_line(encoding: str, arrow: bytes) -> None:
    told = camkit("report", "results", "-o", "→.xyz", PYTHONIOENCODING=encoding)
    assert told.returncode == 2
    assert told.stderr.startswith(b"error: -o " + arrow + b".xyz: ") and told.stderr.count(b"\n") == 1


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


def test_no_escape_codes_where_none_are_wanted(in_terminals: list[str]) -> None:
    assert ["\x1b[" in text for text in in_terminals] == [True, False, False]


def test_no_escape_codes_down_a_pipe(piped: subprocess.CompletedProcess) -> None:
    assert piped.stdout and b"\x1b" not in piped.stdout


def test_a_real_terminal_of_80_columns_gets_narrow_tables_and_a_pipe_whole_ones(
    in_terminals: list[str], piped: subprocess.CompletedProcess
) -> None:
    for text in in_terminals:
        lines = click.unstyle(text).splitlines()
        assert max(map(len, lines)) <= 80 and sum(line.startswith("gradcam ") for line in lines) == 2
    lines = piped.stdout.decode(ENCODING).splitlines()
    assert sum(line.startswith("gradcam ") for line in lines) == 1 and max(map(len, lines)) > 120


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
