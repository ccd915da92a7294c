"""Ranks by family: models of one are not independent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import run
from report_data import made_up, write_results

from camkit.entries import MODELS
from camkit.entries import model as register
from camkit.network.models import PAPER_ROWS, family_of
from camkit.report.analysis import Analysis
from camkit.report.comparisons import rank_grid, rank_tables
from camkit.report.study import load_study


def test_the_papers_models_are_five_families():
    families: dict[str, list[str]] = {}
    for row in PAPER_ROWS:
        families.setdefault(row.family, []).append(row.name)
    assert families == {
        "resnet": ["resnet18", "resnet50", "resnet101", "resnet152", "resnext50"],
        "vgg": ["vgg16"],
        "efficientnet": ["efficientnet_b0"],
        "mobilenetv2": ["mobilenet_v2"],
        "swin_transformer": ["swin_t", "swin_s", "swin_b", "swin_l"],
    }
    listing = json.loads(run("list", "models", "--format", "json"))
    assert {row["name"]: row["family"] for row in listing}["swin_l"] == "swin_transformer"


def test_the_family_is_that_of_the_librarys_source_also_of_other_models_and_plugins():
    found = [
        family_of(name)
        for name in ("timm/resnet10t", "torchvision/swin_t", "timm/swin_tiny_patch4_window7_224")
    ]
    assert found == ["resnet", "swin_transformer", "swin_transformer"]
    assert family_of("no-longer-here") == "no-longer-here"
    try:
        register("own")(lambda pretrained: None)
        register("own-resnet", family="resnet")(lambda pretrained: None)
        assert (family_of("own"), family_of("own-resnet")) == ("own", "resnet")
    finally:
        for name in ("own", "own-resnet"):
            MODELS._entries.pop(name, None)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """In three ResNets layercam is simpler than gradcam, in VGG and Swin the other way round."""
    base = made_up(50, 0)
    for model in ("resnet18", "resnet50", "resnet101", "vgg16", "swin_t"):
        change = -0.01 if model.startswith("resnet") else 0.01
        cells = {"gradcam": base, "layercam": base | {"complexity": base["complexity"] + change}}
        write_results(tmp_path / "several", cells, model=model)
    return tmp_path / "several"


def test_three_resnets_are_one_of_three_families(several):
    text = run("compare", several)
    block = text[text.index("Com ↓, average rank over 3 families of 5 models") :].split("\n\n")[0]
    rows = {line.split()[0]: line.split()[1] for line in block.splitlines()[3:5]}
    assert rows == {"gradcam": "1.33", "layercam": "1.67"}  # by models it was the other way round
    assert "resnet (resnet18, resnet50, resnet101)" in block
    assert "are not independent" in block and "swin_transformer (swin_t)" in block


def test_one_family_is_ranked_but_not_tested_nor_drawn(several, tmp_path):
    for model in ("vgg16", "swin_t"):
        shutil.rmtree(several / model)
    text = run("compare", several)
    block = text[text.index("Com ↓, average rank over 1 family of 3 models") :].split("\n\n")[0]
    assert "nothing is tested" in block and "Nemenyi" not in block and "among the best" not in block
    assert "ranks-" not in run("plot", several, "--format", "svg", "-o", tmp_path / "figures")
    (table, *_) = rank_tables([Analysis(one) for one in load_study([several])])
    assert rank_grid(table).headings == ("method", "average rank")
