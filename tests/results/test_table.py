"""Tables on disk: torn ends, odd names, rows that meet again, writing by rename."""

from __future__ import annotations

import csv
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from camkit.errors import CamkitError
from camkit.results.arrays import Maps
from camkit.results.files import write_atomically
from camkit.results.table import Table, complete, merge_rows, read_records

COLUMNS = ("image", "score", "other")
ODD = [
    "a,b",
    'quo"te',
    '"',
    '""',
    "new\nline",
    "\n",
    "car\rriage",
    "\r\n",
    "größe 猫",
    "latin\udce9",
    "NA",
    " x ",
]


def rows(*images: str) -> list[dict[str, str]]:
    return [{"image": image, "score": str(place)} for place, image in enumerate(images)]


def test_odd_names_come_back(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    Table(path, COLUMNS).append(rows(*ODD))
    assert [row["image"] for row in read_records(path)[1]] == ODD
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ODD


def test_torn_anywhere_no_whole_row_is_lost_and_no_torn_one_kept(tmp_path: Path) -> None:
    """Cut a file of odd names after every byte: exactly the rows whose last newline is there are read."""
    whole = tmp_path / "whole.csv"
    table = Table(whole, COLUMNS)
    ends = []  # of each record
    for row in rows(*ODD):
        table.append([row])
        ends.append(whole.stat().st_size)
    data = whole.read_bytes()
    for cut in range(len(data) + 1):
        path = tmp_path / "torn.csv"
        path.write_bytes(data[:cut])
        expected = [image for image, end in zip(ODD, ends, strict=True) if end <= cut]
        assert [row["image"] for row in read_records(path)[1]] == expected
        torn = Table(path, COLUMNS)
        assert [image for (image,) in torn.known] == expected
        assert data.startswith(path.read_bytes()), "what was whole must stay byte for byte"
        torn.append(rows(*ODD))
        assert path.read_bytes() == data


def test_complete_is_what_ends_outside_quotes() -> None:
    assert complete(b'a,b\n"x\ny",1\n"x\n') == b'a,b\n"x\ny",1\n'
    assert complete(b'a\n"\xc3') == b"a\n"
    assert complete(b"a") == b""


def test_zeros_after_a_power_loss_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = Table(path, COLUMNS)
    table.append(rows("a", "b"))
    before = path.read_bytes()
    for garbage in (b"\0" * 64, b"\0" * 64 + b"\n", b"\0\0c,1,\n"):
        path.write_bytes(before + garbage)
        assert list(Table(path, COLUMNS).known) == [("a",), ("b",)]


def test_the_first_value_stays_and_a_second_row_fills_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = Table(path, COLUMNS)
    table.append([{"image": "a", "score": "1", "other": ""}, {"image": "b", "score": "2"}])
    table.append([{"image": "a", "score": "9", "other": "3"}])
    assert table.has(("a",), ("score", "other"))
    assert not table.has(("b",), ("other",))
    assert path.read_text() == "image,score,other\na,1,\nb,2,\na,9,3\n"
    table.compact({"b": 0, "a": 1})
    assert path.read_text() == "image,score,other\nb,2,\na,1,3\n"


def test_a_table_without_rows_is_no_file(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", COLUMNS)
    table.append(rows("a", "b"))
    table.compact({}, without={("a",)})
    assert table.path.read_text() == "image,score,other\nb,1,\n"
    table.compact({}, without={("b",)})
    assert not table.path.exists()


def test_a_row_that_brings_nothing_new_is_not_written(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", COLUMNS)
    table.append(rows("a", "b"))
    before = table.path.read_bytes()
    table.append([{"image": "a", "score": "7"}])
    assert table.path.read_bytes() == before


def test_new_columns_take_their_place_and_old_rows_keep_their_values(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,mine,score\na,5,1\n")
    table = Table(path, COLUMNS)
    assert path.read_text() == "image,mine,score\na,5,1\n", "who only reads changes nothing"
    table.append(rows("b"))
    assert path.read_text() == "image,score,other,mine\na,1,,5\nb,0,,\n"


def test_merged_logs_do_not_depend_on_what_came_first(tmp_path: Path) -> None:
    for name, images in (("x", ("b", "d")), ("y", ("c", "a"))):
        Table(tmp_path / f"{name}.csv", COLUMNS).append(rows(*images))
    order = {image: place for place, image in enumerate("abcd")}
    outputs = []
    for first, second in (("x", "y"), ("y", "x")):
        path = tmp_path / f"{first}{second}.csv"
        Table(path, COLUMNS, also=[tmp_path / f"{first}.csv", tmp_path / f"{second}.csv"]).compact(order)
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1]
    assert [image for (image,) in merge_rows([path])[1]] == ["a", "b", "c", "d"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "t.csv", COLUMNS)
    table.append(rows("a"))
    before = table.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CamkitError, match="No space left on device.*\n.*same command"):
        table.append(rows("b"))
    assert table.path.read_bytes() == before
    with pytest.raises(CamkitError, match="No space left"):
        write_atomically(table.path, "new")
    assert table.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"], (
        "no temporary file is left on the full disk"
    )


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen: list[tuple[str, str]] = []
    replace = Path.replace

    def observed(self: Path, target: Path) -> Path:
        seen.append((self.read_text(), target.read_text()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", observed)
    write_atomically(path, "new")
    assert seen == [("new", "old")] and path.read_text() == "new"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'image\n"' + b"x" * 200_000 + b'"\n')
    with pytest.raises(CamkitError, match=r"t\.csv is damaged"):
        read_records(path)


def test_maps_torn_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    maps = Maps(path)
    maps.append(["a", "latin\udce9"], np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    first = maps.spool.stat().st_size
    maps.append(["c"], np.full((1, 2, 2), 9, np.float32))
    data = maps.spool.read_bytes()
    for cut in range(0, len(data), 7):
        maps.spool.write_bytes(data[:cut])
        torn = Maps(path)
        whole = ["a", "latin\udce9"] if cut >= first else []
        assert torn.names == set(whole)
        assert list(torn.read()) == whole
        assert maps.spool.read_bytes() == data[:cut], "who only reads changes nothing"
        torn.append(["d"], np.zeros((1, 2, 2), np.float32))
        assert list(Maps(path).read()) == [*whole, "d"]
    maps.spool.write_bytes(data)
    Maps(path).finish({"c": 0, "a": 1})
    with np.load(path) as saved:
        assert saved["images"].tolist() == ["c", "a", "latin\udce9"]
        np.testing.assert_array_equal(saved["maps"][0], np.full((2, 2), 9))
    assert not maps.spool.exists()


def test_maps_stay_on_disk(tmp_path: Path) -> None:
    """Names only in memory, while maps are made and when they are found again."""
    maps = Maps(tmp_path / "m.npz")
    for number in range(5):
        maps.append([f"{number}"], np.full((1, 56, 56), number, np.float32))
    maps.finish({})
    maps.append(["more"], np.full((1, 56, 56), 9, np.float32))
    again = Maps(tmp_path / "m.npz")
    for one in (maps, again):
        assert one.names == {"0", "1", "2", "3", "4", "more"}
        assert len(pickle.dumps(one)) < 56 * 56
    assert {name: found[0, 0] for name, found in again.read({"3", "more", "none"}).items()} == {
        "3": 3,
        "more": 9,
    }


def test_the_first_map_of_an_image_stays(tmp_path: Path) -> None:
    """Here before elsewhere, finished before spooled, as it is with rows."""
    here, other = Maps(tmp_path / "here.npz"), Maps(tmp_path / "other.npz")
    for maps, names, value in ((other, ["a", "b", "c", "d"], 1), (here, ["a", "b"], 2)):
        maps.append(names, np.full((len(names), 2, 2), value, np.float32))
    other.finish({})
    other.append(["a", "e"], np.full((2, 2, 2), 3, np.float32))
    both = Maps(here.path, also=[other.path])
    both.finish({name: place for place, name in enumerate("abcde")})
    with np.load(here.path) as saved:
        assert saved["images"].tolist() == list("abcde")
        assert saved["maps"][:, 0, 0].tolist() == [2, 2, 1, 1, 3]
