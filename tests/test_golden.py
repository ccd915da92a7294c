"""Scores and maps of EfficientNet-Lite0 on real photos, against another's (golden/README.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import GOLDEN as FOLDER

from camkit.config import RunConfig
from camkit.methods.saliency import to_saliency
from camkit.results.folder import file_name
from camkit.runs.bench import bench

pytestmark = pytest.mark.slow

GOLDEN = (
    pd.read_csv(FOLDER / "golden_lite0.csv").set_index(["layer", "utility", "method", "image"]).sort_index()
)
UTILITIES = ("rest", "logit", "softmax", "log-softmax")
SCORES = ["probability", "average_drop", "increase", "drop_in_deletion", "coherency", "complexity"]
METHODS = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam",
    "shapleycam", "shapleycam-h", "shapleycam-e",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    """With one, coherency of one map of 432 differs by 0.00055, which the tolerance leaves out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of EfficientNet-Lite0 on the sample photos: layers, utilities and the paper's methods."""
    out = tmp_path_factory.mktemp("golden")
    config = RunConfig(
        model=("tf_efficientnet_lite0",),
        method=("paper",),
        layer=("conv", "prepool"),
        utility=UTILITIES,
        metrics=("adcc",),
        batch_size=6,
        out=out,
        save_maps=True,
        device="cpu",
    )
    bench(config, say=lambda line: None)
    return out


def rows_of(out: Path, layer: str, utility: str, method: str) -> pd.DataFrame:
    path = out / "tf_efficientnet_lite0" / f"{layer}-{utility}" / f"{file_name(method)}.csv"
    return pd.read_csv(path).set_index("image")


def test_the_run_has_a_row_a_cell_and_the_six_sample_photos(golden_run: Path) -> None:
    summary = pd.read_csv(golden_run / "summary.csv")
    assert len(summary) == len(summary[["layer", "utility", "method"]].drop_duplicates()) == 2 * 4 * 10
    assert set(summary["model"]) == {"tf_efficientnet_lite0"}
    assert set(rows_of(golden_run, "conv", "rest", "gradcam").index) == {
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"
    }  # fmt: skip


# On `conv` the activations of some channels sum to nearly nothing, and XGradCAM divides by the sum.
@pytest.mark.parametrize(
    ("layer", "method"),
    [(x, m) for x in ("conv", "prepool") for m in METHODS if (x, m) != ("conv", "xgradcam")],
)
@pytest.mark.parametrize("utility", UTILITIES)
def test_scores(golden_run: Path, layer: str, utility: str, method: str) -> None:
    ours = rows_of(golden_run, layer, utility, method)
    golden = GOLDEN.loc[layer, utility, method].loc[ours.index]
    assert len(ours) == 6
    assert (ours["target"] == golden["target"]).all()
    np.testing.assert_allclose(ours[SCORES], golden[SCORES], rtol=0, atol=5e-4)


@pytest.mark.parametrize("utility", UTILITIES)
def test_xgradcam_on_conv_agrees_on_most_photos(golden_run: Path, utility: str) -> None:
    """Peers' tests hold its formula to the last bits; coherency doubles what the division magnifies."""
    ours = rows_of(golden_run, "conv", utility, "xgradcam")
    golden = GOLDEN.loc["conv", utility, "xgradcam"].loc[ours.index]
    scores = [score for score in SCORES if score != "coherency"]
    assert ((ours[scores] - golden[scores]).abs().median() < 5e-4).all()


@pytest.mark.parametrize(
    ("layer", "method"),
    [(x, m) for x in ("conv", "prepool") for m in METHODS if (x, m) != ("conv", "xgradcam")],
)
def test_maps(golden_run: Path, layer: str, method: str) -> None:
    with np.load(FOLDER / "golden_lite0_maps.npz") as golden:
        expected = golden[f"{layer}-{method}"]
    path = golden_run / "tf_efficientnet_lite0" / f"{layer}-rest" / f"{method}.npz"
    with np.load(path) as saved:
        maps = dict(zip(saved["images"].tolist(), saved["maps"], strict=True))
    signed = torch.from_numpy(np.stack([maps["astronaut.png"], maps["camera.png"]]))
    ours = to_saliency(signed, (224, 224))[:, 4::16, 4::16].numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-4)


def test_deletion_and_insertion_curves(tmp_path: Path) -> None:
    config = RunConfig(
        model=("tf_efficientnet_lite0",),
        method=("shapleycam",),
        metrics=("deletion", "insertion"),
        limit=2,
        batch_size=2,
        out=tmp_path,
        device="cpu",
    )
    bench(config, say=lambda line: None)
    ours = rows_of(tmp_path, "conv", "rest", "shapleycam")
    golden = GOLDEN.loc["conv", "rest", "shapleycam"].loc[ours.index]
    assert len(ours) == 2
    curves = ["deletion_auc", "insertion_auc"]
    np.testing.assert_allclose(ours[curves], golden[curves], rtol=0, atol=1e-3)
