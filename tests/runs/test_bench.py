"""What a run writes: names, columns, order, means, provenance."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import write_photo
from tiny import PER_IMAGE, SCORES, cell, read, run

import camkit
from camkit.config import RunConfig
from camkit.data.classes import imagenet
from camkit.entries import METHODS, Method
from camkit.errors import UsageError
from camkit.results.folder import file_name
from camkit.runs.selection import with_target

SUMMARY = [
    "model",
    "layer",
    "utility",
    "method",
    "target_rule",
    "images",
    "degenerate",
    "degenerate_masked",
    "top1",
]


@pytest.fixture(scope="module")
def out(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that all tests of what is written read."""
    folder = tmp_path_factory.mktemp("out")
    run(
        labelled, folder, method=("gradcam++", "shapleycam", "flat"), layer=("conv", "features.2"),
        utility=("rest", "log-softmax"), batch_size=4, save_maps=True,
    )  # fmt: skip
    return folder


class TestPerImage:
    def test_a_file_a_cell(self, out: Path) -> None:
        found = {path.relative_to(out / "timm__camkit_tiny").as_posix() for path in out.glob("*/*/*.csv")}
        assert found == {
            f"{layer}-{utility}/{method}.csv"
            for layer in ("conv", "features.2")
            for utility in ("rest", "log-softmax")
            for method in ("gradcam++", "shapleycam", "flat")
        }

    def test_header_and_rows(self, out: Path) -> None:
        for path in out.glob("*/*/*.csv"):
            assert path.read_text().splitlines()[0] == ",".join(PER_IMAGE)
            assert len(read(path)) == 6

    def test_the_columns(self, out: Path) -> None:
        for row in read(cell(out)):
            folder, photo = row["image"].split("/")
            assert photo.endswith(".png")
            assert row["label"] == {"n01440764": "0", "n01443537": "1", "n02123045": "281"}[folder]
            assert 0 <= int(row["target"]) < 1000
            assert row["increase"] in ("0", "1")
            assert all(0 <= float(row[column]) <= 1 for column in PER_IMAGE[3:])

    def test_rows_follow_the_spread_out_order(self, out: Path) -> None:
        """No class comes a second time before every class came once."""
        folders = [row["image"].split("/")[0] for row in read(cell(out))]
        assert len(set(folders[:3])) == len(set(folders[3:])) == 3

    def test_full_precision(self, out: Path) -> None:
        digits = [len(row["coherency"].rstrip("0").split(".")[-1]) for row in read(cell(out))]
        assert max(digits) >= 8

    def test_adcc_comes_from_its_parts(self, out: Path) -> None:
        for path in out.glob("*/*/*.csv"):
            for row in read(path):
                factors = (
                    float(row["coherency"]),
                    1 - float(row["complexity"]),
                    1 - float(row["average_drop"]),
                )
                expected = 0 if min(factors) <= 0 else 3 / sum(1 / factor for factor in factors)
                assert float(row["adcc"]) == pytest.approx(expected, rel=1e-5)

    def test_target_and_probability_are_the_same_for_all_cells_of_an_image(self, out: Path) -> None:
        seen = {
            (row["image"], row["target"], row["probability"])
            for path in out.glob("*/*/*.csv")
            for row in read(path)
        }
        assert len(seen) == 6

    def test_a_score_not_asked_for_is_an_empty_field(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path, metrics=("deletion",), limit=1)
        (row,) = read(cell(tmp_path))
        assert list(row) == PER_IMAGE
        assert {column for column in PER_IMAGE if not row[column]} == {"label", *SCORES} - {"deletion_auc"}

    def test_saved_maps(self, out: Path) -> None:
        """Signed, before ReLU, at the layer's resolution; methods that give saliency maps have none."""
        with np.load(cell(out).with_suffix(".npz")) as saved:
            assert saved["images"].tolist() == [row["image"] for row in read(cell(out))]
            assert saved["maps"].shape == (6, 4, 4)
            assert saved["maps"].dtype == np.float32
            assert saved["maps"].min() < 0
        assert not cell(out, "conv-rest/flat").with_suffix(".npz").exists()
        assert not list(out.rglob("*.tmp"))

    def test_slashes_and_colons_of_names(self, photos: Path, tmp_path: Path) -> None:
        assert file_name("timm/a:b") == "timm__a__b"
        run(photos, tmp_path, limit=1, metrics=("adcc",))
        assert (tmp_path / "timm__camkit_tiny" / "conv-rest" / "shapleycam.csv").exists()


class TestSummary:
    def test_columns_and_cells(self, out: Path) -> None:
        rows = read(out / "summary.csv")
        assert list(rows[0]) == [*SUMMARY, *SCORES, "adcc_image_mean", "zero_probability", "not_finite"]
        cells = [(row["layer"], row["utility"], row["method"]) for row in rows]
        assert sorted(cells) == sorted(
            itertools.product(
                ("conv", "features.2"), ("rest", "log-softmax"), ("gradcam++", "shapleycam", "flat")
            )
        )
        assert [c[2] for c in cells[:3]] == ["gradcam++", "shapleycam", "flat"]  # the controls come last
        assert {(row["model"], row["target_rule"], row["images"]) for row in rows} == {
            ("timm/camkit_tiny", "predicted", "6")
        }

    def test_means(self, out: Path) -> None:
        for row in read(out / "summary.csv"):
            images = pd.read_csv(cell(out, f"{row['layer']}-{row['utility']}/{row['method']}"))
            means = images[SCORES].mean()
            for column in SCORES:
                if column != "adcc":
                    assert float(row[column]) == pytest.approx(means[column], rel=1e-6)
            factors = means["coherency"], 1 - means["complexity"], 1 - means["average_drop"]
            harmonic = 3 / sum(1 / factor for factor in factors)
            assert float(row["adcc"]) == pytest.approx(harmonic, rel=1e-6)
            assert float(row["adcc_image_mean"]) == pytest.approx(means["adcc"], rel=1e-6)
        shapleycam = next(row for row in read(out / "summary.csv") if row["method"] == "shapleycam")
        assert abs(float(shapleycam["adcc"]) - float(shapleycam["adcc_image_mean"])) > 1e-4

    def test_top1_is_the_share_of_labels_met(self, out: Path, labelled: Path) -> None:
        rows = read(cell(out))
        hits = sum(row["label"] == row["target"] for row in rows)
        assert {float(row["top1"]) for row in read(out / "summary.csv")} == {hits / 6}

    def test_without_labels_top1_is_empty(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path, limit=1, metrics=("adcc",))
        assert read(tmp_path / "summary.csv")[0]["top1"] == ""

    def test_degenerate_maps_are_counted(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A method whose map is constant on some images, and on the masked version of others."""

        def sometimes(trace):
            place = torch.tensor([float(name[6]) for name in trace.image_ids])  # photo_3.png -> 3
            maps = trace.activation.mean(dim=1)
            flat = (place < 2) if trace.draw == 0 else (place == 4)
            return torch.where(flat[:, None, None], 1.0, maps)

        method = Method("sometimes", sometimes, "Sometimes", groups=(), source="a test")
        monkeypatch.setitem(METHODS._entries, "sometimes", method)
        run(photos, tmp_path, method=("sometimes", "shapleycam"), metrics=("adcc",))
        rows = {row["method"]: row for row in read(tmp_path / "summary.csv")}
        assert (rows["sometimes"]["degenerate"], rows["sometimes"]["images"]) == ("2", "6")
        masked = {
            row["image"] for row in read(cell(tmp_path, "conv-rest/sometimes")) if row["coherency"] == "0"
        }
        assert {"photo_0.png", "photo_1.png", "photo_4.png"} <= masked
        assert int(rows["sometimes"]["degenerate_masked"]) >= 1
        scores = [float(row[c]) for row in read(cell(tmp_path, "conv-rest/sometimes")) for c in SCORES[:6]]
        assert all(math.isfinite(score) for score in scores)


class TestRunJson:
    def test_everything_that_decided_the_numbers(self, out: Path) -> None:
        run_json = json.loads((cell(out).parent / "run.json").read_text())
        protocol, (segment,) = run_json["protocol"], run_json["segments"]
        expected = {
            "model": "timm/camkit_tiny",
            "layer": "conv",
            "utility": "rest",
            "target_rule": "predicted",
            "steps": 4,
            "preprocess": "native",
            "dtype": "float32",
            "weights": "random",
            "seed": 0,
            "definitions": 2,
        }
        assert expected.items() <= protocol.items()
        assert protocol["module"].startswith("features")
        assert len(protocol["weights_sha256"]) == len(protocol["data_fingerprint"]) == 64
        assert "mean [0.5, 0.4, 0.3]" in protocol["transform"]
        assert {"torch", "torchvision", "timm", "numpy", "pillow", "python", "camkit"} <= set(
            segment["versions"]
        )
        assert segment["device"] == "cpu"
        assert segment["batch_size"] == 4
        assert segment["images"] == 6
        assert segment["seconds"] > 0
        assert "git" in segment
        command = segment["command"]
        assert command.startswith("camkit bench --model timm/camkit_tiny --method gradcam++,shapleycam,flat")
        assert "--save-maps" in command

    def test_no_absolute_path(self, out: Path, labelled: Path) -> None:
        for path in out.rglob("*.json"):
            text = path.read_text()
            for folder in (out, labelled, Path.home(), Path(camkit.__file__).parent):
                assert str(folder) not in text
            assert str(labelled.parent) not in text
            assert labelled.name in text

    def test_the_weights_hash_knows_the_weights(self, photos: Path, tmp_path: Path) -> None:
        hashes = []
        for seed in (0, 1):
            run(photos, tmp_path / str(seed), seed=seed, limit=1, metrics=("adcc",))
            text = (cell(tmp_path / str(seed)).parent / "run.json").read_text()
            hashes.append(json.loads(text)["protocol"]["weights_sha256"])
        assert hashes[0] != hashes[1]


class TestTargets:
    def rows(self, labelled: Path, tmp_path: Path, target: str) -> list[dict[str, str]]:
        run(labelled, tmp_path / target, target=target, metrics=("adcc",))
        return read(cell(tmp_path / target))

    def test_label(self, labelled: Path, tmp_path: Path) -> None:
        rows = self.rows(labelled, tmp_path, "label")
        assert len(rows) == 6
        assert all(row["target"] == row["label"] for row in rows)

    def test_predicted_is_the_most_probable_class(self, labelled: Path, tmp_path: Path) -> None:
        labels = {row["image"]: row for row in self.rows(labelled, tmp_path, "label")}
        for row in self.rows(labelled, tmp_path, "predicted"):
            assert float(row["probability"]) >= float(labels[row["image"]]["probability"])

    def test_correct_takes_what_the_model_gets_right(self, tmp_path: Path) -> None:
        """Photos in the folder of the class that is predicted for them, but for one."""
        for number in range(4):
            write_photo(tmp_path / "flat" / f"photo_{number}.png", seed=number)
        run(tmp_path / "flat", tmp_path / "first", metrics=("adcc",), batch_size=4)
        predicted = {row["image"]: int(row["target"]) for row in read(cell(tmp_path / "first"))}
        labels = tmp_path / "labels.csv"
        wrong = {"photo_2.png": (predicted["photo_2.png"] + 1) % 1000}
        table = "".join(f"{name},{label}\n" for name, label in (predicted | wrong).items())
        labels.write_text(f"image,label\n{table}")
        correct = {"target": "correct", "classes": "imagenet", "metrics": ("adcc",)}
        run(tmp_path / "flat", tmp_path / "out", labels=labels, **correct)
        rows = read(cell(tmp_path / "out"))
        assert sorted(row["image"] for row in rows) == ["photo_0.png", "photo_1.png", "photo_3.png"]
        assert all(row["target"] == row["label"] for row in rows)
        (summary,) = read(tmp_path / "out" / "summary.csv")
        assert (summary["images"], float(summary["top1"])) == ("3", 0.75)
        lines = run(tmp_path / "flat", tmp_path / "out", labels=labels, **correct)
        assert any("nothing to do" in line for line in lines)
        labels.write_text(
            "image,label\n" + "".join(f"{name},{(predicted[name] + 1) % 1000}\n" for name in predicted)
        )
        lines = run(tmp_path / "flat", tmp_path / "none", labels=labels, **correct)
        assert "none of these images correctly" in lines[-1] and "(--target correct)" in lines[-1]


@pytest.mark.parametrize(
    ("target", "index"), [("007", "7"), ("7", "7"), ("goldfish", "1"), ("label", "label")]
)
def test_a_target_class_is_known_by_its_index(target: str, index: str) -> None:
    assert with_target(RunConfig(model=("resnet18",), target=target), imagenet()).target == index


def test_a_target_that_is_the_name_of_two_classes_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--target: label 'crane' is the name of classes 134 \(n02012849\) and"
    ):
        with_target(RunConfig(model=("resnet18",), target="crane"), imagenet())


def test_an_empty_list_of_methods_is_said(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no method is named"):
        run(photos, tmp_path, method=())


def test_conv_and_prepool_stand_for_the_last_feature_layer_and_that_is_said(
    photos: Path, tmp_path: Path
) -> None:
    lines = run(photos, tmp_path, layer=("conv", "prepool"), limit=1, metrics=("adcc",))
    said = [line for line in lines if "last feature layer" in line]
    assert len(said) == 1
    assert "'features'" in said[0]
    assert read(cell(tmp_path))[0] == read(cell(tmp_path, "prepool-rest/shapleycam"))[0]


def test_the_sample_photos_are_called_a_demonstration(tmp_path: Path) -> None:
    lines = run(Path("sample"), tmp_path, limit=1, metrics=("adcc",))
    assert any("demonstration, not a benchmark" in line for line in lines)
