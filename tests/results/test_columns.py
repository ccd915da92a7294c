"""A column of the image CSV or of summary.csv is declared once: writing, reading and the summary follow."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_run import FOLDER, make_images, tiny_bench

from camkit.results.columns import ROW, SUMMARY, RowColumn, SummaryColumn
from camkit.results.folder import read_scores

IMAGES = 5


def header_of(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return next(csv.reader(file))


def test_a_declared_column_is_written_read_and_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = RowColumn(lambda result, place: str(len(result.items[place].id)), is_number=True)
    monkeypatch.setitem(ROW, "letters", letters)
    monkeypatch.setitem(ROW, "source", RowColumn(lambda result, place: result.cell.method.source))
    monkeypatch.setitem(SUMMARY, "definitions", SummaryColumn(lambda cell: cell.protocol["definitions"]))
    for name, score in (("controls", "adcc"), ("never", "road")):
        there = SummaryColumn(lambda cell: "no", where=lambda columns, score=score: score in columns)
        monkeypatch.setitem(SUMMARY, name, there)
    data, out = make_images(tmp_path / "data", IMAGES), tmp_path / "out"
    tiny_bench(data, out, method=("edges",))
    path = out / FOLDER / "second-rest" / "edges.csv"
    first = ["image", "label", "target", "probability", "letters", "source", "average_drop"]
    assert header_of(path)[: len(first)] == first
    rows = read_scores(path)
    assert "source" not in rows and len(rows) == IMAGES
    assert rows["letters"].tolist() == [len(image) for image in rows.index]
    summary = header_of(out / "summary.csv")
    assert summary[summary.index("top1") + 1 :][:2] == ["definitions", "average_drop"]
    assert summary[-3:] == ["zero_probability", "not_finite", "controls"]
    assert not {"letters", "never"} & {*summary}
