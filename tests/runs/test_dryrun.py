"""`bench --dry-run`: the passes, the disk and the time that a run will take."""

from __future__ import annotations

import json
import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from pictures import write_photo
from tiny import TINY, calibrated_weights, run, segments
from torch import Tensor

import camkit.network.prepare
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.data.pixels import Preprocess
from camkit.entries import Method
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import LoadedModel
from camkit.network.trace import ImageView
from camkit.runs.bench import bench
from camkit.runs.dryrun import dry_run
from camkit.runs.evaluate import Evaluation
from camkit.runs.guard import make_maps
from camkit.runs.rescore import rescore


@pytest.mark.parametrize(
    "options",
    [
        {"method": ("paper",), "metrics": ("adcc",)},
        {"method": ("gradcam", "flat"), "metrics": ("deletion",), "steps": 9},
        {"method": ("shapleycam",), "layer": ("conv", "features.3"), "steps": 7},
        {
            "method": ("gradcam", "flat"),
            "layer": ("conv", "prepool"),
            "utility": ("rest", "logit"),
            "steps": 6,
        },
        {"method": ("gradcam",), "metrics": ("adcc", "shapley")},
        {
            "method": ("gradcam", "flat"),
            "metrics": ("srg", "insertion-zero", "deletion-mean-least"),
            "steps": 8,
        },
        {"method": ("gradcam", "drops-4", "hirescam~sqrt"), "metrics": ("road", "arcc", "single_deletion")},
        {"method": ("hirescam", "blocks-8"), "metrics": ("null", "axioms", "class_sensitivity", "shape")},
        {"method": ("aumann-2", "hirescam"), "metrics": ("adcc",), "layer": ("features.2",)},
        {"method": ("gradcam",), "layer": ("conv", "features.2"), "dtype": "bfloat16", "steps": 5},
    ],
)
def test_dry_run_counts_the_passes_of_the_run(photos: Path, tmp_path: Path, options: dict) -> None:
    settings = TINY | {"data": str(photos), "out": tmp_path / "out", "batch_size": 4} | options
    cache = tmp_path / "cache"
    estimate = estimate_of(**settings, cache=cache)
    assert not (tmp_path / "out").exists()
    assert not cache.exists()
    bench(RunConfig(**settings), say=lambda line: None)
    segment = last_segment(tmp_path / "out")
    assert estimate["passes"] == segment["passes"]
    assert estimate["head_passes"] == segment["head_passes"]
    assert (estimate["images"], estimate["batch_size"]) == (6, 4)
    assert estimate["seconds"] > 0


def estimate_of(**settings: object) -> dict:
    table, failed = dry_run(RunConfig(**settings), say=lambda line: None)
    assert not failed
    (estimate,) = table.to_dict("records")
    return estimate


def last_segment(out: Path) -> dict:
    path = next(out.glob("*/*/run.json"))
    return json.loads(path.read_text())["segments"][-1]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_head_passes_are_recorded_and_shown_where_there_are_any(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a batch norm and a ReLU: 6 coalitions tell that logits are affine, and one pass of rows all."""
    monkeypatch.setattr("camkit.network.game.EXACT_PLAYERS", 8)  # 65,536 coalitions take a while
    settings = {"metrics": ("shapley",), "batch_size": 3, "layer": ("features.3",), "budget": 4}
    run(photos, tmp_path / "game", method=("shapley", "gradcam"), **settings)
    run(photos, tmp_path / "none", method=("gradcam",), metrics=("adcc",))
    assert segments(tmp_path / "game")[-1]["head_passes"] == 2 * (6 + 1)
    assert segments(tmp_path / "game")[-1]["passes"] == 2
    assert segments(tmp_path / "none")[-1]["head_passes"] == 0
    kept = {"method": ("gradcam",), "metrics": ("adcc",), "layer": ("features.3",), "save_maps": True}
    run(photos, tmp_path / "saved", **kept, budget=4)
    saved = {"data": str(photos), "batch_size": 3, "device": "cpu", "metrics": ("shapley",)}
    rescore(RunConfig(model=(), out=tmp_path / "saved", **saved), lambda line: None)
    assert segments(tmp_path / "saved")[-1]["head_passes"] == 2 * (6 + 1)
    words = ["bench", "--dry-run", "--model", "timm/camkit_tiny", "--weights", "random", "--device", "cpu"]
    words += [
        "--preprocess",
        "native",
        "--workers",
        "0",
        "--data",
        str(photos),
        "--out",
        str(tmp_path / "new"),
    ]
    words += ["--steps", "4", "--batch-size", "3", "--method", "gradcam", "--layer", "features.3"]
    words += ["--budget", "4"]
    for metrics, shown in (("shapley", True), ("adcc", False)):
        result = CliRunner().invoke(main, [*words, "--metrics", metrics])
        assert result.exit_code == 0, result.output
        assert ("head_passes" in result.output) is shown


def test_dry_run_takes_more_steps_as_bare_passes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is slow in a batch, and no pass, is counted once a batch: not in every step of the curves."""

    def slow(method: Method, view: ImageView) -> tuple[Tensor, Tensor]:
        time.sleep(0.5)
        return make_maps(method, view)

    monkeypatch.setattr("camkit.runs.loop.Evaluation", partial(Evaluation, make_maps=slow))
    settings = TINY | {"data": str(photos), "out": tmp_path / "out", "method": ("gradcam",), "batch_size": 3}
    estimate = estimate_of(**settings | {"metrics": ("deletion",), "steps": 200})
    assert 2 * 0.5 < estimate["seconds"] < 2 * 2 * 0.5 + 200 * 2 * 0.005


@pytest.mark.parametrize(("workers", "least", "most"), [(0, 1.2, 9), (2, 0.6, 1.19)])
def test_dry_run_counts_decoding_that_workers_do_not_hide(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, least: float, most: float
) -> None:
    pixels = Preprocess.pixels
    monkeypatch.setattr(Preprocess, "pixels", lambda self, data: time.sleep(0.2) or pixels(self, data))
    settings = TINY | {
        "data": str(photos),
        "out": tmp_path / "out",
        "weights": str(calibrated_weights(tmp_path)),
    }
    more = {"method": ("flat",), "metrics": ("average_drop",), "batch_size": 3, "workers": workers}
    assert least <= estimate_of(**settings | more)["seconds"] < most


def test_dry_run_of_correct_is_an_upper_bound(tmp_path: Path) -> None:
    """No probe has a hit, whatever the model says of the others: what they would cost is counted."""
    for number in range(6):
        write_photo(tmp_path / "data" / "n01440764" / f"photo_{number}.png", seed=number)
    settings = TINY | {"data": str(tmp_path / "data"), "out": tmp_path / "out", "batch_size": 2, "steps": 9}
    settings |= {"method": ("gradcam",), "metrics": ("adcc", "deletion")}
    label, correct = (estimate_of(**settings, target=target) for target in ("label", "correct"))
    assert correct["passes"] == label["passes"] == 3 * (1 + 1 + 2 + 8)
    assert correct["megabytes"] == label["megabytes"]
    assert correct["seconds"] > 0


def test_dry_run_goes_on_after_a_model_that_cannot_be_had(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = camkit.network.prepare.load_model

    def no_weights(name: str, *arguments: object) -> LoadedModel:
        if name == "timm/camkit_tiny":
            raise CamkitError("its weights are not here")
        return load(name, *arguments)

    monkeypatch.setattr(camkit.network.prepare, "load_model", no_weights)
    words = ["bench", "--dry-run", "--weights", "random", "--device", "cpu", "--preprocess", "native"]
    words += ["--workers", "0", "--data", str(photos), "--out", str(tmp_path / "out"), "--steps", "4"]
    result = CliRunner().invoke(main, [*words, "--model", "timm/camkit_tiny,timm/camkit_tiny_too"])
    assert result.exit_code == 1
    assert "error: timm/camkit_tiny: its weights are not here" in result.output
    assert re.search(r"^timm/camkit_tiny_too +1 ", result.output, re.MULTILINE)
    assert "1 of 2 models failed, as said above: timm/camkit_tiny\n" in result.output
    result = CliRunner().invoke(main, [*words, "--model", "timm/camkit_tiny"])
    assert (result.exit_code, "models failed" in result.output) == (1, False)


def test_dry_run_counts_what_is_left(photos: Path, tmp_path: Path) -> None:
    """One method on two images, then two methods on all: two groups of images that lack the same."""
    more = {"method": ("gradcam", "hirescam"), "batch_size": 2, "steps": 5}
    settings = TINY | {"data": str(photos), "out": tmp_path / "out"} | more
    bench(RunConfig(**settings | {"method": ("gradcam",), "limit": 2}), say=lambda line: None)
    (table,) = (tmp_path / "out").glob("*/*/gradcam.csv")
    table.write_bytes(table.read_bytes()[:-3])  # a torn row: its image is to be made again
    before = contents(tmp_path / "out")
    estimate = estimate_of(**settings)
    assert contents(tmp_path / "out") == before
    assert (estimate["cells"], estimate["images"]) == (2, 6)
    bench(RunConfig(**settings), say=lambda line: None)
    made = last_segment(tmp_path / "out")["passes"]
    first = 1 * (1 + 2 + (2 + 2 * 4))  # the whole batch of two images
    assert estimate["passes"] == made - first
    assert estimate_of(**settings)["passes"] == 0
    assert estimate_of(**settings, force=True)["passes"] == 3 * (1 + 2 + 2 * (2 + 2 * 4))


def test_dry_run_refuses_what_the_run_would(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("flat",), metrics=("adcc",))
    with pytest.raises(UsageError, match="steps"):
        estimate_of(**TINY | {"data": str(photos), "out": tmp_path, "method": ("flat",), "steps": 5})


def test_dry_run_passes_over_images_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    for photo in sorted(data.iterdir())[:-1]:
        photo.write_bytes(b"no image")
    settings = TINY | {"data": str(data), "out": tmp_path / "out", "method": ("flat",), "batch_size": 2}
    assert estimate_of(**settings, metrics=("adcc",))["passes"] == 3 * (1 + 2)
    first = find_images(str(data), seed=0).items[0]
    assert first.id != "photo_5.png"
    with pytest.raises(CamkitError, match="none of the 1 images could be read"):
        estimate_of(**settings, limit=1)


@pytest.mark.parametrize("options", [{}, {"curves": True, "save_maps": True}])
def test_dry_run_estimates_the_disk(tmp_path: Path, options: dict) -> None:
    """Within a fifth of what the run leaves behind its images' rows, curves and maps."""
    data = tmp_path / "data"
    for number in range(40):
        write_photo(data / f"photo_{number}.png", seed=number)
    settings = TINY | {"data": str(data), "method": ("gradcam",), "steps": 64, "out": tmp_path / "out"}
    estimate = estimate_of(**settings, **options)
    bench(RunConfig(**settings, **options), say=lambda line: None)
    kept = list((tmp_path / "out").glob("*/*/gradcam.*"))
    assert len(kept) == 3 + bool(options)
    written = sum(path.stat().st_size for path in kept)
    assert estimate["megabytes"] == pytest.approx(written / 1e6, rel=0.2, abs=0.05)
