"""Runs of several layers: `--layer all`, `layer3+layer4`, methods that need the stages or the attention."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import build  # registers timm/camkit_tiny_vit
from tiny import TINY, TinyNet, noise, run

import camkit
from camkit.config import RunConfig
from camkit.errors import CamkitError, UsageError
from camkit.methods.fusion import fuse
from camkit.report.analysis import Analysis
from camkit.report.comparisons import compare_all
from camkit.report.study import load_study
from camkit.runs.dryrun import dry_run
from camkit.runs.rescore import rescore
from camkit.runs.verify import faults, verify

STAGES = ("features.2", "features.5")  # of the tiny network: two resolutions
FUSED = "+".join(STAGES)
VIT = {"model": ("timm/camkit_tiny_vit",)}
LINES: list[str] = []


def passes(out: Path) -> set[int]:
    """Of the last start, as each folder has them."""
    return {json.loads(path.read_text())["segments"][-1]["passes"] for path in out.glob("*/*/run.json")}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def folders(out: Path) -> list[str]:
    return sorted(path.parent.name for path in out.glob("*/*/run.json"))


def verified(out: Path, photos: Path) -> pd.DataFrame:
    """What verify compared, all of it the same."""
    config = RunConfig(model=(), data=str(photos), device="cpu")
    checked = verify(out, config, say=lambda line: None)
    assert faults(checked) == []
    return checked


def summary(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "summary.csv").set_index(["layer", "method"])


class TestAll:
    @pytest.fixture(scope="class")
    @staticmethod
    def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("all")
        LINES[:] = run(photos, out, layer=("all",), method=("gradcam", "layercam"), metrics=("average_drop",))
        return out

    def test_a_folder_for_each_end_of_a_stage_and_a_line(self, out: Path) -> None:
        assert folders(out) == [f"{stage}-rest" for stage in STAGES]
        assert any(
            f"layer all stands for the ends of its stages, {', '.join(STAGES)}" in line for line in LINES
        )
        for stage in STAGES:
            protocol = json.loads((next(out.glob(f"*/{stage}-rest")) / "run.json").read_text())["protocol"]
            assert (protocol["layer"], protocol["module"]) == (stage, stage)

    def test_one_pass_explains_all_stages(self, out: Path) -> None:
        """Six images of a batch: that pass, and one of the masked image for each of the four cells."""
        assert passes(out) == {1 + 4}

    def test_each_is_as_if_it_were_alone(self, out: Path, photos: Path, tmp_path: Path) -> None:
        for stage in STAGES:
            run(photos, tmp_path, layer=(stage,), method=("gradcam", "layercam"), metrics=("average_drop",))
        for path in sorted(out.glob("*/*/*.csv")):
            other = tmp_path / path.relative_to(out)
            for ours, alone in zip(rows(path), rows(other), strict=True):
                assert ours.keys() == alone.keys()
                filled = [column for column in list(ours)[3:] if alone[column]]
                assert filled
                for column in filled:
                    assert float(ours[column]) == pytest.approx(float(alone[column]), abs=1e-5)

    def test_resuming_finds_nothing_to_do(self, out: Path, photos: Path) -> None:
        lines = run(photos, out, layer=("all",), method=("gradcam", "layercam"), metrics=("average_drop",))
        assert any("nothing to do" in line for line in lines)

    def test_a_layer_by_its_name_goes_on_where_all_stopped(self, out: Path, photos: Path) -> None:
        options = {"method": ("gradcam", "layercam"), "metrics": ("average_drop",)}
        assert any("nothing to do" in line for line in run(photos, out, layer=(STAGES[0],), **options))

    def test_python_has_the_rows_of_every_layer(self, out: Path, photos: Path) -> None:
        options = TINY | {"data": str(photos), "out": out, "method": "gradcam", "metrics": "average_drop"}
        frame = camkit.bench(layer="all", **options)
        assert frame["layer"].tolist() == list(STAGES)
        assert set(frame["method"]) == {"gradcam"}

    def test_verify_and_reports_read_it(self, out: Path, photos: Path) -> None:
        checked = verified(out, photos)
        assert {(row.layer, row.method) for row in checked.itertuples()} >= {
            (stage, name) for stage in STAGES for name in ("gradcam", "layercam")
        }
        analyses = [Analysis(block) for block in load_study([out])]
        assert [one.block.layer for one in analyses] == list(STAGES)
        assert len(compare_all(analyses, "gradcam")) == 2


class TestSeveral:
    OPTIONS = {"layer": (FUSED,), "method": ("gradcam", "flat"), "metrics": ("adcc", "deletion")}

    @pytest.fixture(scope="class")
    @staticmethod
    def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("several")
        run(photos, out, save_maps=True, **TestSeveral.OPTIONS)
        return out

    def test_its_name_is_that_of_the_folder_and_the_row(self, out: Path) -> None:
        assert folders(out) == [f"{FUSED}-rest"]
        assert summary(out).index.tolist() == [(FUSED, "gradcam"), (FUSED, "flat")]
        protocol = json.loads(next(out.glob("*/*/run.json")).read_text())["protocol"]
        assert (protocol["layer"], protocol["module"]) == (FUSED, FUSED)
        assert not list(out.rglob("*.npz"))  # what is fused has no signed map

    def test_the_complexity_is_that_of_the_fused_maps(self, out: Path, photos: Path, tmp_path: Path) -> None:
        """From the signed maps of two runs of one layer each."""
        run(photos, tmp_path, layer=STAGES, method=("gradcam",), metrics=("shape",), save_maps=True)
        files = [np.load(next(tmp_path.glob(f"*/{stage}-rest/gradcam.npz"))) for stage in STAGES]
        for row in rows(next(out.glob("*/*/gradcam.csv"))):
            places = [file["images"].tolist().index(row["image"]) for file in files]
            maps = [torch.as_tensor(file["maps"][[n]]) for file, n in zip(files, places, strict=True)]
            expected = fuse(maps, (64, 64)).mean().item()
            assert float(row["complexity"]) == pytest.approx(expected, abs=1e-5)

    def test_resume_and_verify(self, out: Path, photos: Path) -> None:
        assert any("nothing to do" in line for line in run(photos, out, save_maps=True, **self.OPTIONS))
        assert "gradcam" in set(verified(out, photos)["method"])

    def test_dry_run_counts_what_a_run_takes(self, photos: Path, tmp_path: Path) -> None:
        options = self.OPTIONS | {"layer": ("all", FUSED), "method": ("gradcam", "layercam-fusion")}
        config = RunConfig(**TINY | {"data": str(photos), "out": tmp_path} | options)
        table, _ = dry_run(config, say=lambda line: None)
        assert table["cells"].tolist() == [6]
        run(photos, tmp_path, **options)
        assert passes(tmp_path) == {table["passes"].item()}

    @pytest.mark.parametrize("metric", ["shapley", "axioms", "null", "class_sensitivity"])
    def test_scores_of_a_layer_are_refused_before_anything_runs(
        self, photos: Path, tmp_path: Path, metric: str
    ) -> None:
        with pytest.raises(UsageError, match=f"--metrics {metric}: .*{STAGES[0]}.*several layers"):
            run(photos, tmp_path, layer=(FUSED,), metrics=(metric,))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("layer", ["features.2+", "+features.2", "features.2++features.5"])
    def test_an_empty_name_is_refused(self, photos: Path, tmp_path: Path, layer: str) -> None:
        with pytest.raises(UsageError, match="a layer has no name"):
            run(photos, tmp_path, layer=(layer,))

    def test_a_layer_that_is_not_there_is_named(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown layer 'nothing'"):
            run(photos, tmp_path, layer=("features.2+nothing",))

    def test_of_two_names_of_one_module_it_is_that_module(self, photos: Path, tmp_path: Path) -> None:
        """conv and prepool both stand for the last feature layer."""
        run(photos, tmp_path, layer=("conv+prepool", "conv"), method=("gradcam",), metrics=("adcc",))
        both = summary(tmp_path)["adcc"]
        assert both["conv+prepool", "gradcam"] == both["conv", "gradcam"]


class TestTransformers:
    def test_one_pass_has_the_attention_and_every_layer(self, photos: Path, tmp_path: Path) -> None:
        """The pass, and one of the masked image per cell: maps of no single layer are scored once."""
        methods = ("gradcam", "attention", "rollout", "gradient-rollout", "layercam-fusion")
        run(photos, tmp_path, **VIT, layer=("all",), method=methods, metrics=("average_drop",))
        assert folders(tmp_path) == ["blocks.0-rest", "blocks.1-rest", "blocks.2.norm1-rest"]
        assert passes(tmp_path) == {1 + 3 + 4}
        values = summary(tmp_path)["average_drop"]
        for method in methods[1:]:
            assert values.xs(method, level="method").nunique() == 1
        assert values.xs("gradcam", level="method").nunique() == 3

    def test_scores_of_the_layer_are_made_at_each(self, photos: Path, tmp_path: Path) -> None:
        options = VIT | {"method": ("gradient-rollout",), "metrics": ("null",)}
        run(photos, tmp_path / "all", layer=("blocks.0", "blocks.1"), **options)
        run(photos, tmp_path / "one", layer=("blocks.1",), **options)
        both, alone = summary(tmp_path / "all")["null_share"], summary(tmp_path / "one")["null_share"]
        assert both["blocks.1", "gradient-rollout"] == pytest.approx(alone.item(), abs=1e-5)
        assert both["blocks.0", "gradient-rollout"] != both["blocks.1", "gradient-rollout"]

    def test_below_float32_a_method_has_a_pass_of_its_own_kind(self, photos: Path, tmp_path: Path) -> None:
        """gradcam's numbers do not depend on whether rollout is in the run, which is computed between two."""
        options = VIT | {"layer": ("blocks.1",), "metrics": ("average_drop",), "dtype": "bfloat16"}
        options["utility"] = ("rest", "logit")
        run(photos, tmp_path / "alone", method=("gradcam",), **options)
        run(photos, tmp_path / "both", method=("gradcam", "rollout", "refinecam"), **options)
        for utility in ("rest", "logit"):
            path = f"timm__camkit_tiny_vit/blocks.1-{utility}/gradcam.csv"
            assert (tmp_path / "alone" / path).read_text() == (tmp_path / "both" / path).read_text()

    def test_signed_maps_are_saved_and_scored_again(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path, **VIT, layer=("blocks.1",), method=("legrad", "refinecam"), metrics=("adcc",),
            save_maps=True)  # fmt: skip
        assert [path.name for path in tmp_path.rglob("*.npz")] == ["legrad.npz"]
        again = RunConfig(model=(), out=tmp_path, metrics=("deletion",), data=str(photos), device="cpu")
        frame = rescore(again, lambda line: None)
        values = frame.set_index("method")["deletion_auc"]
        assert 0 < values["legrad"] < 1
        assert np.isnan(values["refinecam"])

    def test_all_leaves_them_out_on_a_cnn_with_a_line(self, photos: Path, tmp_path: Path) -> None:
        lines = run(photos, tmp_path, method=("transformer", "gradcam"), metrics=("average_drop",))
        assert summary(tmp_path).index.get_level_values("method").tolist() == ["gradcam"]
        said = [line for line in lines if "left out" in line]
        assert len(said) == 4
        assert "layer conv: rollout: the model has no softmax attention between tokens; left out" in said[1]

    def test_a_method_that_some_layers_cannot_have_is_left_out_there(
        self, photos: Path, tmp_path: Path
    ) -> None:
        """Named, too; one line for all layers with the same reason."""
        lines = run(photos, tmp_path, layer=("all", "conv"), method=("cam",), metrics=("average_drop",))
        assert summary(tmp_path).index.tolist() == [("conv", "cam"), ("features.5", "cam")]
        assert sum("left out" in line for line in lines) == 1
        assert any("layer features.2: cam: what follows" in line for line in lines)

    def test_named_on_a_cnn_it_is_refused(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(CamkitError, match="rollout: the model has no softmax attention"):
            run(photos, tmp_path, method=("rollout",))


def test_python_explains_a_module_at_several_layers_and_by_its_attention() -> None:
    model, images = build("vit"), noise(2, 3, 32, 48)
    fused = camkit.explain(model, images, method="gradcam", layer="blocks.0+blocks.1")
    assert fused.maps is None
    assert fused.saliency.shape == (2, 32, 48)
    rollout = camkit.explain(model, images, method="rollout", layer="blocks.1")
    assert rollout.maps is not None
    assert rollout.maps.shape == (2, 4, 6)
    assert camkit.explain(model, images, method="refinecam", layer="blocks.1").saliency.amax() > 0.9
    with pytest.raises(CamkitError, match="no softmax attention"):
        camkit.explain(TinyNet(5), noise(1, 3, 64, 64), method="legrad", layer="features")
