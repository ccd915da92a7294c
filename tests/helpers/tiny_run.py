"""A run small enough for a hundred kills: a network of two convolutions, images of odd names, one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
from click.testing import CliRunner, Result
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from camkit.cli import main
from camkit.config import RunConfig
from camkit.results.cells import CellScores
from camkit.results.folder import MODEL_TABLES
from camkit.results.model_run import ModelRun
from camkit.results.table import Row, read_records
from camkit.runs.bench import bench

MODEL = "timm/camkit_tiny_run"
FOLDER = "timm__camkit_tiny_run"
SECOND_MODEL = "timm/camkit_tiny_run2"
SECOND_FOLDER = "timm__camkit_tiny_run2"
METHODS = ("gradcam", "shapleycam-e", "randomcam", "edges")
ODD_NAMES = ("a,b", 'quo"te', '"', "new\nline", "tab\t \rreturn", "größe 猫", "NA", "1", "latin\udce9")
# rank, number of processes, data, out, changes to the options -> the summary, and the lines that it says
RunAs = Callable[..., tuple[pd.DataFrame | None, list[str]]]


class Tiny(nn.Module):
    """Logits (B, classes) from 224x224 images in about a millisecond; its maps have 7x7 positions."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 7, stride=8, padding=3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=4, padding=1)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.norm(self.first(images)).relu()).relu()
        return 20 * self.head(features.mean(dim=(2, 3)))


if not timm.is_model("camkit_tiny_run"):

    @register_model
    def camkit_tiny_run(pretrained: bool = False, **_: Any) -> Tiny:
        return Tiny()

    @register_model
    def camkit_tiny_run2(pretrained: bool = False, **_: Any) -> Tiny:
        return Tiny(classes=7)


def make_images(folder: Path, images: int) -> Path:
    """Blocks of seeded colours, in three folders; the first nine have odd names, one no valid UTF-8."""
    random = np.random.default_rng(0)
    for number in range(images):
        name = ODD_NAMES[number] if number < len(ODD_NAMES) else f"image{number}"
        place = folder / f"group{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        colours = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(colours.repeat(8, axis=0).repeat(8, axis=1)).save(place / f"{name}.png")
    return folder


def tiny_config(data: Path, out: Path, **changes: Any) -> RunConfig:
    """A run of :class:`Tiny`: four methods, the ADCC scores, batches of four."""
    settings: dict[str, Any] = {
        "model": (MODEL,),
        "method": METHODS,
        "layer": ("second",),
        "metrics": ("adcc",),
        "data": str(data),
        "weights": "random",
        "device": "cpu",
        "batch_size": 4,
        "save_maps": True,
        "out": out,
    }
    return RunConfig(**settings | changes)


def tiny_bench(data: Path, out: Path, **changes: Any) -> list[str]:
    """Run it; give the lines that the user would see."""
    lines: list[str] = []
    bench(tiny_config(data, out, **changes), lines.append)
    return lines


def tiny_words(data: Path, out: Path) -> list[str]:
    """`bench` and the options that make the run of :func:`tiny_config`."""
    config = tiny_config(data, out)
    words = ["bench", "--save-maps", "--workers=0"]
    for name in ("model", "method", "layer", "metrics", "data", "weights", "device", "batch_size", "out"):
        value = getattr(config, name)
        words.append(f"--{name.replace('_', '-')}={','.join(value) if isinstance(value, tuple) else value}")
    return words


def tiny_command(data: Path, out: Path, *more: str) -> Result:
    """`camkit bench` with the settings of :func:`tiny_config`."""
    return CliRunner().invoke(main, [*tiny_words(data, out), *more])


class Crash(BaseException):
    """What a test throws into a run: like a kill, it is nothing that the run could answer to."""


def images_of(out: Path, method: str = METHODS[0]) -> int:
    """How many images a method has in the summary."""
    summary = pd.read_csv(out / "summary.csv").set_index("method")
    return int(summary.loc[method, "images"])


@contextmanager
def at_write(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Do something, once, before the rows of the `number`-th cell and batch are written."""
    write, writes = ModelRun.write, iter(range(number))

    def acting(self: ModelRun, result: Any) -> None:
        if isinstance(result, CellScores) and next(writes, None) is None:
            ModelRun.write = write  # type: ignore[method-assign]
            action()
        write(self, result)

    ModelRun.write = acting  # type: ignore[method-assign]
    try:
        yield
    finally:
        ModelRun.write = write  # type: ignore[method-assign]


def crash_at_write(number: int, data: Path, out: Path, **changes: Any) -> None:
    """Run until the `number`-th cell and batch would be written."""

    def crash() -> None:
        raise Crash

    with at_write(number, crash), suppress(Crash):
        tiny_bench(data, out, **changes)
        raise AssertionError("the run never came that far")


def result_files(out: Path) -> dict[str, bytes]:
    """All final files but run.json: an interrupted run must share them with an uninterrupted one."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.json", ".lock")
    }


def table_rows(out: Path) -> list[tuple[tuple[str, ...], Row]]:
    """((file, *key), row) of every table below a folder, as often as it is there; torn ends left out."""
    rows = []
    for path in sorted(out.rglob("*.csv")):
        if path.name not in ("summary.csv", "order.csv"):
            keys = MODEL_TABLES[path.name][1] if path.name in MODEL_TABLES else ("image",)
            name = path.relative_to(out).as_posix()
            rows += [((name, *(row[key] for key in keys)), row) for row in read_records(path)[1]]
    return rows
