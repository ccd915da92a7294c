"""The first section of scripts/gpu.py: what a GPU must give. tests/runs/test_cuda.py runs the same checks.

A check takes a :class:`Setting`, says in words what it measured, and raises AssertionError where a promise is
broken, Skipped where the device has no such thing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from camkit.config import MethodOptions, RunConfig
from camkit.data.items import sample_items
from camkit.methods.saliency import to_saliency
from camkit.network.models import PAPER_ROWS
from camkit.network.prepare import prepare
from camkit.network.trace import Trace
from camkit.network.utilities import find_utility
from camkit.results.arrays import Maps
from camkit.results.cells import CellScores
from camkit.results.folder import file_name
from camkit.results.model_run import ModelRun
from camkit.runs.bench import bench
from camkit.runs.cells import find_methods
from camkit.runs.guard import make_maps

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LITE, SMALL = "tf_efficientnet_lite0", "resnet18"
UTILITIES = ("rest", "logit", "softmax", "log-softmax")
SCORES = ["probability", "average_drop", "increase", "drop_in_deletion", "coherency", "complexity"]
# XGradCAM divides by sums that are nearly nothing on `conv`: docs/definitions.md.
UNSTABLE = ("conv", "xgradcam")
TOLERANCE = 5e-4  # as the golden test has it on the CPU


class Skipped(Exception):
    """The device has nothing that could be checked."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        photos: a folder of at least 500 photos; 12 where it is quick.
        folder: for results, empty.
        quick: fewer models, layers and images.
    """

    device: torch.device
    photos: Path
    folder: Path
    quick: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(setting: Setting, name: str, **options: Any) -> tuple[Path, list[str]]:
    """The results folder of a run on the sample photos, and what it said."""
    settings: dict[str, Any] = {
        "model": (SMALL,), "weights": "random", "method": ("gradcam", "shapleycam"), "metrics": ("adcc",),
        "batch_size": 6, "device": str(setting.device), "out": setting.folder / name,
    }  # fmt: skip
    said: list[str] = []
    bench(RunConfig(**settings | options), said.append)
    return setting.folder / name, said


def tables(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.glob("*/*/*.csv"))}


def scores(out: Path) -> pd.DataFrame:
    found = [
        pd.read_csv(path).assign(cell=f"{path.parent.name} {path.stem}") for path in out.glob("*/*/*.csv")
    ]
    return pd.concat(found).set_index(["cell", "image"]).sort_index()


def largest(first: Path, second: Path, columns: list[str] = SCORES) -> float:
    """The largest difference between the scores of two runs, where the same class is explained."""
    one, other = scores(first), scores(second)
    assert one.index.equals(other.index), "other rows"
    same = one["target"] == other["target"]
    assert same.mean() >= 0.5, f"another class is explained for {1 - same.mean():.0%} of the rows"
    return float((one[same][columns] - other[same][columns]).abs().max().max())


def expect(found: float, limit: float, what: str) -> str:
    assert found <= limit, f"{what}: {found:.3g}, at most {limit:g} expected"
    return f"{what} {found:.3g}"


def golden_scores(setting: Setting, methods: tuple[str, ...] = ("paper",)) -> str:
    """EfficientNet-Lite0 in float32, TF32 off, against recorded scores and maps."""
    utilities, layers = (("rest",), ("conv",)) if setting.quick else (UTILITIES, ("conv", "prepool"))
    with threads(2):  # as the recorded scores were made
        out, _ = run(
            setting, "golden", model=(LITE,), weights="pretrained", method=methods, layer=layers,
            utility=utilities, save_maps=True,
        )  # fmt: skip
    keys = ["layer", "utility", "method", "image"]
    golden = pd.read_csv(GOLDEN / "golden_lite0.csv").set_index(keys).sort_index()
    gaps: list[float] = []
    astray: list[str] = []
    for path in sorted(out.glob("*/*/*.csv")):
        layer, utility = path.parent.name.split("-", 1)
        if path.stem == "randomcam" or (layer, path.stem) == UNSTABLE:
            continue
        ours = pd.read_csv(path).set_index("image")
        recorded = golden.loc[(layer, utility, path.stem)].loc[ours.index]
        gap = (ours[SCORES] - recorded[SCORES]).abs()
        beyond = gap["coherency"][gap["coherency"] > TOLERANCE]
        astray += [f"{layer}, {utility}, {path.stem}, {one}: {by:.1e}" for one, by in beyond.items()]
        worst = max(gap.drop(columns="coherency").max().max(), gap["coherency"].max() / 2)
        assert worst <= TOLERANCE, f"{layer}, {utility}, {path.stem}: scores differ by {worst:.3g}"
        gaps.append(worst)
    # One of some 400 may differ by up to twice as much: on a CPU too, with one thread for two.
    assert len(astray) <= setting.is_cuda, f"coherency differs: {astray}"
    with np.load(GOLDEN / "golden_lite0_maps.npz") as recorded_maps:
        for path in sorted(out.glob("*/*-rest/*.npz")):
            layer = path.parent.name.removesuffix("-rest")
            if f"{layer}-{path.stem}" in recorded_maps and (layer, path.stem) != UNSTABLE:
                maps = Maps(path).read()
                signed = torch.from_numpy(np.stack([maps["astronaut.png"], maps["camera.png"]]))
                found = to_saliency(signed, (224, 224))[:, 4::16, 4::16].numpy()
                gap = np.abs(found - recorded_maps[f"{layer}-{path.stem}"]).max()
                assert gap <= TOLERANCE, f"{layer}, {path.stem}: maps differ by {gap:.3g}"
    return (
        f"{len(gaps)} cells, scores within {max(gaps):.1e}; coherency beyond: {'; '.join(astray) or 'none'}"
    )


def architectures(setting: Setting) -> str:
    """All twelve, seeded weights, in float64: every method, layer and utility against the CPU."""
    worst, count = 0.0, 0
    for row in PAPER_ROWS[: 1 if setting.quick else None]:
        expected, weights = _maps_in_float64(row.name, torch.device("cpu"))
        maps, _ = _maps_in_float64(row.name, setting.device, weights)
        for cell, found in expected.items():
            gap = float((found - maps[cell]).abs().max() / found.abs().max().clamp(min=1e-30))
            # Of XGradCAM's sums some are nearly nothing: their last bits decide.
            limit = 1e-3 if "xgradcam" in cell else 1e-6
            assert gap <= limit, f"{row.name}, {cell}: maps differ by {gap:.3g} of their largest value"
            worst, count = max(worst, 0.0 if "xgradcam" in cell else gap), count + 1
    return f"{count} maps, within {worst:.1e} of their largest value"


def _maps_in_float64(
    name: str, device: torch.device, weights: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Maps on two images of noise, and the weights: the batch norms of random ones differ by the device."""
    config = RunConfig(model=(name,), weights="random", device=str(device))
    prepared = prepare(name, ("conv", "prepool"), sample_items(), config, lambda line: None)
    network = prepared.network
    if weights is not None:
        network.model.load_state_dict(weights)
    network.model.double()
    shape = (2, *prepared.loaded.preprocess.shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    found = {}
    for layer, path in prepared.paths.items():
        passed = network.trace(images, [path])
        target = passed.logits.argmax(dim=1)
        for utility in UTILITIES:
            trace = Trace(
                images=images, image_ids=["a", "b"], pixels=lambda: images, target=target, seed=0, draw=0,
                network=network, regions=None, options=MethodOptions(), utility=find_utility(utility),
                layer=path, passed=passed,
            )  # fmt: skip
            for method in find_methods(("paper",)):
                found[f"{layer}, {utility}, {method.name}"] = make_maps(method, trace)[0].cpu()
    return found, network.model.state_dict()


def batches(setting: Setting) -> str:
    """A batch of one gives what a batch of many gives."""
    one, _ = run(setting, "one", batch_size=1)
    many, _ = run(setting, "many", batch_size=6)
    return expect(largest(one, many), 5e-3, "largest difference")


def reproducible(setting: Setting) -> str:
    """The same command gives the same bytes: every pass has one shape."""
    methods = ("gradcam", "layercam") if setting.quick else ("paper",)
    runs = [tables(run(setting, f"again {number}", method=methods)[0]) for number in range(2)]
    assert runs[0] == runs[1], f"differ: {[name for name in runs[0] if runs[0][name] != runs[1][name]]}"
    return f"{len(runs[0])} tables, byte for byte"


def resumed(setting: Setting) -> str:
    """A run that dies between two writes goes on to the same bytes."""
    whole = tables(run(setting, "whole", batch_size=2)[0])
    write, left = ModelRun.write, iter(range(3))

    def dying(self: ModelRun, result: Any) -> None:
        if isinstance(result, CellScores) and next(left, None) is None:
            raise KeyboardInterrupt
        write(self, result)

    ModelRun.write = dying  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt):
            run(setting, "parts", batch_size=2)
            raise AssertionError("the run was not stopped")
    finally:
        ModelRun.write = write  # type: ignore[method-assign]
    out, said = run(setting, "parts", batch_size=2)
    assert any("going on with" in line for line in said), said
    assert tables(out) == whole, "the tables differ"
    return f"{len(whole)} tables, byte for byte"


def two_processes(setting: Setting) -> str:
    """Two processes on one device share a results folder."""
    whole = tables(run(setting, "alone", batch_size=3)[0])
    device = "cuda:0" if setting.is_cuda else str(setting.device)
    words = ["bench", "--model", SMALL, "--weights", "random", "--method", "gradcam,shapleycam"]
    words += ["--metrics", "adcc", "--batch-size", "3", "--device", device]
    words += ["--out", str(setting.folder / "two")]
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {**os.environ, "PYTHONPATH": places, "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "camkit", *words]
    started = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}, **pipes) for rank in range(2)]
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-500:]
    assert tables(setting.folder / "two") == whole, "the tables differ from those of one process"
    return f"{len(whole)} tables, byte for byte"


def out_of_memory(setting: Setting) -> str:
    """`--batch-size auto` halves the size when memory runs out, and goes on."""
    if not setting.is_cuda:
        raise Skipped("needs a GPU")
    _, total = torch.cuda.mem_get_info(setting.device)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2.5e9 / total), setting.device.index)
    try:
        _, said = run(setting, "memory", batch_size="auto", data=str(setting.photos), limit=300)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device.index)
    assert any("out of memory, going on with" in line for line in said), said
    return "; ".join(line for line in said if "out of memory" in line)


def flat_memory(setting: Setting) -> str:
    """Device memory does not grow with the number of images."""
    if not setting.is_cuda:
        raise Skipped("needs a GPU")
    peaks = []
    for images in (100, 500):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
        run(setting, f"flat {images}", batch_size=50, data=str(setting.photos), limit=images, workers=4)
        peaks.append(torch.cuda.max_memory_allocated(setting.device))
    return expect(peaks[1] / peaks[0], 1.02, f"peak {peaks[1] / 1e6:.0f} MB; 500 images against 100:")


def waits(setting: Setting) -> str:
    """How often the host waits for the device: once a batch, not once a cell."""
    if not setting.is_cuda:
        raise Skipped("needs a GPU")
    counts: list[int] = []
    for methods in (("gradcam",), ("paper",)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(setting, f"waits {len(counts)}", method=methods, batch_size=1, workers=0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(one.message) for one in caught))
    assert counts[1] - counts[0] <= 6, f"{counts} waits with one and ten methods, six batches"
    return f"{counts[0]} waits with one method, {counts[1]} with ten (six batches; those of loading included)"


def compiled(setting: Setting) -> str:
    """`--compile` changes last digits only."""
    if setting.quick:
        raise Skipped("not in the quick form: the compiler alone takes a minute")
    plain, _ = run(setting, "plain")
    other, _ = run(setting, "compiled", compile=True)
    return expect(largest(plain, other), 5e-3, "largest difference")


def number_formats(setting: Setting) -> str:
    """bfloat16, float16 and TF32 against float32: the mean of each score."""
    full, _ = run(setting, "float32")
    said = []
    formats: dict[str, dict[str, Any]] = {name: {"dtype": name} for name in ("bfloat16", "float16")}
    if setting.is_cuda:
        formats["TF32"] = {"tf32": True}
    for name, options in formats.items():
        other, _ = run(setting, name, **options)
        gap = float((scores(full)[SCORES] - scores(other)[SCORES]).mean().abs().max())
        assert gap <= 0.1, f"{name}: a mean moves by {gap:.3g}"
        said.append(f"{name} {gap:.1e}")
    return f"largest change of a mean: {', '.join(said)}"


def recorded(setting: Setting) -> str:
    """run.json names the device that made the rows."""
    out, _ = run(setting, "named", method=("gradcam",))
    text = (out / file_name(SMALL) / "conv-rest" / "run.json").read_text(encoding="utf-8")
    name = torch.cuda.get_device_name(setting.device) if setting.is_cuda else str(setting.device)
    assert name in text, f"{name} is not in run.json"
    return name


CHECKS: dict[str, Callable[[Setting], str]] = {
    check.__name__.replace("_", " "): check
    for check in (
        golden_scores,
        batches,
        reproducible,
        resumed,
        two_processes,
        out_of_memory,
        flat_memory,
        waits,
        number_formats,
        recorded,
        compiled,  # the compiler takes a minute
        architectures,  # the CPU's side takes minutes
    )  # fmt: skip
}
