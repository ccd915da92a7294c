"""A model with another number of classes than the list: no top-1, `label` and `correct` refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from pictures import jpeg, picture, write
from tiny import seeded

from camkit.cli import main
from camkit.runs.selection import own_classes

RESNET = "timm/test_resnet"
FOLDERS = ("ant", "bee", "cat")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(FOLDERS):
        write(tmp_path / "data" / name / "1.jpg", jpeg(picture(seed)))
    return tmp_path / "data"


def weights(path: Path, classes: int, **more: object) -> Path:
    model = seeded(lambda: timm.create_model("test_resnet", num_classes=classes))
    torch.save({"state_dict": model.state_dict(), **more}, path)
    return path


def bench(data: Path, *words: object) -> Result:
    fixed = ["--metrics", "average_drop", "--method", "gradcam", "--device", "cpu", "--workers", 0]
    fixed += ["--size", 64, "--data", data, "-o", data.parent / "out", "--model", RESNET]
    return CliRunner().invoke(main, ["bench", *map(str, (*fixed, *words))])


@pytest.mark.parametrize(
    ("classes", "known"), [(5, ""), (1001, "a background class before"), (21843, "ImageNet-21k")]
)
def test_labels_of_another_number_of_classes_are_left_aside(
    classes: int, known: str, data: Path, tmp_path: Path
) -> None:
    file = weights(tmp_path / "mine.pth", classes)
    words = ["--weights", file, "--classes", "folders"]
    result = bench(data, *words)
    assert result.exit_code == 0, result.output
    assert f"tells apart {classes} classes" in result.output and known in result.output
    assert "the labels are of 3 (the class folders; --classes): they are left aside" in result.output
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert np.isnan(summary["top1"]).all()
    predictions = pd.read_csv(next((tmp_path / "out").glob("*/predictions.csv")))
    assert predictions[["label", "predicted_name"]].isna().all().all()
    for target in ("label", "correct"):
        result = bench(data, *words, "--target", target, "-o", tmp_path / target)
        assert result.exit_code == 1, result.output
        assert f"--target {target}: {RESNET} tells apart {classes} classes" in result.output
        assert "the labels are of 3" in result.output


def test_imagenets_labels_are_not_taken_for_a_head_of_a_hundred(tmp_path: Path) -> None:
    for seed, wnid in enumerate(("n01440764", "n01443537")):
        write(tmp_path / "data" / wnid / "1.jpg", jpeg(picture(seed)))
    result = bench(tmp_path / "data", "--weights", weights(tmp_path / "mine.pth", 100), "--target", "label")
    assert result.exit_code == 1
    assert "tells apart 100 classes, the labels are of 1000 (ImageNet-1k; --classes)" in result.output


def test_a_list_that_the_file_carries_counts_unless_another_is_named(data: Path, tmp_path: Path) -> None:
    """Its order is not the folders'."""
    file = weights(tmp_path / "mine.pth", 3, label_names=["cat", "ant", "bee"])
    result = bench(data, "--weights", file, "--target", "label")
    assert result.exit_code == 0 and "classes: mine.pth, 3" in result.output, result.output
    (path,) = (tmp_path / "out").glob("*/conv-rest/gradcam.csv")
    assert dict(pd.read_csv(path)[["image", "target"]].to_numpy()) == {
        "ant/1.jpg": 1,
        "bee/1.jpg": 2,
        "cat/1.jpg": 0,
    }
    result = bench(data, "--weights", file, "--target", "label", "--classes", "folders")
    assert result.exit_code == 2 and "holds results with another data fingerprint" in result.output


def test_one_results_folder_has_one_class_list(data: Path, tmp_path: Path) -> None:
    """Without labels the data are the same; what the outputs stand for is not."""
    words = ["--weights", weights(tmp_path / "mine.pth", 3), "--layout", "photos", "--classes"]
    for names, code in (("x\ny\nz\n", 0), ("x\nz\ny\n", 2)):
        result = bench(data, *words, write(tmp_path / "names.txt", names))
        assert result.exit_code == code, result.output
    assert "holds results with another class list" in result.output


def test_bare_numbers_are_a_carried_lists_only_if_all_of_it_occurs(data: Path, tmp_path: Path) -> None:
    """The file's list is not one that the user named."""
    file = weights(tmp_path / "mine.pth", 3, label_names=["cat", "ant", "bee"])
    for place, name in enumerate(FOLDERS):
        write(tmp_path / "some" / str(min(place, 1)) / f"{name}.jpg", (data / name / "1.jpg").read_bytes())
        write(tmp_path / "all" / str(place) / f"{name}.jpg", (data / name / "1.jpg").read_bytes())
    some = bench(tmp_path / "some", "--weights", file, "--target", "label")
    assert some.exit_code == 2 and "these images have none" in some.output
    assert bench(tmp_path / "all", "--weights", file, "--target", "label").exit_code == 0


def test_models_that_carry_different_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from camkit.config import RunConfig
    from camkit.data import ClassList
    from camkit.errors import UsageError

    lists = {"resnet18": ClassList("a", ("x", "y")), "resnet50": ClassList("b", ("y", "x")), "vgg16": None}
    monkeypatch.setattr("camkit.runs.selection.own_classes_of", lambda name, _: lists[name])
    assert own_classes(RunConfig(model=("vgg16", "resnet18"))) is lists["resnet18"]
    with pytest.raises(UsageError, match="resnet18 and resnet50 carry different class lists"):
        own_classes(RunConfig(model=("vgg16", "resnet18", "resnet50")))
    assert own_classes(RunConfig(model=("resnet18", "resnet50"), classes="imagenet")) is None
