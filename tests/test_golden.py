"""Scores and maps of EfficientNet-Lite0 on real photos, against another implementation's (data/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ALL_UTILITIES

from camkit.config import RunConfig
from camkit.methods.saliency import to_saliency
from camkit.results.folder import file_name
from camkit.runs.bench import bench

DATA = Path(__file__).parent / "data"
GOLDEN = (
    pd.read_csv(DATA / "golden_lite0.csv").set_index(["layer", "utility", "method", "image"]).sort_index()
)
SCORES = ["probability", "average_drop", "increase", "drop_in_deletion", "coherency", "complexity"]
METHODS = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam",
    "shapleycam", "shapleycam-h", "shapleycam-e",
)  # fmt: skip


def rows_of(out: Path, layer: str, utility: str, method: str) -> pd.DataFrame:
    path = out / "tf_efficientnet_lite0" / f"{layer}-{utility}" / f"{file_name(method)}.csv"
    return pd.read_csv(path).set_index("image")


# On `conv` the activations of some channels sum to nearly nothing, and XGradCAM divides by the sum.
@pytest.mark.parametrize(
    ("layer", "method"),
    [(x, m) for x in ("conv", "prepool") for m in METHODS if (x, m) != ("conv", "xgradcam")],
)
@pytest.mark.parametrize("utility", ALL_UTILITIES)
def test_scores(golden_run: Path, layer: str, utility: str, method: str) -> None:
    ours = rows_of(golden_run, layer, utility, method)
    golden = GOLDEN.loc[layer, utility, method].loc[ours.index]
    assert len(ours) == 6
    assert (ours["target"] == golden["target"]).all()
    np.testing.assert_allclose(ours[SCORES], golden[SCORES], rtol=0, atol=5e-4)


@pytest.mark.parametrize("utility", ALL_UTILITIES)
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
    with np.load(DATA / "golden_lite0_maps.npz") as golden:
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
