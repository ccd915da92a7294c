"""Groups of methods in a run: what `all` leaves out, what a model cannot have, and the passes it takes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from tiny import TINY, TinyNet, run

import camkit
from camkit.config import RunConfig
from camkit.entries import METHODS
from camkit.errors import CamkitError, UsageError
from camkit.runs.cells import find_methods
from camkit.runs.dryrun import dry_run
from camkit.runs.photos import explain_images

# Passes and head passes of a method beside those of its run, at a layer of 16 channels and 16 positions.
# Behind it come a batch norm, ReLU, pooling and a linear map, so the logits are affine in the positions, as 7
# head passes tell. Images are 64x64.
COSTS = {
    **dict.fromkeys(
        ("gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam", "finercam", "shapleycam",
         "shapleycam-h", "shapleycam-e", "eigencam", "eigengradcam", "kpcacam", "randomcam"), (0, 0)
    ),
    "smoothgradcam++": (4, 0),
    "expected-gradcam": (16, 0),
    "fullgrad": (1, 0),
    "aumann-1": (0, 2),
    "aumann-3": (0, 4),
    "ablationcam": (0, 16),
    "scorecam": (16, 0),
    "liftcam": (0, 2),
    "reciprocam": (0, 7),
    "shapley": (0, 7),
    "rise-5": (5, 0),
    "occlusion": (226, 0),
}  # fmt: skip
NATIVE_CHEAP = {
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam", "cam", "eigencam",
    "eigengradcam", "kpcacam", "finercam", "shapleycam", "shapleycam-h", "shapleycam-e",
}  # fmt: skip
TRANSFORMER = {"attention", "rollout", "gradient-rollout", "legrad"}
CHEAP = NATIVE_CHEAP | TRANSFORMER - {"legrad"} | {"layercam-fusion", "refinecam"}
PERTURBATION = {"ablationcam", "scorecam", "reciprocam", "rise", "occlusion", "shapley", "drops-4", "drops-7"}


def took(out: Path) -> tuple[int, int]:
    """Passes and head passes that run.json counts, of the whole model."""
    runs = [json.loads(path.read_text()) for path in out.glob("*/*/run.json")]
    segments = runs[0]["segments"]
    return sum(one["passes"] for one in segments), sum(one["head_passes"] for one in segments)


class TestGroups:
    def test_members(self) -> None:
        groups = {name: set(entry.groups) for name, entry in METHODS.items()}
        assert {name for name, mine in groups.items() if "cheap" in mine} == CHEAP
        assert {name for name, mine in groups.items() if "perturbation" in mine} == PERTURBATION
        assert {name for name, mine in groups.items() if "transformer" in mine} == TRANSFORMER

    def test_all_is_all_but_perturbation(self) -> None:
        assert {one.name for one in find_methods(["all"])} == set(METHODS) - PERTURBATION
        both = {one.name for one in find_methods(["all", "perturbation"])}
        assert both == set(METHODS)
        assert {one.name for one in find_methods(["all", "rise-9"])} == set(METHODS) - PERTURBATION | {
            "rise-9"
        }

    @pytest.mark.parametrize(
        "name", sorted({*CHEAP, *PERTURBATION, "liftcam", "smoothgradcam++", "fullgrad"})
    )
    def test_each_says_what_it_uses_and_costs(self, name: str) -> None:
        entry = METHODS[name]
        assert entry.uses and entry.cost and entry.title


class TestRuns:
    def test_all_says_what_a_layer_cannot_have_and_has_the_rest(self, photos: Path, tmp_path: Path) -> None:
        lines = run(
            photos,
            tmp_path / "out",
            method=("all",),
            layer=("features.3", "conv"),
            metrics=("adcc",),
            limit=2,
        )
        said = [line for line in lines if line.endswith("; left out")]
        lacking = r"timm/camkit_tiny, layer features.3, conv: (\S+): the model has no softmax attention .*"
        named = [found[1] for line in said if (found := re.fullmatch(lacking, line))]
        assert set(named) == TRANSFORMER
        several, linear = sorted(line for line in said if not re.fullmatch(lacking, line))
        assert several.startswith(
            "timm/camkit_tiny, layer features.3, conv: aumann-fusion: it adds the maps of several"
        )
        assert linear.startswith("timm/camkit_tiny, layer features.3: cam: what follows the layer is not")
        rows = pd.read_csv(tmp_path / "out" / "summary.csv")
        made = {layer: set(rows.loc[rows["layer"] == layer, "method"]) for layer in ("features.3", "conv")}
        everything = set(METHODS) - PERTURBATION - TRANSFORMER - {"region", "aumann-fusion"}
        assert made == {"conv": everything, "features.3": everything - {"cam"}}

    def test_what_is_named_and_cannot_be_had_is_refused(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(CamkitError, match="^timm/camkit_tiny, layer features.3: cam: what follows"):
            run(photos, tmp_path / "out", method=("cam",), layer=("features.3",), metrics=("adcc",))
        config = RunConfig(**TINY | {"method": ("cam",), "layer": ("features.3",)})
        with pytest.raises(CamkitError, match="^timm/camkit_tiny, layer features.3: cam: what follows"):
            explain_images([photos], config, print)
        model = camkit.load_model("timm/camkit_tiny", weights="random", preprocess="native", device="cpu")
        image = photos / "photo_0.png"
        with pytest.raises(CamkitError, match="^method 'cam': what follows the layer is not linear"):
            camkit.explain(model, image, method="cam", layer="features.3")
        assert camkit.explain(model, image, method="cam", layer="conv").maps.shape == (1, 4, 4)

    def test_a_model_that_can_have_none_of_a_group_is_refused(self, photos: Path, tmp_path: Path) -> None:
        said = "^timm/camkit_tiny can have none of the methods transformer$"
        with pytest.raises(CamkitError, match=said):
            run(photos, tmp_path / "out", method=("transformer",))
        with pytest.raises(CamkitError, match=said):
            explain_images([photos], RunConfig(**TINY | {"method": ("transformer",)}), print)

    def test_explaining_photos_leaves_out_what_they_cannot_have(self, photos: Path) -> None:
        config = RunConfig(**TINY | {"method": ("cheap", "ceilings"), "layer": ("features.3",)})
        lines: list[str] = []
        rows, failures = explain_images([photos], config, lines.append)
        assert not failures
        assert set(rows[0].saliency) == CHEAP - TRANSFORMER - {"cam"} | {"drops-4", "drops-7"}
        assert any(line.startswith("region is left out") for line in lines)
        with pytest.raises(UsageError, match="method 'region'"):
            explain_images([photos], RunConfig(**TINY | {"method": ("region",)}), print)

    @pytest.mark.parametrize("name", COSTS)
    def test_a_dry_run_counts_what_the_run_takes(self, photos: Path, tmp_path: Path, name: str) -> None:
        """Two batches of three photos; average drop takes one masked pass per batch, the batch itself one."""
        options = {
            "method": (name,), "metrics": ("average_drop",), "batch_size": 3, "layer": ("features.3",),
        }  # fmt: skip
        config = RunConfig(**TINY | {"data": str(photos), "out": tmp_path / "out"} | options)
        estimate, _ = dry_run(config, print)
        run(photos, tmp_path / "out", **options)
        passes, heads = COSTS[name]
        assert took(tmp_path / "out") == (2 * (1 + passes + 1), 2 * heads)
        assert (estimate["passes"].item(), estimate["head_passes"].item()) == took(tmp_path / "out")

    def test_a_dry_run_says_what_is_left_out(self, photos: Path, tmp_path: Path) -> None:
        options = {"method": ("cheap",), "metrics": ("average_drop",), "layer": ("features.3",), "limit": 1}
        lines: list[str] = []
        dry_run(RunConfig(**TINY | {"data": str(photos), "out": tmp_path / "out"} | options), lines.append)
        assert any(line.startswith("timm/camkit_tiny, layer features.3: cam: what") for line in lines)

    def test_channels_is_an_option_that_decides_numbers(self, photos: Path, tmp_path: Path) -> None:
        options = {"method": ("scorecam",), "metrics": ("average_drop",), "batch_size": 6}
        run(photos, tmp_path / "out", channels=4, **options)
        assert took(tmp_path / "out") == (1 + 4 + 1, 0)
        with pytest.raises(UsageError, match="another channels: 4, now null"):
            run(photos, tmp_path / "out", **options)

    def test_what_sees_no_layer_is_made_once_for_all(self, photos: Path, tmp_path: Path) -> None:
        """Two layers, two utilities: the maps of a utility are made once, and scored once."""
        options = {"method": ("rise-5",), "metrics": ("average_drop",), "batch_size": 6}
        both = {"layer": ("features.3", "conv"), "utility": ("rest", "softmax")}
        run(photos, tmp_path / "both", **options, **both)
        passes = [
            json.loads(path.read_text())["segments"][0]["passes"]
            for path in (tmp_path / "both").glob("*/*/run.json")
        ]
        assert passes == [1 + 2 * (5 + 1)] * 4
        run(photos, tmp_path / "one", **options, layer=("conv",), utility=("softmax",))
        texts = [
            (tmp_path / folder / "timm__camkit_tiny" / cell / "rise-5.csv").read_text()
            for folder, cell in (
                ("both", "conv-softmax"),
                ("both", "features.3-softmax"),
                ("one", "conv-softmax"),
            )
        ]
        rows = [[row["average_drop"] for row in csv.DictReader(text.splitlines())] for text in texts]
        assert rows[0] == rows[1]
        assert [float(x) for x in rows[0]] == pytest.approx([float(x) for x in rows[2]], abs=2e-5)

    def test_the_rest_of_a_linear_head_takes_no_pass(self, photos: Path, tmp_path: Path) -> None:
        names = ("ablationcam", "reciprocam", "liftcam", "shapley", "cam")
        run(photos, tmp_path / "out", method=names, metrics=("average_drop",), batch_size=6)
        assert took(tmp_path / "out") == (1 + len(names), 0)
        assert max(TinyNet.passed) >= 6
