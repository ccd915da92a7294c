"""`camkit data sample` takes a part."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

import pytest
import small_imagenet as small
from command_line import call
from pictures import jpeg, picture, write
from small_imagenet import LABELS, WNIDS, photos

from camkit.data import find_images

cli = partial(call, "data")


def test_a_sample_has_n_of_each_class_with_their_labels(tmp_path: Path) -> None:
    for number in range(5):
        for wnid in (WNIDS[0], WNIDS[1]):
            write(tmp_path / "data" / wnid / f"{number}.jpg", jpeg(picture(number)))
    result = cli("sample", tmp_path / "data", "--per-class", 2, "-o", tmp_path / "out", "--format", "csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert sorted(row["label"] for row in rows) == ["1", "1", "340", "340"]
    taken = find_images(str(tmp_path / "out"), 0)
    assert {item.id: str(item.label) for item in taken.items} == {row["file"]: row["label"] for row in rows}
    for row in rows:
        assert (tmp_path / "out" / row["file"]).resolve() == tmp_path / "data" / row["image"]
    again = cli("sample", tmp_path / "data", "--per-class", 2, "-o", tmp_path / "b", "--format", "csv")
    assert again.stdout == result.stdout
    other = [
        cli(
            "sample",
            tmp_path / "data",
            "--per-class",
            2,
            "-o",
            tmp_path / f"c{seed}",
            "--seed",
            seed,
            "--format",
            "csv",
        )
        for seed in range(1, 4)
    ]
    assert any(result.stdout != one.stdout for one in other)


@pytest.mark.parametrize("build", [small.shards, small.parquet, small.wnid_folders])
def test_a_copied_sample_has_the_same_bytes(build: object, tmp_path: Path) -> None:
    build(tmp_path / "data")  # type: ignore[operator]
    named = ("--classes", "imagenet") if build is small.shards else ()
    words = ("--per-class", 9, "-o", tmp_path / "out", "--copy", "--format", "json", *named)
    result = cli("sample", tmp_path / "data", *words)
    rows = json.loads(result.stdout)
    assert len(rows) == len(LABELS)
    for row in rows:
        file = tmp_path / "out" / row["file"]
        assert not file.is_symlink()
        assert LABELS[photos().index(file.read_bytes())] == row["label"]


def test_a_sample_of_rows_without_names_gets_an_ending(tmp_path: Path) -> None:
    small.parquet(tmp_path / "data", paths=[None] * 6)
    cli("sample", tmp_path / "data", "--per-class", 1, "-o", tmp_path / "out")
    assert len(find_images(str(tmp_path / "out"), 0).items) == 5


def test_a_sample_of_unlabelled_images_keeps_their_folders(tmp_path: Path) -> None:
    for folder in ("cats", "dogs/old"):
        for number in range(3):
            write(tmp_path / "data" / folder / f"{number}.jpg", jpeg(picture(number)))
    cli("sample", tmp_path / "data", "--per-class", 1, "-o", tmp_path / "out")
    assert sorted(item.group for item in find_images(str(tmp_path / "out"), 0).items) == ["cats", "dogs/old"]


def test_a_sample_never_writes_over_anything(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path / "data")
    write(tmp_path / "out" / "mine.txt", "keep")
    result = cli("sample", tmp_path / "data", "--per-class", 1, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_sample_leaves_unreadable_files_out_and_says_so(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path / "data")
    write(tmp_path / "data" / "n01440764" / "empty.jpg", b"")
    result = cli("sample", tmp_path / "data", "--per-class", 1, "-o", tmp_path / "out")
    assert "n01440764/empty.jpg is left out: empty: 0 bytes" in result.stderr
    assert not (tmp_path / "out" / "n01440764").exists()
