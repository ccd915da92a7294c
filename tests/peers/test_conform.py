"""What `make conform` says of other packages holds for those that are installed, on a tiny network.

Where a package's map is another one than camkit's, camkit's map by the formula that was found there is the
package's: so the formula is the whole difference.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import timm
import torch
from places import ROOT
from tiny import Headed, noise, seeded, trace
from torch import Tensor, nn

from camkit.entries import METHODS
from camkit.network.trace import Trace
from camkit.runs.guard import make_maps

pytestmark = pytest.mark.peers
pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("torchcam")

FACTS = tomllib.loads((ROOT / "scripts" / "conform_facts.toml").read_text(encoding="utf-8"))
FOUND = [one for one in FACTS["map"] if "variant" in one and one["method"] != "fullgrad"]
SIGNS = ("eigencam", "eigengradcam", "kpcacam")  # may agree by chance


@pytest.fixture(scope="module")
def maps() -> Iterator[ModuleType]:
    """scripts/conform_maps.py."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import conform_maps

        yield conform_maps
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def swin() -> nn.Module:
    model = timm.models.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 4), num_classes=7
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model


@pytest.fixture(scope="module")
def traced() -> Trace:
    """A layer with negative values, behind which the network bends; two stages."""
    found = trace(seeded(swin), noise(2, 3, 32, 32), "layers[-1].blocks[-1].norm1", "logit")
    stages = [stage.layer for stage in found.stages]
    assert len(stages) == 2
    return replace(found, passed=found.network.trace(found.images, [found.layer, *stages]))


def saliency(name: str, traced: Trace) -> Tensor:
    return make_maps(METHODS[name], traced)[1]


@pytest.mark.parametrize("fact", FOUND, ids=lambda fact: f"{fact['method']}-{fact['package']}")
def test_the_formula_that_was_found_is_the_whole_difference(
    fact: dict[str, str], traced: Trace, maps: ModuleType
) -> None:
    method, package = fact["method"], fact["package"]
    theirs = saliency(f"{maps.PREFIXES[package]}:{maps.PEERS[method][package]}", traced)
    variant = maps.VARIANTS[fact["variant"]](traced, method, theirs)
    assert maps.difference(variant, theirs).max() < 0.01
    assert theirs.amax() > 0.9
    if method not in SIGNS:
        assert maps.difference(saliency(method, traced), theirs).max() > 0.02


def test_full_grad_of_grad_cam_misses_the_biases_of_subclasses(maps: ModuleType) -> None:
    """timm's batch norms are subclasses: with no other bias its map is that of the image alone."""

    def build() -> nn.Module:
        layers = [nn.Conv2d(3, 6, 3, bias=False), timm.layers.BatchNormAct2d(6)]
        nn.init.normal_(layers[1].bias)
        return Headed(
            nn.Sequential(*layers), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        )

    traced = trace(seeded(build), noise(2, 3, 16, 16), "features", "logit")
    theirs = saliency("grad_cam:FullGrad", traced)
    assert maps.difference(maps.fullgrad_of_images(traced), theirs).max() < 0.01
    assert maps.difference(saliency("fullgrad", traced), theirs).max() > 0.02


@pytest.mark.parametrize(
    ("method", "package"), [("gradcam++", "grad-cam"), ("refinecam", "grad-cam"), ("xgradcam", "torchcam")]
)
def test_what_follows_the_paper_agrees(method: str, package: str, traced: Trace, maps: ModuleType) -> None:
    theirs = saliency(f"{maps.PREFIXES[package]}:{maps.PEERS[method][package]}", traced)
    assert maps.difference(saliency(method, traced), theirs).max() < 0.01


def test_every_fact_is_of_something_that_is_measured(maps: ModuleType) -> None:
    for fact in FACTS["map"]:
        assert fact["package"] in maps.PEERS[fact["method"]]
        assert fact.get("variant", "either_sign") in maps.VARIANTS
    assert {one.get("variant") for one in FACTS["map"]} >= set(maps.VARIANTS)
