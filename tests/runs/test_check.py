"""`camkit data check` names what is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_imagenet as small
from command_line import call
from pictures import encode, jpeg, picture, png, refuse, write
from PIL import Image
from small_imagenet import WNIDS, official_name, photos
from tiny import silent

from camkit.data import find_images, imagenet
from camkit.errors import UsageError
from camkit.runs.check import check_data

cli = partial(call, "data")


def plant_faults(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Twenty faults among good photos in wnid folders: image -> kind of fault."""
    zebras, fish = root / WNIDS[0], root / WNIDS[1]
    write(zebras / "01 empty.jpg", b"")
    write(zebras / "02 truncated.jpg", jpeg(picture(20, (300, 200)))[:2000])
    write(zebras / "03 truncated.png", encode(picture(21, (300, 200)), "PNG")[:2000])
    write(zebras / "04 text.jpg", "not an image")
    write(zebras / "05 not found.jpg", "<!DOCTYPE html><title>404</title>")
    write(zebras / "06 bomb.png", png(20_000, 20_000, rows=b""))
    write(zebras / "07 strip.png", png(1, 20_000, b"\0\0" * 20_000))
    (zebras / "08 broken link.jpg").symlink_to("gone.jpg")
    (zebras / "09 link to itself.jpg").symlink_to("09 link to itself.jpg")
    os.mkfifo(zebras / "10 pipe.jpg")
    refuse(write(zebras / "11 forbidden.jpg", jpeg(picture(22))), monkeypatch)
    write(zebras / "12 broken header.jpg", b"\0\0" + jpeg(picture(23))[2:])
    write(zebras / "13 truncated.gif", encode(picture(24), "GIF")[:500])
    write(zebras / "14 first of two.jpg", jpeg(picture(25)))
    write(zebras / "15 second of two.jpg", jpeg(picture(25)))
    write(fish / "16 a banana.jpg", photos()[2])
    write(zebras / "17 really a JPEG.png", jpeg(picture(26)))
    write(root / "n00007846" / "18 a person.jpg", jpeg(picture(27)))
    write(root / "19 outside.jpg", jpeg(picture(28)))
    (root / "n02123045").mkdir()
    write(root / "n07753592" / "20 floating point.tif", floating_point())
    unreadable = (
        "01 empty.jpg",
        "02 truncated.jpg",
        "03 truncated.png",
        "04 text.jpg",
        "05 not found.jpg",
        "06 bomb.png",
        "07 strip.png",
        "08 broken link.jpg",
        "09 link to itself.jpg",
        "10 pipe.jpg",
        "11 forbidden.jpg",
        "12 broken header.jpg",
        "13 truncated.gif",
    )
    return {f"{WNIDS[0]}/{name}": "unreadable" for name in unreadable} | {
        f"{WNIDS[0]}/15 second of two.jpg": "duplicate",
        f"{WNIDS[2]}/{official_name(2)}": "contradiction",
        f"{WNIDS[0]}/17 really a JPEG.png": "wrong ending",
        "n00007846/18 a person.jpg": "no label",
        "19 outside.jpg": "no label",
        "n02123045": "folder",
        "n07753592/20 floating point.tif": "unreadable",
    }


def floating_point() -> bytes:
    return encode(Image.fromarray(np.zeros((8, 8), dtype=np.float32)), "TIFF")


def test_twenty_planted_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = small.wnid_folders(tmp_path)
    planted = plant_faults(root, monkeypatch)
    assert len(planted) == 20
    report = check_data(str(root), say=silent)
    assert {fault.image: fault.kind for fault in report.faults} == planted
    assert len(report.faults) == len(planted)
    assert all(fault.reason and "\n" not in fault.reason for fault in report.faults)
    facts = report.facts
    assert (facts["unreadable"], facts["duplicates"], facts["without_label"]) == (14, 2, 2)


def test_every_fault_is_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant_faults(small.wnid_folders(tmp_path), monkeypatch)
    table, table_csv, table_json = (
        cli("check", tmp_path, "--workers", 0, "--format", style) for style in ("table", "csv", "json")
    )
    for result in (table, table_csv, table_json):
        assert result.exit_code == 0, result.output
        for image in planted:
            assert image in result.stdout
    rows = list(csv.DictReader(io.StringIO(table_csv.stdout)))
    assert {row["name"]: row["section"] for row in rows if row["name"] in planted} == planted
    report = json.loads(table_json.stdout)
    assert {fault["image"]: fault["kind"] for fault in report["faults"]} == planted
    bananas = {"class": 954, "wnid": "n07753592", "name": "banana", "images": 2}
    assert bananas in report["classes"]


def test_a_good_data_set_has_no_faults(tmp_path: Path) -> None:
    report = check_data(str(small.wnid_folders(tmp_path)), say=silent, workers=2)
    assert report.faults == []
    assert report.classes == {1: 2, 340: 1, 517: 1, 628: 1, 954: 1}
    facts = dict(report.facts)
    assert facts.pop("fingerprint") == find_images(str(tmp_path), 0).fingerprint
    assert facts == {
        "data": tmp_path.name,
        "layout": "wnid",
        "images": 6,
        "labels": "the wnid folders",
        "classes": 5,
        "images_per_class": "1 to 2",
        "unreadable": 0,
        "duplicates": 0,
        "without_label": 0,
        "complete_validation_set": False,
    }


@pytest.mark.parametrize("build", [small.parquet, small.shards, small.flat])
def test_archives_and_unlabelled_images_are_checked_too(build: object, tmp_path: Path) -> None:
    report = check_data(str(build(tmp_path)), classes="imagenet", say=silent)  # type: ignore[operator]
    assert report.faults == []
    assert report.facts["images"] == 6
    assert report.facts["without_label"] == (6 if build is small.flat else 0)


def test_a_bad_member_of_an_archive_is_named(tmp_path: Path) -> None:
    members = {"a.jpg": photos()[0], "a.cls": b"340", "b.jpg": photos()[1][:400], "b.cls": b"1"}
    report = check_data(str(small.make_tar(tmp_path / "a.tar", members)), say=silent)
    assert [(fault.image, fault.kind) for fault in report.faults] == [("b.jpg", "unreadable")]


@pytest.mark.parametrize(
    ("spoilt", "complete"), [(None, True), ("gone", False), ("moved", False), ("bad", False)]
)
def test_the_complete_validation_set(
    spoilt: str | None, complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small: two images of each class, instead of fifty."""
    monkeypatch.setattr("camkit.runs.check.COMPLETE", 2)
    for index in range(1000):
        for number in range(2):
            write(
                tmp_path / imagenet().wnids[index] / f"{number}.ppm",
                b"P6 1 1 255\n%c%c%c" % (index // 4, index % 4, number),
            )
    first = tmp_path / "n01440764" / "0.ppm"
    if spoilt == "gone":
        first.unlink()
    elif spoilt == "moved":
        first.rename(tmp_path / "n01443537" / "2.ppm")
    elif spoilt == "bad":
        first.write_bytes(b"P6")
    report = check_data(str(tmp_path), say=silent)
    assert report.facts["complete_validation_set"] is complete
    assert report.facts["classes"] == 1000
    numbers = {None: "2", "gone": "1 to 2", "moved": "1 to 3", "bad": "2"}
    assert report.facts["images_per_class"] == numbers[spoilt]


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.wnid_folders(tmp_path)
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith(WNIDS[2]):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = check_data(str(tmp_path), say=silent)
    assert [(f.image, f.kind, f.reason) for f in report.faults] == [
        (WNIDS[2], "folder", "the folder cannot be listed: Permission denied")
    ]


def test_names_do_not_write_into_the_terminal(tmp_path: Path) -> None:
    name = "red \x1b[31m\nline.jpg"
    write(tmp_path / "data" / name, b"")
    write(tmp_path / "data" / os.fsdecode(b"\xe9.jpg"), b"")
    table = cli("check", tmp_path / "data", "--workers", 0)
    assert "\x1b" not in table.stdout
    assert "red \\x1b[31m\\nline.jpg" in table.stdout
    assert "\\udce9.jpg" in table.stdout
    raw = cli("check", tmp_path / "data", "--workers", 0, "--format", "csv")
    rows = csv.DictReader(io.StringIO(raw.stdout_bytes.decode("utf-8", "surrogateescape"), newline=""))
    assert {name, os.fsdecode(b"\xe9.jpg")} <= {row["name"] for row in rows}


def test_rows_without_an_image_have_their_reason(tmp_path: Path) -> None:
    rows = [{"bytes": photos()[0], "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    table = pa.table({"image": [*rows, {"bytes": b"", "path": "c.jpg"}], "label": [0, 7, 9]})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = check_data(str(tmp_path / "rows.parquet"), classes="imagenet", say=silent)
    reasons = {fault.image: fault.reason for fault in found.faults if fault.kind == "unreadable"}
    assert reasons == {"b.jpg": "the row holds no image", "c.jpg": "empty: 0 bytes"}


def test_an_unknown_model_is_refused_before_the_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        check_data(str(tmp_path / "nowhere"), model="resnet8", say=silent)


def test_help_has_an_example_each_and_is_quick() -> None:
    for command in ([], ["check"], ["sample"]):
        result = cli(*command, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
