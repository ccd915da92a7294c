"""A row depends on its image alone: not on batch, neighbours, order or the number of processes."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tiny import calibrated_weights, run

from camkit.entries import METHODS


def rows(data: Path, out: Path, **options: object) -> dict[tuple[str, str, str], dict[str, str]]:
    """(layer and utility, method, image) -> its row, as text."""
    grid = {"method": ("paper", "controls"), "layer": ("conv", "features.3"), "utility": ("rest",)}
    run(data, out, **grid | options)
    found = {}
    for path in sorted(out.glob("*/*/*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[path.parent.name, path.stem, row["image"]] = row
    return found


@pytest.fixture(scope="module")
def six_at_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return rows(photos, tmp_path_factory.mktemp("six"), batch_size=6)


def test_there_is_something_to_compare(six_at_once: dict) -> None:
    assert len(six_at_once) == 2 * 16 * 6
    mine = [row for key, row in six_at_once.items() if key[:2] == ("features.3-rest", "shapleycam")]
    for column in list(mine[0])[3:]:
        if column != "increase":  # may be the same for all
            assert np.std([float(row[column]) for row in mine]) > 1e-4, column


@pytest.mark.parametrize("size", [1, 4])
def test_any_batch_size(six_at_once: dict, photos: Path, tmp_path: Path, size: int) -> None:
    """4 leaves a last batch that is padded.

    A CAM's saliency has pairs of pixels that differ in the last bit: their order decides its curves here,
    where a pixel counts much. The controls' order is fixed.
    """
    found = rows(photos, tmp_path, batch_size=size)
    assert found.keys() == six_at_once.keys()
    for key, row in found.items():
        for column, value in list(row.items())[2:]:
            if not column.endswith("_auc") or METHODS[key[1]].saliency:
                assert float(value) == pytest.approx(float(six_at_once[key][column]), abs=2e-5), (key, column)


def test_same_shape_gives_the_same_text_whatever_the_neighbours(photos: Path, tmp_path: Path) -> None:
    """Two folders that share two photos, which meet other neighbours, in other places, in another order."""
    shared = ["photo_1.png", "photo_4.png"]
    results = []
    for name, others in (("a", ["photo_0.png", "photo_2.png"]), ("b", ["photo_3.png", "photo_5.png"])):
        folder = tmp_path / name
        folder.mkdir()
        for photo in [*shared, *others]:
            (folder / photo).write_bytes((photos / photo).read_bytes())
        results.append(
            rows(folder, tmp_path / f"out_{name}", batch_size=3, weights=str(calibrated_weights(tmp_path)))
        )
    first, second = ({key: row for key, row in found.items() if key[2] in shared} for found in results)
    assert len(first) == 2 * 16 * 2
    assert first == second


def test_processes_that_decode_change_nothing(six_at_once: dict, photos: Path, tmp_path: Path) -> None:
    found = rows(photos, tmp_path, batch_size=6, workers=2)
    assert found == six_at_once


def test_a_cell_is_the_same_alone_and_among_others(six_at_once: dict, photos: Path, tmp_path: Path) -> None:
    alone = rows(photos, tmp_path, method=("gradcam",), layer=("features.3",), batch_size=6)
    assert len(alone) == 6
    assert all(row == six_at_once[key] for key, row in alone.items())


def test_scores_of_other_classes_and_utilities_are_the_same_alone_and_among_others(
    photos: Path, tmp_path: Path
) -> None:
    """Methods share the views of them, layers and utilities do not."""
    options = {"method": ("gradcam", "hirescam"), "metrics": ("class_sensitivity", "axioms"), "batch_size": 6}
    cells = list(product(("conv", "features.3"), ("rest", "logit")))
    together = rows(photos, tmp_path / "all", utility=("rest", "logit"), **options)
    assert len(together) == 2 * len(cells) * 6
    for layer, utility in cells:
        alone = rows(
            photos, tmp_path / f"{layer}-{utility}", layer=(layer,), utility=(utility,),
            **options | {"method": ("hirescam",)},
        )  # fmt: skip
        assert len(alone) == 6
        assert all(row == together[key] for key, row in alone.items())
    mine = [row["class_random"] for key, row in together.items() if key[1:] == ("hirescam", "photo_1.png")]
    assert len(set(mine)) == len(cells)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_below_float32_a_layer_is_the_same_alone_and_among_others(
    photos: Path, tmp_path: Path, dtype: str
) -> None:
    """From a traced layer on a pass is in float32: no other layer may decide where that begins."""
    options = {"method": ("gradcam", "flat"), "batch_size": 6, "dtype": dtype}
    both = rows(photos, tmp_path / "both", layer=("features.3", "features.0"), **options)
    for layer in ("features.3", "features.0"):
        alone = rows(photos, tmp_path / layer, layer=(layer,), **options)
        assert len(alone) == 2 * 6
        assert all(row == both[key] for key, row in alone.items())
    predictions = [path.read_bytes() for path in sorted(tmp_path.glob("*/*/predictions.csv"))]
    assert len(predictions) == 3 and len(set(predictions)) == 1
    mine = [row["probability"] for key, row in sorted(both.items()) if key[1] == "gradcam"]
    assert mine[:6] != mine[6:]  # else there would be nothing to tell the layers apart


def test_the_seed_moves_randomcam_only(photos: Path, tmp_path: Path) -> None:
    options = {"method": ("paper",), "batch_size": 6, "weights": str(calibrated_weights(tmp_path))}
    first, second = (rows(photos, tmp_path / f"seed_{seed}", seed=seed, **options) for seed in (0, 1))
    differ = {key[1] for key in first if first[key] != second[key]}
    assert differ == {"randomcam"}
