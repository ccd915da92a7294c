"""`camkit list layers`, and layers on the command line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import families  # noqa: F401  (registers timm/camkit_tiny_vit)
import pytest
from click.testing import CliRunner, Result
from tiny import TINY

from camkit.cli import main

MODEL = ("--weights", "random", "--preprocess", "native")
RUN = ("--device", "cpu", "--steps", "3", "--workers", "0", "--metrics", "average_drop")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def listed(model: str, *options: str) -> dict[str, dict[str, str]]:
    result = call("list", "layers", model, *MODEL, "--format", "csv", *options)
    assert result.exit_code == 0, result.output
    return {row["layer"]: row for row in csv.DictReader(io.StringIO(result.stdout))}


class TestListLayers:
    def test_of_a_transformer_with_images_that_are_not_square(self) -> None:
        rows = listed("timm/camkit_tiny_vit")
        assert list(rows["blocks.0.attn.qkv"].values()) == ["blocks.0.attn.qkv", "Linear", "72", "4", "6", ""]
        assert {(row["height"], row["width"]) for row in rows.values()} == {("4", "6")}
        named = {name: row["names"] for name, row in rows.items() if row["names"]}
        assert named == {
            "blocks.0": "stage 1", "blocks.1": "stage 2", "blocks.2.norm1": "conv, prepool, stage 3",
        }  # fmt: skip
        assert not {"Dropout", "Identity"} & {row["kind"] for row in rows.values()}

    def test_of_a_model_of_the_paper(self) -> None:
        """conv and prepool as docs/definitions.md has them; 224x224 images."""
        result = call("list", "layers", "resnet18", "--weights", "random", "--format", "json")
        rows = {row["layer"]: row for row in json.loads(result.stdout)}
        assert rows["layer4.1.conv2"] == {
            "layer": "layer4.1.conv2", "kind": "Conv2d", "channels": 512, "height": 7, "width": 7,
            "names": "conv",
        }  # fmt: skip
        stages = ("relu", "layer1", "layer2", "layer3", "layer4")
        named = {name: row["names"] for name, row in rows.items() if row["names"]}
        assert named == {
            **{stage: f"stage {n}" for n, stage in enumerate(stages, start=1)},
            "layer4.1.conv2": "conv",
            "layer4.1": "prepool",
        }
        assert list(rows)[0] == "conv1"

    def test_of_another_size(self) -> None:
        result = call(
            "list", "layers", "resnet18", "--weights", "random", "--size", "96x160", "--format", "csv"
        )
        rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(result.stdout))}
        assert [rows["layer1"][name] for name in ("channels", "height", "width")] == ["64", "24", "40"]
        assert [rows["layer4"][name] for name in ("channels", "height", "width")] == ["512", "3", "5"]

    def test_the_table(self) -> None:
        result = call("list", "layers", TINY["model"][0], *MODEL)
        assert result.exit_code == 0
        first, rule, *rows = result.stdout.splitlines()
        assert first.split() == ["layer", "kind", "channels", "height", "width", "names"]
        assert set(rule) == {"-", " "}
        assert rows[-1].split() == ["features", "Sequential", "16", "4", "4", "conv,", "prepool"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("layers",), "name a model"),
            (("models", "resnet18"), "camkit list models takes no model"),
            (("layers", "resnet81"), "unknown model 'resnet81'. Did you mean 'resnet18'?"),
            (("layers", "timm/no_such"), "timm has none of that name"),
            (("layers", "timm/test_vit3.r160_in1k", "--weights", "random"), "cannot take 224x224"),
        ],
    )
    def test_errors(self, arguments: tuple[str, ...], said: str) -> None:
        result = call("list", *arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert said in result.stderr


def test_all_and_several_in_a_run_and_in_its_reports(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = (
        "bench", "--model", "timm/camkit_tiny_vit", *MODEL, *RUN, "--data", photos, "-o", out, "--layer",
        "all,blocks.0+blocks.1", "--method", "all",
    )  # fmt: skip
    result = call(*run)
    assert result.exit_code == 0, result.output
    names = ["blocks.0", "blocks.0+blocks.1", "blocks.1", "blocks.2.norm1"]
    folders = {path.name for path in (out / "timm__camkit_tiny_vit").iterdir() if path.is_dir()}
    assert folders == {f"{name}-rest" for name in names}
    for name in names:
        assert f"timm/camkit_tiny_vit · {name} · rest" in result.stdout
    lacking = [line for line in result.stderr.splitlines() if line.endswith("left out") and ": cam: " in line]
    assert lacking == [
        f"timm/camkit_tiny_vit, layer {', '.join((names[0], names[2], names[3], names[1]))}: cam: the logits "
        "depend on more than the layer's output (a skip connection, a class token); left out"
    ]
    assert call(*run).exit_code == 0
    report = call("report", out)
    assert "Which layer? timm/camkit_tiny_vit · rest (6 images)" in report.stdout
    assert call("compare", out, "--baseline", "gradcam").exit_code == 0
    assert call("verify", out, "--data", photos, "--device", "cpu").exit_code == 0


def test_explain_draws_a_map_of_each_stage(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list = []
    monkeypatch.setattr(
        "camkit.report.figures.saliency_figure", lambda rows, *_, **__: drawn.extend(rows) or _figure()
    )
    photo = next(photos.glob("*.png"))
    result = call(
        "explain", photo, "--model", "timm/camkit_tiny_vit", *MODEL, "--method", "gradcam,layercam",
        "--layer", "all", "--device", "cpu", "-o", tmp_path / "picture.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert list(drawn[0].saliency) == [
        f"{title}, {layer}" for layer in ("blocks.0", "blocks.1", "blocks.2.norm1")
        for title in ("GradCAM", "LayerCAM")
    ]  # fmt: skip


def _figure() -> object:
    from matplotlib.figure import Figure

    return Figure()


def test_methods_of_attention_on_a_cnn(photos: Path, tmp_path: Path) -> None:
    """In a group they are left out with a line; by name they are refused."""
    run = ("bench", "--model", TINY["model"][0], *MODEL, *RUN, "--data", photos, "-o", tmp_path)
    result = call(*run, "--method", "cheap")
    assert result.exit_code == 0, result.output
    assert "rollout: the model has no softmax attention between tokens; left out" in result.stderr
    named = call(*run, "--method", "legrad")
    assert named.exit_code == 1
    assert "legrad: the model has no softmax attention between tokens" in named.stderr
