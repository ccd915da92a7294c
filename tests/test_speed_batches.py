"""Batch sizes, passes and what a run says of its own cost."""

from __future__ import annotations

import csv
import gc
import json
import re
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import write_photo
from tiny import CPU, TINY, TinyNet, noise, seeded
from torch import Tensor
from torch.nn import functional as F

import camkit.network.prepare
import camkit.runs.dryrun
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.data.pixels import Preprocess
from camkit.errors import CamkitError, UsageError
from camkit.network.loading import LoadedModel, load_model
from camkit.network.numerics import numerics
from camkit.network.passes import Network
from camkit.network.random import calibrate
from camkit.runs.bench import bench
from camkit.runs.dryrun import dry_run
from camkit.runs.evaluate import Evaluation
from camkit.runs.guard import explain
from camkit.runs.rescore import rescore

FITS = 4


def run(photos: Path, out: Path, **options: object) -> list[str]:
    """A run's lines for the user."""
    lines: list[str] = []
    bench(RunConfig(**(TINY | {"data": str(photos), "out": out} | options)), say=lines.append)
    return lines


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    found = {}
    for path in sorted(out.glob("*/*/*.csv")):
        with path.open(newline="") as file:
            found |= {(path.stem, row["image"]): row for row in csv.DictReader(file)}
    return found


def segments(out: Path) -> list[dict]:
    (path,) = out.glob("*/*/run.json")
    return json.loads(path.read_text())["segments"]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device in which a scoring pass of more than four images does not fit."""
    logits = Network.logits

    def fits(self: Network, images: Tensor) -> Tensor:
        if len(images) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return logits(self, images)

    monkeypatch.setattr(Network, "logits", fits)


@pytest.mark.usefixtures("small_memory")
def test_auto_halves_and_goes_on(photos: Path, tmp_path: Path) -> None:
    said = run(photos, tmp_path / "auto", method=("flat", "hirescam"), batch_size="auto")
    assert [line for line in said if "out of memory" in line] == [
        "timm/camkit_tiny: out of memory, going on with 3 images in a pass"
    ]
    assert [segment["batch_size"] for segment in segments(tmp_path / "auto")] == [3]
    assert not any("not as before" in line for line in said)
    run(photos, tmp_path / "fixed", method=("flat", "hirescam"), batch_size=2)
    auto, fixed = rows(tmp_path / "auto"), rows(tmp_path / "fixed")
    assert auto.keys() == fixed.keys()
    assert len(auto) == 2 * 6
    for key, row in auto.items():
        for column, value in list(row.items())[3:]:
            # A CAM's nearly equal pixels change places with the last bit, and its curves with them.
            if not (column.endswith("_auc") and key[0] == "hirescam"):
                assert float(value) == pytest.approx(float(fixed[key][column]), abs=1e-5), (key, column)


@pytest.mark.usefixtures("small_memory")
def test_auto_that_halves_again_goes_on_with_its_segment(photos: Path, tmp_path: Path) -> None:
    """Each start tries the large size first, without a row."""
    said = run(photos, tmp_path / "out", method=("flat",), batch_size="auto")
    said += run(photos, tmp_path / "out", method=("flat", "edges"), batch_size="auto")
    assert not any("not as before" in line for line in said)
    path = tmp_path / "out" / "timm__camkit_tiny" / "conv-rest" / "run.json"
    assert [segment["starts"] for segment in json.loads(path.read_text())["segments"]] == [2]


@pytest.mark.usefixtures("small_memory")
def test_a_size_that_was_asked_for_is_not_changed(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("flat",), batch_size=2, limit=2)
    before = rows(tmp_path)
    words = ["bench", "--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native"]
    words += ["--device", "cpu", "--workers", "0", "--data", str(photos), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*words, "--steps", "4", "--method", "flat", "--batch-size", "6"])
    assert result.exit_code == 1
    assert (
        "error: out of memory at --batch-size 6: try a smaller one, or auto. Finished rows are kept"
        in result.output
    )
    assert "Traceback" not in result.output
    assert rows(tmp_path) == before
    assert len(before) == 2


@pytest.mark.parametrize("size", [4, 5])
def test_every_pass_of_the_loop_has_one_shape(photos: Path, tmp_path: Path, size: int) -> None:
    """Six images: the last batch is padded. What comes before the loop (probes, statistics) is left out."""
    run(photos, tmp_path, method=("gradcam",), batch_size=size)
    passes = segments(tmp_path)[-1]["passes"]
    assert set(TinyNet.passed[-passes:]) == {size}
    assert passes == 2 * (1 + 2 + 2 + 2 * 3)


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
    path = next((tmp_path / "out").glob("*/*/run.json"))
    segment = json.loads(path.read_text())["segments"][-1]
    assert estimate["passes"] == segment["passes"]
    assert estimate["head_passes"] == segment["head_passes"]
    assert (estimate["images"], estimate["batch_size"]) == (6, 4)
    assert estimate["seconds"] > 0


def weights(folder: Path) -> Path:
    """Weights of the tiny network, whose batch norm does not come from the run's own images."""
    model = load_model("timm/camkit_tiny", "random").model
    calibrate(model, noise(8, 3, 64, 64))
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def estimate_of(**settings: object) -> dict:
    table, failed = dry_run(RunConfig(**settings), say=lambda line: None)
    assert not failed
    (estimate,) = table.to_dict("records")
    return estimate


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_head_passes_are_recorded_and_shown_where_there_are_any(photos: Path, tmp_path: Path) -> None:
    """A head that is linear: 10 coalitions tell so, and 16 positions alone tell all others."""
    settings = {"metrics": ("shapley",), "batch_size": 3}
    run(photos, tmp_path / "game", method=("shapley", "gradcam"), **settings)
    run(photos, tmp_path / "none", method=("gradcam",), metrics=("adcc",))
    assert segments(tmp_path / "game")[-1]["head_passes"] == 2 * (10 + 16)
    assert segments(tmp_path / "game")[-1]["passes"] == 2 * (1 + 1)  # up to the layer, once more
    assert segments(tmp_path / "none")[-1]["head_passes"] == 0
    run(photos, tmp_path / "saved", method=("gradcam",), metrics=("adcc",), save_maps=True)
    saved = {"data": str(photos), "batch_size": 3, "device": "cpu", "say": lambda line: None}
    rescore(tmp_path / "saved", metrics=("shapley",), **saved)
    assert segments(tmp_path / "saved")[-1]["head_passes"] == 2 * (10 + 16)
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
    words += ["--steps", "4", "--batch-size", "3", "--method", "gradcam"]
    for metrics, shown in (("shapley", True), ("adcc", False)):
        result = CliRunner().invoke(main, [*words, "--metrics", metrics])
        assert result.exit_code == 0, result.output
        assert ("head_passes" in result.output) is shown


def test_dry_run_takes_more_steps_as_bare_passes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is slow in a batch, and no pass, is counted once a batch: not in every step of the curves."""
    run_batch = camkit.runs.dryrun.make_evaluation

    def slow(*arguments: object) -> Evaluation:
        evaluation = run_batch(*arguments)
        evaluation.explain = lambda method, trace: time.sleep(0.5) or explain(method, trace)
        return evaluation

    monkeypatch.setattr(camkit.dryrun, "make_evaluation", slow)
    settings = TINY | {"data": str(photos), "out": tmp_path / "out", "method": ("gradcam",), "batch_size": 3}
    estimate = estimate_of(**settings | {"metrics": ("deletion",), "steps": 200})
    assert 2 * 0.5 < estimate["seconds"] < 2 * 2 * 0.5 + 200 * 2 * 0.005


@pytest.mark.parametrize(("workers", "least", "most"), [(0, 1.2, 9), (2, 0.6, 1.19)])
def test_dry_run_counts_decoding_that_workers_do_not_hide(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, least: float, most: float
) -> None:
    pixels = Preprocess.pixels
    monkeypatch.setattr(Preprocess, "pixels", lambda self, data: time.sleep(0.2) or pixels(self, data))
    settings = TINY | {"data": str(photos), "out": tmp_path / "out", "weights": str(weights(tmp_path))}
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


@pytest.mark.parametrize("work", [bench, dry_run])
def test_a_model_is_freed_before_the_next_is_loaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable
) -> None:
    """Two models at once may not fit; the first runs out of memory on its way, which must not keep it."""
    load, logits = camkit.network.prepare.load_model, Network.logits
    loaded: list[weakref.ref] = []

    def watched(*arguments: object) -> LoadedModel:
        assert all(model() is None for model in loaded)
        found = load(*arguments)
        loaded.append(weakref.ref(found.model))
        return found

    def fits(self: Network, images: Tensor) -> Tensor:
        if len(images) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return logits(self, images)

    monkeypatch.setattr(camkit.prepare, "load_model", watched)
    monkeypatch.setattr(Network, "logits", fits)
    models = ("timm/camkit_tiny", "timm/camkit_tiny_too")
    settings = TINY | {"model": models, "data": str(photos), "out": tmp_path / "out", "batch_size": "auto"}
    work(RunConfig(**settings | {"method": ("gradcam",), "metrics": ("adcc",)}), lambda line: None)
    gc.collect()
    assert len(loaded) == 2 and all(model() is None for model in loaded)


def test_dry_run_goes_on_after_a_model_that_cannot_be_had(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = camkit.network.prepare.load_model

    def no_weights(name: str, *arguments: object) -> LoadedModel:
        if name == "timm/camkit_tiny":
            raise CamkitError("its weights are not here")
        return load(name, *arguments)

    monkeypatch.setattr(camkit.prepare, "load_model", no_weights)
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
    path = next((tmp_path / "out").glob("*/*/run.json"))
    made = json.loads(path.read_text())["segments"][-1]["passes"]
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


def test_a_run_records_its_passes_and_its_waiting(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, method=("gradcam",), metrics=("adcc",), batch_size=3)
    (segment,) = segments(tmp_path)
    assert segment["passes"] == 2 * 3
    assert 0 < segment["waiting_seconds"] < segment["seconds"]


def switches() -> tuple:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_numerics_are_set_and_set_back(
    monkeypatch: pytest.MonkeyPatch, tf32: bool, deterministic: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with pytest.raises(ZeroDivisionError), numerics(tf32, deterministic) as record:
        assert switches()[:5] == (tf32, tf32, False, deterministic, deterministic)
        assert (record["deterministic"], record["cudnn_benchmark"]) == (deterministic, False)
        raise ZeroDivisionError
    assert switches() == before


def test_deterministic_names_what_it_could_not_do() -> None:
    places = torch.tensor([[[[0, 2], [8, 10]]]])
    with numerics(tf32=False, deterministic=True) as record:
        torch.ones(3).cumsum(dim=0)
        assert record["not_deterministic"] == []
        F.max_unpool2d(torch.ones(1, 1, 2, 2), places, 2, output_size=(4, 4))
        assert record["not_deterministic"] == ["max_unpooling2d_forward_out"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_below_float32_the_derivatives_stay_float32(dtype: torch.dtype) -> None:
    """The backbone's layers run in the short format; the leaf, and what comes after it, in float32."""
    model = seeded(TinyNet)
    seen: dict[str, torch.dtype] = {}
    for name in ("features.0", "features.3", "fc"):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.dtype})
        )
    network = Network(model, CPU, dtype)
    passed = network.trace(noise(2, 3, 64, 64), ["features.3"])
    assert seen == {"features.0": dtype, "features.3": dtype, "fc": torch.float32}
    assert passed.leaves["features.3"].dtype == torch.float32
    assert passed.logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(passed.logits.sum(), passed.leaves["features.3"])
    assert gradient.dtype == torch.float32
    assert network.score(noise(2, 3, 64, 64), torch.tensor([1, 2])).dtype == torch.float32
    assert seen["fc"] == dtype
