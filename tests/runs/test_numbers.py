"""Numbers that are none: every score is defined or counted, and NumPy has nothing to warn of."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_run import FOLDER, Tiny, crash_at_write, make_images, result_files, tiny_bench, tiny_config
from torch import Tensor

from camkit.metrics.adcc import harmonic_adcc
from camkit.runs.bench import bench

CELLS = f"{FOLDER}/second-rest"
SCORES = ["average_drop", "increase", "drop_in_deletion", "coherency", "complexity", "adcc"]
CURVES = ["deletion_auc", "insertion_auc"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data"), 6)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run(data: Path, out: Path, **changes: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of GradCAM, and the summary by method."""
    settings = {"method": ("gradcam", "flat"), "metrics": ("adcc", "deletion", "insertion"), "steps": 3}
    summary = bench(tiny_config(data, out, **settings | changes), lambda _: None)
    assert summary is not None
    rows = pd.read_csv(out / CELLS / "gradcam.csv", encoding="latin-1")
    return rows, summary.set_index("method")


def spoil_logits(monkeypatch: pytest.MonkeyPatch, spoil: object) -> None:
    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, images: spoil(images, forward(self, images)))


def sure(images: Tensor, logits: Tensor) -> Tensor:
    """Two classes, the first so much more probable that the second has no part in any sum."""
    return torch.cat([logits[:, :1], logits[:, :1] - 1e4], dim=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_of_an_image_that_are_not_finite(
    value: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No probability, no score: NaN in its row, left out of the means, counted."""

    def spoil(images: Tensor, logits: Tensor) -> Tensor:
        top_left = images[:, 0, 0, 0]
        return logits.masked_fill((top_left == top_left.amax())[:, None] & (images.var() > 0.1), value)

    whole, _ = run(data, tmp_path / "whole")
    spoil_logits(monkeypatch, spoil)
    rows, summary = run(data, tmp_path / "out", batch_size=6)
    (bad,) = rows.index[rows["probability"].isna()]
    assert rows.loc[bad, SCORES + CURVES].isna().all()
    assert summary.loc["gradcam", "not_finite"] >= 1
    assert summary.loc["gradcam", "images"] == 6
    others = rows.drop(index=bad)
    assert others["probability"].notna().all()
    assert summary.loc["gradcam", "complexity"] == pytest.approx(others["complexity"].mean())
    assert whole["probability"].notna().all()


def test_logits_of_a_changed_image_that_are_not_finite(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blank image gives NaN: the deletion curve has no area, all other scores stay as they were."""
    whole, _ = run(data, tmp_path / "whole")
    spoil_logits(
        monkeypatch,
        lambda images, logits: logits.masked_fill((images == 0).all(dim=(1, 2, 3))[:, None], torch.nan),
    )
    rows, summary = run(data, tmp_path / "out")
    assert rows["deletion_auc"].isna().all()
    assert summary.loc["gradcam", "not_finite"] == 6
    assert pd.isna(summary.loc["gradcam", "deletion_auc"])
    pd.testing.assert_frame_equal(rows[[*SCORES, "insertion_auc"]], whole[[*SCORES, "insertion_auc"]])


def test_a_masked_image_without_probability_has_no_increase_and_no_adcc() -> None:
    nan = torch.tensor([torch.nan, 0.5, 0.0])
    half = torch.full((3,), 0.5)
    assert torch.equal(harmonic_adcc(half, half, nan).isnan(), torch.tensor([True, False, False]))
    assert harmonic_adcc(torch.zeros(1), torch.zeros(1), torch.zeros(1)) == 0


def test_a_probability_of_zero(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """p0 underflows to 0 for a labelled class: AD = ADD = 0, and the images are counted."""
    (tmp_path / "data" / "first").mkdir(parents=True)
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(path, tmp_path / "data" / "first" / f"{number}.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("first\n" + "".join(f"class {number}\n" for number in range(1, 10)))
    logits = torch.tensor([-300.0] + [0.0] * 9)
    spoil_logits(monkeypatch, lambda images, found: found * 1e-3 + logits)
    of = {"target": "label", "classes": str(classes), "dtype": "float16"}
    rows, summary = run(tmp_path / "data", tmp_path / "out", **of)
    assert (rows["probability"] == 0).all()
    assert (rows[["average_drop", "drop_in_deletion"]] == 0).all(axis=None)
    assert (summary["zero_probability"] == len(rows)).all() and (summary["not_finite"] == 0).all()
    assert rows[SCORES].notna().all(axis=None)


def test_a_probability_of_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """p_c is 1 whatever happens: no drop, no increase."""
    spoil_logits(monkeypatch, sure)
    rows, summary = run(data, tmp_path / "out")
    assert (rows["probability"] == 1).all()
    assert (rows[["average_drop", "increase", "drop_in_deletion"]] == 0).all(axis=None)
    assert (rows[CURVES] == 1).all(axis=None)
    assert summary["not_finite"].sum() == summary["zero_probability"].sum() == 0


def test_constant_maps_are_degenerate_and_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where p_c is 1, ln p_c is 0, and so are its gradient and every map."""
    spoil_logits(monkeypatch, sure)
    summary = run(data, tmp_path / "logit")[1]
    assert summary.loc["gradcam", "degenerate"] < 6
    bench(tiny_config(data, tmp_path / "out", method=("gradcam",), utility=("log-softmax",)), lambda _: None)
    rows = pd.read_csv(tmp_path / "out" / FOLDER / "second-log-softmax" / "gradcam.csv", encoding="latin-1")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("method")
    assert summary.loc["gradcam", "degenerate"] == summary.loc["gradcam", "degenerate_masked"] == 6
    assert (rows[["coherency", "complexity", "adcc"]] == 0).all(axis=None)


def test_no_score_at_all_is_no_warning(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_logits(monkeypatch, lambda images, logits: logits * torch.nan)
    rows, summary = run(data, tmp_path / "out")
    assert rows[SCORES + CURVES].isna().all(axis=None)
    assert summary.loc["gradcam", SCORES].isna().all()
    assert (summary["not_finite"] == 6).all() and (summary["degenerate"]["gradcam"] == 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cells_that_share_maps_are_the_same_after_a_kill_between_them(
    dtype: str, data: Path, tmp_path: Path
) -> None:
    """Two names of one layer and controls that see no layer: what one cell has, the next one is made from.

    Killed in the second batch before each of its cells: the rest of them has nothing to share with those.
    """
    settings = {
        "method": ("gradcam", "flat", "edges"),
        "layer": ("conv", "norm", "prepool"),
        "utility": ("rest", "logit"),
        "metrics": ("adcc", "deletion", "single_deletion"),
        "steps": 3,
        "dtype": dtype,
    }
    cells = 3 * 3 * 2
    tiny_bench(data, tmp_path / "whole", **settings)
    whole = result_files(tmp_path / "whole")
    assert sum(name.endswith(".csv") and "second-" not in name for name in whole) >= cells
    for killed in range(cells + 1, 2 * cells, 6):
        out = tmp_path / str(killed)
        crash_at_write(killed, data, out, **settings)
        tiny_bench(data, out, **settings)
        assert result_files(out) == whole
