"""Deletion and insertion curves: where they lie, and that no image counts twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import run

from camkit.metrics.causal import area
from camkit.report.curves import mean_curves
from camkit.report.study import load_study
from camkit.results.arrays import CURVE_POINTS, Curves, read_curves, thin


def test_thinning_keeps_the_ends_and_exact_points():
    whole = np.linspace(0, 1, 225, dtype=np.float32)[None] ** 2
    few = thin(whole)
    assert few.shape == (1, CURVE_POINTS) and (few[0, 0], few[0, -1]) == (0, 1)
    np.testing.assert_allclose(few[0, 7], whole[0, 56], rtol=1e-3)
    np.testing.assert_array_equal(thin(few), few)
    assert thin(whole[:, :5]).shape == (1, 5)


def test_curves_survive_a_torn_end_and_count_once(tmp_path):
    path = tmp_path / "gradcam.deletion_curve"
    curves = Curves(path)
    curves.append(["a", "b"], np.array([[1, 0], [0.5, 0]], dtype=np.float16))
    whole = path.stat().st_size
    curves.append(["c"], np.array([[0.25, 0]], dtype=np.float16))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    again = Curves(path)
    assert path.stat().st_size == whole
    again.append(["b", "c"], np.array([[0.5, 0], [0.25, 0]], dtype=np.float16))
    again.finish({"c": 0, "b": 1, "a": 2})
    assert {name: one.tolist() for name, one in read_curves(path).items()} == {
        "c": [0.25, 0],
        "b": [0.5, 0],
        "a": [1, 0],
    }


def test_parts_are_folded_and_whole_curves_stay_beside_thinned_ones(tmp_path):
    main, part = tmp_path / "m.insertion_curve", tmp_path / "part"
    Curves(main).append(["a"], np.array([[0, 1]], dtype=np.float16))
    Curves(part).append(["a", "b"], np.array([[0.5, 0.5, 0.5], [0, 0.5, 1]], dtype=np.float32))
    Curves(main, also=[part]).finish({"a": 0, "b": 1})
    assert {name: one.tolist() for name, one in read_curves(main).items()} == {"a": [0, 1], "b": [0, 0.5, 1]}


@pytest.fixture(scope="module")
def results(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos, then all six in the same folder; seven steps."""
    out = tmp_path_factory.mktemp("curves")
    for limit in (3, None):
        methods, metrics = ("gradcam", "flat"), ("deletion", "insertion")
        run(photos, out, limit=limit, steps=7, method=methods, metrics=metrics)
    return out


def test_a_run_keeps_curves_whose_areas_are_the_scores(results):
    (block,) = load_study([results])
    for name in ("deletion", "insertion"):
        curves = read_curves(block.folder / f"gradcam.{name}_curve")
        assert tuple(curves) == block.images
        areas = [area(torch.from_numpy(one.astype(np.float32))[None]).item() for one in curves.values()]
        scores = block.values[:, block.methods.index("gradcam"), block.columns.index(f"{name}_auc")]
        np.testing.assert_allclose(areas, scores, atol=1e-3)  # kept as float16


def test_the_mean_curve_counts_every_image_once(results):
    (block,) = load_study([results])
    found = mean_curves(block)
    assert set(found) == {"deletion", "insertion"} and set(found["deletion"]) == {"gradcam", "flat"}
    curves = np.stack(list(read_curves(block.folder / "gradcam.deletion_curve").values())).astype(np.float64)
    one = found["deletion"]["gradcam"]
    assert one.images == 6 and one.mean.shape == (8,)
    np.testing.assert_allclose(one.mean, curves.mean(axis=0))
    # Student's t with 5 degrees of freedom: 2.571 at 97.5 %.
    np.testing.assert_allclose(one.half, 2.5706 * curves.std(axis=0, ddof=1) / np.sqrt(6), rtol=1e-4)


def test_curves_are_whole_on_request(photos, tmp_path):
    run(photos, tmp_path, steps=40, limit=1, metrics=("deletion",), curves=True)
    (path,) = tmp_path.rglob("*_curve")
    (one,) = read_curves(path).values()
    assert one.shape == (41,) and one.dtype == np.float32
