"""Tables are as wide as the terminal and lose nothing; pipes and files get whole ones."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest
from command_line import run
from report_data import blind, made_up, write_results

from camkit.report.grid import Entry, Grid, terminal
from camkit.report.tables import terminal_table
from camkit.results.summary import summarise

REPORT = importlib.import_module("camkit.cli.report")  # the package calls the command so


def without_styles(text: str) -> str:
    return click.unstyle(text)


def cells_of(text: str) -> dict[tuple[int, str, str], str]:
    """(block, row, heading) -> entry, from the places of the rules below the headings."""
    found, block, lines = {}, 0, without_styles(text).splitlines()
    for place, line in enumerate(lines):
        block += line.startswith("resnet18 · ")
        if not line.startswith("method "):
            continue
        spans = [match.span() for match in re.finditer("-+", lines[place + 1])]
        headings = [line[a:b].strip() for a, b in spans]
        for row in lines[place + 2 :]:
            if not row or row.startswith("  "):
                break
            if not row.startswith("-"):
                entries = [row[a:b].strip() for a, b in spans]
                found |= {(block, entries[0], h): e for h, e in zip(headings[1:], entries[1:], strict=True)}
    return found


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    cells = {"gradcam": made_up(50, 0, curves=True), "shapleycam-h": made_up(50, 1, curves=True)}
    cells["flat"] = blind(50, 0.3, 0.2, deletion_auc=0.3, insertion_auc=0.4)
    return write_results(tmp_path / "wide", cells)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("command", ["report", "compare", "bench"])
def test_tables_fit_the_terminal_and_lose_nothing(wide, monkeypatch, width, command):
    def text(letters: int | None) -> str:
        if command == "bench":  # whose means are printed by the same function, also by score and merge
            return terminal_table(summarise(wide), letters)
        monkeypatch.setattr(REPORT, "table_width", lambda: letters)
        return run(command, wide)

    whole, narrow = text(None), text(width)
    lines = without_styles(narrow).splitlines()
    assert max(map(len, lines)) <= width
    assert cells_of(narrow) == cells_of(whole) and len(cells_of(whole)) >= 3 * 6
    if width == 160:
        assert [line for line in lines if line.startswith("gradcam")] == [
            line for line in without_styles(whole).splitlines() if line.startswith("gradcam")
        ]
    elif command == "report":
        assert sum(line.startswith("gradcam ") for line in lines) == 2
        assert max(map(len, whole.splitlines())) > 100


def test_a_part_has_at_least_one_column_beside_the_names():
    row = tuple(Entry(text) for text in ("m" * 60, "1.00", "2.00", "3.00"))
    text = terminal([Grid("t", "", ("method", "a", "b", "c"), ((row,),))], width=40)
    assert text.count("m" * 60) == 3 and all(f"{value}.00" in text for value in (1, 2, 3))


@pytest.mark.parametrize(
    "words", [("bench", "--model", "resnet18"), ("score", "DIR", "--metrics", "adcc"), ("merge", "DIR")]
)
def test_the_commands_that_print_means_fit_them_to_the_terminal(wide, monkeypatch, words):
    """What they would run is left out: it gives these means."""
    summary = summarise(wide)
    monkeypatch.setattr("camkit.runs.bench.bench", lambda *_, **__: summary)
    monkeypatch.setattr("camkit.runs.cells.cells_of", lambda *_: summary)
    monkeypatch.setattr("camkit.runs.rescore.rescore", lambda *_, **__: summary)
    module = importlib.import_module("camkit.cli.bench" if words[0] == "bench" else "camkit.cli.runs")
    monkeypatch.setattr(module, "table_width", lambda: 80)
    lines = run(*(wide if word == "DIR" else word for word in words)).splitlines()
    table = [line for line in lines if "summary.csv" not in line]
    assert max(map(len, table)) <= 80 and sum(line.startswith("gradcam ") for line in table) == 2


def test_a_file_gets_whole_tables(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(REPORT, "table_width", lambda: 80)
    run("report", wide, "-o", tmp_path / "table.txt")
    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert sum(line.startswith("gradcam ") for line in lines) == 1
