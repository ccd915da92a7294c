"""Results folders of made-up scores, as `camkit bench` writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camkit.report import grades
from camkit.report.analysis import Analysis
from camkit.report.grades import Grade
from camkit.report.study import load_study

SCORES = ("average_drop", "increase", "drop_in_deletion", "coherency", "complexity", "adcc")
BLIND = ("flat", "fake-cam", "centre")
MOSAIC = {"mosaic": 2, "confidence": 0.9}
MOSAICS = 40
TILES = [f"mosaic/{number:05}#{tile}" for number in range(MOSAICS) for tile in range(1, 5)]
MOVED = ("moved-10", "moved-25", "moved-50", "moved-100")
Cells = dict[str, dict[str, np.ndarray]]


def made_up(images: int, seed: int, curves: bool = False) -> dict[str, np.ndarray]:
    """Scores by column, (images,)."""
    rng = np.random.default_rng(seed)
    drop, coherency, complexity = rng.beta(0.5, 2, images), 1 - rng.beta(1, 9, images), rng.beta(3, 7, images)
    scores = {
        "average_drop": drop,
        "increase": (rng.random(images) < 0.3).astype(float),
        "drop_in_deletion": rng.beta(2, 2, images),
        "coherency": coherency,
        "complexity": complexity,
        "adcc": 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)),
    }
    if curves:
        scores |= {"deletion_auc": rng.beta(2, 5, images), "insertion_auc": rng.beta(5, 2, images)}
    return scores


def write_cell(folder: Path, method: str, scores: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """One method's CSV; NaN is an empty field."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{method}.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "target", "probability", *scores])
        for place, name in enumerate(names):
            values = [column[place] for column in scores.values()]
            writer.writerow([name, 7, 7, 0.5, *("" if np.isnan(v) else f"{v:.9g}" for v in values)])


def write_results(
    out: Path,
    cells: Mapping[str, Mapping[str, np.ndarray]],
    *,
    model: str = "resnet18",
    layer: str = "conv",
    utility: str = "rest",
    names: Sequence[str] | None = None,
    flags: Iterable[tuple[str, str, str]] = (),
    errors: Sequence[str] = (),
    failures: Sequence[tuple[str, str]] = (),
    protocol: Mapping[str, object] | None = None,
    data: str = "photos",
) -> Path:
    """One block: method -> its scores; the results folder.

    Args:
        flags: (method, image, flag).
        failures: (method, image).
        protocol: entries that differ from the paper's.
    """
    folder = out / model / f"{layer}-{utility}"
    names = names or [
        f"img/{place:05}.jpg" for place in range(len(next(iter(next(iter(cells.values())).values()))))
    ]
    for method, scores in cells.items():
        write_cell(folder, method, scores, names)
    run = {
        "protocol": {
            "model": model,
            "layer": layer,
            "utility": utility,
            "target_rule": "predicted",
            "steps": 224,
            "preprocess": "paper",
            "weights": "pretrained",
            "data_fingerprint": "0",
            "definitions": 1,
            **(protocol or {}),
        },
        "methods": list(cells),
        "segments": [{"command": "camkit bench --model x", "data": data, "versions": {"torch": "2"}}],
    }
    (folder / "run.json").write_text(json.dumps(run))
    write_table(folder.parent / "predictions.csv", "image,label,predicted,probability", [
        (name, 7, 7 if place % 4 else 8, 0.5) for place, name in enumerate(names)
    ])  # fmt: skip
    write_table(folder.parent / "flags.csv", "layer,utility,method,image,flag", [
        (layer, utility, *flag) for flag in flags
    ])  # fmt: skip
    write_table(
        folder.parent / "errors.csv", "image,stage,reason", [(name, "read", "broken") for name in errors]
    )
    failed = [(layer, utility, *failure, "broke") for failure in failures]
    write_table(folder.parent / "failures.csv", "layer,utility,method,image,reason", failed)
    return out


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


def blind(images: int, complexity: float, drop: float, **others: float) -> dict[str, np.ndarray]:
    """Scores of a control: coherency 1, the same complexity everywhere."""
    adcc = 3 / (1 + 1 / (1 - complexity) + 1 / (1 - drop)) if complexity < 1 and drop < 1 else 0.0
    one = {
        "average_drop": drop,
        "increase": 0.0,
        "drop_in_deletion": 0.0,
        "coherency": 1.0,
        "complexity": complexity,
        "adcc": adcc,
    } | others
    return {name: np.full(images, value) for name, value in one.items()}


def analysis(tmp_path: Path, cells: Mapping[str, Mapping[str, np.ndarray]], **settings: Any) -> Analysis:
    """Of one block, whose results are written below `tmp_path`."""
    return block_of(write_results(tmp_path / "results", cells, **settings))


def block_of(out: Path) -> Analysis:
    """Of the one block of a results folder."""
    (block,) = load_study([out])
    return Analysis(block)


def each(value: float, tiles: int = 4 * MOSAICS) -> np.ndarray:
    return np.full(tiles, value)


def graded(out: Path) -> dict[str, Grade]:
    """By score, of the one block of a results folder."""
    (report,) = grades.grade(load_study([out], altered=True))
    return {one.score.name: one for one in report.grades}


def write_mosaics(
    out: Path, cells: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str] = TILES
) -> Path:
    return write_results(out, cells, names=names, protocol=MOSAIC)


def changed(
    whole: float, losses: Sequence[float], gains: Sequence[float], column: str = "drop_in_deletion"
) -> dict[str, dict[str, np.ndarray]]:
    """A method, four shares of it in a wrong tile, and three changes of its histogram."""
    scores = [whole, *(whole - loss for loss in losses), *(whole + gain for gain in gains)]
    names = ["hirescam", *(f"hirescam~{change}" for change in (*MOVED, "sqrt", "square", "raised"))]
    return {
        name: {"energy": each(0.9), column: each(score)} for name, score in zip(names, scores, strict=True)
    }
