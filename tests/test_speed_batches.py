"""Batch sizes, passes and what a run says of its own cost."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import write_photo
from tiny import CPU, TINY, TinyNet, noise, seeded
from torch import Tensor
from torch.nn import functional as F

from camkit.benchmark import bench
from camkit.cli import main
from camkit.config import RunConfig
from camkit.data import find_images
from camkit.dryrun import dry_run
from camkit.errors import CamkitError, UsageError
from camkit.prepare import numerics
from camkit.tracing import Network

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
    ],
)
def test_dry_run_counts_the_passes_of_the_run(photos: Path, tmp_path: Path, options: dict) -> None:
    settings = TINY | {"data": str(photos), "out": tmp_path / "out", "batch_size": 4} | options
    cache = tmp_path / "cache"
    (estimate,) = dry_run(RunConfig(**settings, cache=cache), say=lambda line: None).to_dict("records")
    assert not (tmp_path / "out").exists()
    assert not cache.exists()
    bench(RunConfig(**settings), say=lambda line: None)
    path = next((tmp_path / "out").glob("*/*/run.json"))
    assert estimate["passes"] == json.loads(path.read_text())["segments"][-1]["passes"]
    assert (estimate["images"], estimate["batch_size"]) == (6, 4)
    assert estimate["seconds"] > 0


def estimate_of(**settings: object) -> dict:
    (estimate,) = dry_run(RunConfig(**settings), say=lambda line: None).to_dict("records")
    return estimate


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
