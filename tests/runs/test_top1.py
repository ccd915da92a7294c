"""Top-1 of `camkit data check --model`, and what it says of the labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small_imagenet as small
import timm
import torch
from command_line import call
from pictures import write
from small_imagenet import LABELS, official_name
from tiny import TINY, silent

from camkit.config import RunConfig
from camkit.data import ClassList, DataSet, find_images
from camkit.network.numerics import numerics
from camkit.network.passes import Network
from camkit.runs.accuracy import _other_numbering, measure_top1, verdict
from camkit.runs.bench import bench
from camkit.runs.photos import explain_images

cli = partial(call, "data")


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


def test_a_model_without_labels_is_refused(tmp_path: Path) -> None:
    result = cli(
        "check", small.flat(tmp_path), "--model", "timm/test_resnet", "--weights", "random", "--workers", 0
    )
    assert result.exit_code == 2
    assert "no labels" in result.output


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
