"""The run that scripts/soak.py kills: two networks of two convolutions on images of odd names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from camkit import model
from camkit.config import RunConfig
from camkit.results.folder import MODEL_TABLES
from camkit.results.table import Row, read_records
from camkit.runs.bench import bench

MODELS = ("soak-ten", "soak-seven")
ODD_NAMES = ("a,b", 'quo"te', '"', "new\nline", "tab\t \rreturn", "größe 猫", "NA", "1", "latin\udce9")
# In a results folder, but no result: other starts have other ones.
BOOKKEEPING = ("run.json", ".lock")


class Small(nn.Module):
    """Logits (B, classes); maps of 56x56 images have 7x7 positions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 7, stride=4, padding=3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.norm(self.first(images)).relu()).relu()
        return 20 * self.head(features.mean(dim=(2, 3)))


@model(MODELS[0], conv="second", prepool="second", size=56)
def soak_ten(pretrained: bool) -> Small:
    return Small(classes=10)


@model(MODELS[1], conv="second", prepool="second", size=56)
def soak_seven(pretrained: bool) -> Small:
    return Small(classes=7)


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


def run(data: Path, out: Path, workers: int = 0) -> None:
    """Four methods on both networks, batches of four."""
    config = RunConfig(
        model=MODELS,
        method=("gradcam", "shapleycam-e", "randomcam", "edges"),
        metrics=("adcc", "deletion"),
        steps=3,
        data=str(data),
        weights="random",
        device="cpu",
        batch_size=4,
        workers=workers,
        save_maps=True,
        out=out,
    )
    bench(config, lambda line: None)


def result_files(out: Path) -> dict[str, bytes]:
    """All final files but :data:`BOOKKEEPING`: a killed run must share them with one left alone."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in BOOKKEEPING
    }


def table_rows(out: Path) -> Iterator[tuple[tuple[str, ...], Row]]:
    """((file, *key), row) of every table below a folder, as often as it is there; torn ends left out."""
    for path in sorted(out.rglob("*.csv")):
        if path.name != "summary.csv":
            keys = MODEL_TABLES[path.name][1] if path.name in MODEL_TABLES else ("image",)
            name = path.relative_to(out).as_posix()
            for row in read_records(path)[1]:
                yield (name, *(row[key] for key in keys)), row
