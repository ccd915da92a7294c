"""What `bench`, `explain` and `list` print and write; two commands in processes of their own."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from command_line import MODEL, TINY, call, wrong
from pictures import write_photo
from PIL import Image

from camkit.data import find_images
from camkit.entries import METHODS, UTILITIES

PAPER = (
    "gradcam", "gradcam++", "xgradcam", "layercam", "gradcam-e", "hirescam", "shapleycam", "shapleycam-h",
    "shapleycam-e", "randomcam",
)  # fmt: skip


@pytest.fixture(scope="module")
def result(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run through the command line, and its results folder."""
    out = tmp_path_factory.mktemp("cli")
    methods = ("--method", "shapleycam,gradcam", "--method", "flat,randomcam")
    result = call("bench", *TINY, "--data", photos, *methods, "-o", out, "--utility", "rest,logit")
    assert result.exit_code == 0, result.output
    return result, out


class TestBench:
    def test_the_table(self, result: tuple[Result, Path]) -> None:
        """In percent, arrows to the better side, the controls below a line."""
        lines = result[0].stdout.splitlines()
        assert {line for line in lines if "(6 images)" in line} == {
            "timm/camkit_tiny · conv · rest (6 images)",
            "timm/camkit_tiny · conv · logit (6 images)",
        }
        heading = lines[1].split("  ")
        for name in (
            "method",
            "AD ↓",
            "Coh ↑",
            "Com ↓",
            "ADCC ↑",
            "IC ↑",
            "ADD ↑",
            "Deletion ↓",
            "Insertion ↑",
        ):
            assert name in [cell.strip() for cell in heading]
        names = [line.split()[0] if line.strip("- ") else "line" for line in lines[3:8]]
        assert names == ["gradcam", "shapleycam", "line", "flat", "randomcam"]
        flat = next(line.split() for line in lines if line.startswith("flat"))
        assert "100.00" in flat  # its coherency

    def test_it_says_where_the_results_are(self, result: tuple[Result, Path]) -> None:
        assert f"{result[1] / 'summary.csv'}: 8 cells" in result[0].stdout

    def test_progress_goes_to_stderr(self, result: tuple[Result, Path]) -> None:
        assert "6/6" in result[0].stderr
        assert "img/s" in result[0].stderr or "s/img" in result[0].stderr
        assert "6/6" not in result[0].stdout

    def test_only_the_runs_own_cells_are_shown(self, result: tuple[Result, Path], photos: Path) -> None:
        again = call("bench", *TINY, "--data", photos, "-o", result[1], "--method", "gradcam")
        assert again.exit_code == 0
        assert "nothing to do" in again.stderr
        assert "shapleycam" not in again.stdout
        assert "logit" not in again.stdout
        assert ": 8 cells" in again.stdout

    def test_the_default_folder(self, photos: Path, tmp_path: Path) -> None:
        result = call("bench", *TINY, "--data", photos, "--limit", 1, "--metrics", "adcc")
        assert result.exit_code == 0
        assert (tmp_path / "results" / "local" / "summary.csv").exists()

    def test_without_data_the_sample_photos_are_taken_and_that_is_said(self) -> None:
        result = call("bench", *TINY, "--limit", 1, "--metrics", "adcc")
        assert result.exit_code == 0
        assert "a demonstration, not a benchmark" in result.stderr

    def test_a_broken_file_is_listed_and_the_run_goes_on(self, tmp_path: Path) -> None:
        for number in range(3):
            write_photo(tmp_path / "data" / f"photo {number}, “ü”.png", seed=number)
        (tmp_path / "data" / "bad.png").write_bytes(b"no image")
        cut = (tmp_path / "data" / "photo 0, “ü”.png").read_bytes()[:-700]
        (tmp_path / "data" / 'cut "off",\nhere.png').write_bytes(cut)
        result = call(
            "bench", *TINY, "--data", tmp_path / "data", "--metrics", "adcc", "-o", tmp_path / "out"
        )
        assert result.exit_code == 0, result.output
        assert "2 images could not be read" in result.stderr
        folder = tmp_path / "out" / "timm__camkit_tiny"
        with (folder / "errors.csv").open(newline="", encoding="utf-8") as file:
            errors = {row["image"]: row["reason"] for row in csv.DictReader(file)}
        assert errors.keys() == {"bad.png", 'cut "off",\nhere.png'}
        assert str(tmp_path) not in "".join(errors.values())
        with (folder / "conv-rest" / "shapleycam.csv").open(newline="", encoding="utf-8") as file:
            assert {row["image"] for row in csv.DictReader(file)} == {
                f"photo {number}, “ü”.png" for number in range(3)
            }


class TestLimit:
    def test_it_is_spread_out_over_classes(self, tmp_path: Path) -> None:
        for wnid in ("n01440764", "n01443537", "n02123045", "n02124075"):
            for number in range(5):
                write_photo(tmp_path / wnid / f"{number}.png", seed=number, size=(8, 8))
        orders = {seed: [item.id for item in find_images(str(tmp_path), seed).items] for seed in (0, 0, 1)}
        for order in orders.values():
            assert len(order) == 20
            for start in range(0, 20, 4):
                assert len({name.split("/")[0] for name in order[start : start + 4]}) == 4
        assert orders[0] == [item.id for item in find_images(str(tmp_path), 0).items]
        assert orders[0] != orders[1]


class TestExplain:
    def test_a_picture(self, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "pictures" / "two.png"
        arguments = (*MODEL, "--method", "gradcam,flat", "-o", out)
        result = call("explain", photos / "photo_0.png", photos / "photo_1.png", *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(out)
        with Image.open(out) as picture:
            assert picture.width > picture.height  # three columns, two rows

    def test_budget_and_absent_decide_the_maps(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn = []
        # A layer whose 64 positions mix further on.
        tiny = ("--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native")
        real = (*tiny, "--layer", "features.2")
        monkeypatch.setattr("camkit.report.figures.save_figure", lambda figure, path: None)
        monkeypatch.setattr(
            "camkit.report.figures.saliency_figure", lambda rows, *_, **__: drawn.append(rows[0].saliency)
        )

        def maps(*options: object) -> dict:
            words = (*real, "--method", "aumann-1,shapley", "--utility", "softmax", "-o", tmp_path / "a.png")
            assert call("explain", photos / "photo_0.png", *words, *options).exit_code == 0
            return drawn[-1]

        few, more, blurred = maps("--budget", 4), maps("--budget", 8), maps("--budget", 4, "--absent", "blur")
        assert (few["aumann-1"] == more["aumann-1"]).all()
        assert (few["shapley"] != more["shapley"]).any()
        assert (few["aumann-1"] != blurred["aumann-1"]).any()
        assert "--budget" in wrong(
            call("explain", photos / "photo_0.png", *MODEL, "-o", "a.png", "--budget", 3)
        )

    def test_a_plugin_that_fails_ends_it_with_1(self, photos: Path, tmp_path: Path) -> None:
        plugin, out = tmp_path / "fails.py", tmp_path / "out.png"
        plugin.write_text(
            "from camkit import method\n@method('fails')\ndef fails(trace):\n    return 1 / 0\n"
        )
        arguments = (photos / "photo_0.png", *MODEL, "--plugin", plugin, "-o", out)
        result = call("explain", *arguments, "--method", "fails")
        assert result.exit_code == 1
        assert not out.exists()
        result = call("explain", *arguments, "--method", "gradcam,fails")
        assert result.exit_code == 1
        assert "error: plugin fails.py: method 'fails': ZeroDivisionError" in result.output
        assert "(photo_0.png)" in result.output
        assert out.exists()  # with all that did not fail

    def test_wrong_usage(self, photos: Path, tmp_path: Path) -> None:
        arguments = (*MODEL, "-o", tmp_path / "out.png")
        assert "nowhere.jpg" in wrong(call("explain", "nowhere.jpg", *arguments))
        assert "gradcan" in wrong(call("explain", photos / "photo_0.png", *arguments, "--method", "gradcan"))
        (tmp_path / "bad.jpg").write_bytes(b"no image")
        result = call("explain", tmp_path / "bad.jpg", *arguments)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert not (tmp_path / "out.png").exists()


class TestList:
    def listed(self, what: str) -> dict[str, dict[str, str]]:
        result = call("list", what, "--format", "csv")
        assert result.exit_code == 0
        return {row["name"]: row for row in csv.DictReader(io.StringIO(result.stdout))}

    def test_models(self) -> None:
        models = self.listed("models")
        assert len(models) >= 15
        assert models["swin_t"]["conv"] == "layers[-1].blocks[-1].norm1"
        assert models["resnet50"]["top1_paper"] == "76.13"

    def test_methods(self) -> None:
        methods = self.listed("methods")
        assert set(methods) >= set(METHODS)
        assert tuple(name for name, row in methods.items() if "paper" in row["groups"].split(",")) == PAPER
        for name in [name for name, entry in METHODS.items() if not entry.origin]:  # not other tests' plugins
            assert methods[name]["map"]
            assert methods[name]["source"]
            assert "partial(" not in methods[name]["map"]

    def test_metrics_and_utilities(self) -> None:
        metrics = call("list", "metrics").stdout
        assert all(name in metrics for name in ("average_drop", "coherency", "deletion_auc", "insertion_auc"))
        assert list(self.listed("utilities")) == list(UTILITIES)

    @pytest.mark.parametrize("what", ["models", "methods", "metrics", "utilities"])
    def test_formats(self, what: str) -> None:
        rows = json.loads(call("list", what, "--format", "json").stdout)
        table, *_ = call("list", what).stdout.split("\n\n")  # of methods, groups follow
        assert len(table.splitlines()) == len(rows) + 2
        assert all(row["name"] in table for row in rows)

    def test_methods_fit_a_terminal_with_their_names_needs_costs_and_groups(self) -> None:
        listed = call("list", "methods").stdout
        table, costs, groups = listed.split("\n\n")
        assert max(map(len, listed.splitlines())) <= 100
        titles, *_ = table.splitlines()
        assert titles.split() == ["name", "title", "uses", "cost"]
        (row,) = [line for line in table.splitlines() if line.startswith("smoothgradcam++ ")]
        assert re.split(r" {2,}", row.strip()) == [
            "smoothgradcam++", "Smooth GradCAM++", "activation, gradient, passes", "4 passes, 4 grads",
        ]  # fmt: skip
        assert "C channels, P positions" in costs
        members = dict(line.split(": ", 1) for line in groups.replace("\n  ", " ").splitlines())
        assert members["perturbation"] == (
            "shapley, ablationcam, scorecam, reciprocam, rise, occlusion, drops-4, drops-7"
        )
        assert members["all"] == "all but perturbation"

    def test_wrong_usage(self) -> None:
        assert "'model'" in wrong(call("list", "model"))


@pytest.mark.slow
class TestProcess:
    """The real thing, in a process of its own."""

    def run(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess:
        environment = {**os.environ, "COLUMNS": "200", "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", "camkit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, **settings)

    def test_a_run(self, photos: Path, tmp_path: Path) -> None:
        arguments = [
            *("bench", "--model", "timm/test_resnet", "--weights", "random", "--preprocess", "native"),
            *("--data", str(photos), "--limit", "2", "--steps", "2", "--device", "cpu", "--workers", "1"),
        ]
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "shapleycam" in done.stdout
        assert (
            tmp_path / "results" / "local" / "timm__test_resnet" / "conv-rest" / "shapleycam.csv"
        ).exists()

    def test_exit_codes(self) -> None:
        assert self.run("--version").returncode == 0
        wrong_usage = self.run("report", "results", "-o", "table.xyz")  # found before torch is imported
        assert wrong_usage.returncode == 2
        assert wrong_usage.stderr.startswith("error: -o table.xyz: unknown ending; known are .md")
        assert wrong_usage.stdout == ""
