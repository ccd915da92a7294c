"""`camkit data check` names what is wrong; `camkit data sample` takes a part."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_imagenet as small
import timm
import torch
from click.testing import CliRunner, Result
from pictures import encode, jpeg, picture, png, refuse, write
from PIL import Image
from small_imagenet import LABELS, WNIDS, official_name, photos
from tiny import TINY

from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import ClassList, DataSet, find_images, imagenet
from camkit.errors import UsageError
from camkit.network.numerics import numerics
from camkit.network.passes import Network
from camkit.runs.accuracy import _other_numbering, measure_top1, verdict
from camkit.runs.bench import bench
from camkit.runs.check import check_data
from camkit.runs.photos import explain_images


def silent(line: str) -> None:
    """Takes a line and drops it."""


def cli(*words: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, words)])


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


# -- --model ----------------------------------------------------------------------------------------------


def test_top1_counts_hits(tmp_path: Path) -> None:
    """With the model's own predictions as labels, all are hits; with two of six changed, four are."""
    small.flat(tmp_path / "val")
    config = RunConfig(model=("timm/test_resnet",), weights="random", device="cpu")
    predicted = predictions(tmp_path / "val")
    for wrong, expected in ((0, 100.0), (2, 66.67)):
        labels = [(label + (place < wrong)) % 1000 for place, label in enumerate(predicted)]
        path = small.label_file(tmp_path / "labels.csv", labels)
        data = find_images(str(tmp_path / "val"), 0, labels=path, classes="imagenet")
        accuracy = measure_top1("timm/test_resnet", data, config, 4, silent)
        assert (accuracy.labelled, accuracy.top1_percent) == (6, expected)
    # Wilson's interval for 4 of 6, by its formula with z = 1.959964.
    assert (accuracy.top1_low, accuracy.top1_high) == (30.0, 90.32)


def predictions(data: Path) -> list[int]:
    out = data.parent / "out"
    config = RunConfig(
        model=("timm/test_resnet",),
        method=("flat",),
        metrics=("adcc",),
        weights="random",
        data=str(data),
        out=out,
    )
    bench(config, say=silent)
    with (out / "timm__test_resnet" / "predictions.csv").open(newline="") as file:
        found = {row["image"]: int(row["predicted"]) for row in csv.DictReader(file)}
    return [found[official_name(place)] for place in range(len(LABELS))]


@pytest.mark.parametrize(
    ("top1", "images", "published", "classes", "start"),
    [
        (0.1, 50_000, 69.76, 1000, "suspicious: less than half"),
        (34.8, 100, 69.76, 1000, "suspicious: less than half"),
        (35.0, 100, 69.76, 1000, "the labels fit"),
        (0.0, 19, 69.76, 1000, "fewer than 20"),
        (88.0, 100, None, 1000, "no published figure"),
        (22.0, 50, None, 5, "suspicious: no better than chance (20 %)"),
        (50.0, 40, None, 2, "suspicious: no better than chance (50 %)"),
        (80.0, 40, None, 2, "no published figure"),
    ],
)
def test_the_verdict(top1: float, images: int, published: float | None, classes: int, start: str) -> None:
    assert verdict(top1, images, published, classes).startswith(start)


@pytest.mark.parametrize(
    ("numbering", "words"),
    [
        (lambda index: index + 1, "with labels − 1 top-1 would be 100 %"),
        (lambda index: index - 1, "with labels + 1 top-1 would be 100 %"),
        (lambda index: int(sorted(map(str, range(12)))[index]), "with the numbers sorted as text"),
        (lambda index: 11 - index, "with the classes sorted by name top-1 would be 100 %"),
        (lambda index: index * 5 % 12, ""),
        (lambda index: index, ""),
    ],
)
def test_other_numberings_are_tried(numbering: Callable[[int], int], words: str) -> None:
    """Names in reversed order, so that a network that numbers them by name has 11 for 0."""
    names = ClassList("names.txt", tuple("lkjihgfedcba"))
    predicted = [place % 12 for place in range(48) if 0 <= numbering(place % 12) < 12]
    found = _other_numbering([numbering(index) for index in predicted], predicted, names)
    assert found.startswith(words) and bool(found) == bool(words)


def test_top1_that_a_shift_explains_is_suspicious(tmp_path: Path) -> None:
    """The same images over and over, with the class before the one that the network predicts."""
    small.flat(tmp_path / "val")
    predicted = predictions(tmp_path / "val")
    lines = ["image,label"]
    for place, label in enumerate(predicted):
        for copy in range(4):
            name = f"{copy}/{official_name(place)}"
            write(tmp_path / "many" / name, (tmp_path / "val" / official_name(place)).read_bytes())
            lines.append(f"{name},{label - 1}")
    labels = write(tmp_path / "labels.csv", "\n".join(lines))
    words = [
        "--labels",
        labels,
        "--classes",
        "imagenet",
        "--model",
        "timm/test_resnet",
        "--weights",
        "random",
    ]
    result = cli("check", tmp_path / "many", *words, "--format", "json", "--workers", 0, "--device", "cpu")
    facts = json.loads(result.stdout)["facts"]
    assert (facts["labelled"], facts["top1_percent"]) == (24, 0.0)
    assert facts["verdict"] == "suspicious: with labels + 1 top-1 would be 100 %"


@pytest.mark.parametrize(
    ("classes", "known"), [(1001, "a background class"), (21843, "ImageNet-21k"), (7, "")]
)
def test_top1_of_another_number_of_classes(classes: int, known: str, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=classes)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    small.wnid_folders(tmp_path / "data")
    words = ["--model", "timm/test_resnet", "--weights", tmp_path / "mine.pth", "--workers", 0]
    result = cli("check", tmp_path / "data", *words, "--device", "cpu")
    assert result.exit_code == 2
    assert f"{classes} classes" in result.output and "ImageNet-1k 1000 (--classes)" in result.output
    assert known in result.output


def test_check_with_a_model_says_top1(tmp_path: Path) -> None:
    small.wnid_folders(tmp_path)
    result = cli(
        "check", tmp_path, "--model", "resnet18", "--weights", "random", "--format", "json", "--workers", 0
    )
    facts = json.loads(result.stdout)["facts"]
    assert (facts["model"], facts["labelled"], facts["published_percent"]) == ("resnet18", 6, None)
    assert 0 <= facts["top1_low"] <= facts["top1_percent"] <= facts["top1_high"] <= 100


def test_rows_without_an_image_have_their_reason(tmp_path: Path) -> None:
    rows = [{"bytes": photos()[0], "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    table = pa.table({"image": [*rows, {"bytes": b"", "path": "c.jpg"}], "label": [0, 7, 9]})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = check_data(str(tmp_path / "rows.parquet"), classes="imagenet", say=silent)
    reasons = {fault.image: fault.reason for fault in found.faults if fault.kind == "unreadable"}
    assert reasons == {"b.jpg": "the row holds no image", "c.jpg": "empty: 0 bytes"}


def test_a_model_without_labels_is_refused(tmp_path: Path) -> None:
    result = cli(
        "check", small.flat(tmp_path), "--model", "timm/test_resnet", "--weights", "random", "--workers", 0
    )
    assert result.exit_code == 2
    assert "no labels" in result.output


def test_an_unknown_model_is_refused_before_the_images_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        check_data(str(tmp_path / "nowhere"), model="resnet8", say=silent)


def test_tf32_is_off_in_pictures_and_top1(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    seen: list[bool] = []
    logits, trace = Network.logits, Network.trace

    def look() -> None:
        seen.extend((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    monkeypatch.setattr(Network, "logits", lambda *words: look() or logits(*words))
    monkeypatch.setattr(Network, "trace", lambda *words, **named: look() or trace(*words, **named))
    config = RunConfig(**TINY | {"data": str(photos), "method": ("flat",)})
    items = tuple(replace(item, label=0) for item in find_images(str(photos), 0).items)
    with numerics(tf32=True, deterministic=False):
        explain_images([items[0].source], config, say=lambda line: None)
        explained = len(seen)
        measure_top1("timm/camkit_tiny", DataSet("photos", items, ""), config, 2, lambda line: None)
        look()
    assert 0 < explained < len(seen) - 2
    assert not any(seen[:-2])
    assert all(seen[-2:])


# -- sample -----------------------------------------------------------------------------------------------


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


def test_help_has_an_example_each_and_is_quick() -> None:
    for command in ([], ["check"], ["sample"]):
        result = cli(*command, "--help")
        assert result.exit_code == 0
        assert "Example" in result.output
