"""Plugins: what they register is used like anything else, and what they do wrong costs nothing else."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import write_photo

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit import plugins, registry
from camkit.cli import main
from camkit.errors import CamkitError, UsageError

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _registries_as_they_were():
    kept = [(one, dict(one._entries)) for one in (registry.METHODS, registry.METRICS, registry.MODELS)]
    yield
    for one, entries in kept:
        one._entries = entries


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The plugin files of docs/extend.md, as they are printed there."""
    written = []
    for text in blocks("python"):
        name = re.match(r"# (\S+\.py)\n", text).group(1)
        written.append(tmp_path / name)
        written[-1].write_text(text, encoding="utf-8")
    return written


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.output


def test_every_plugin_of_the_docs_works_as_printed(files: list[Path], tmp_path: Path, photos: Path) -> None:
    assert [file.name for file in files] == ["mymethod.py", "occlusion.py", "mymetric.py", "mymodel.py"]
    loaded = [word for file in files for word in ("--plugin", file)]
    for number, command in enumerate(blocks("console")):
        words = command.split()
        assert words[:2] == ["camkit", "bench"]
        assert Path(words[-1]).name in {file.name for file in files}
        out = tmp_path / f"out{number}"
        code, output = run(*words[1:-2], *loaded, "--data", photos, "--limit", 2, "--steps", 4, "-o", out)
        assert code == 0, output
        summary = pd.read_csv(out / "summary.csv")
        assert summary.select_dtypes("number").notna().any().any()
        assert set(summary["model"]) == {"tiny"}
    code, output = run(
        "bench", "--model", "tiny", "--method", "channel-ablation,gradcam", "--metrics", "keep-half", *loaded,
        "--data", photos, "--limit", 2, "--layer", "prepool", "-o", tmp_path / "more",
    )  # fmt: skip
    assert code == 0, output
    summary = pd.read_csv(tmp_path / "more" / "summary.csv").set_index("method")
    assert summary["kept"].between(0, 5).all()


def test_channel_ablation_of_a_linear_head_is_gradcam(files: list[Path], photos: Path) -> None:
    """tiny is linear after the layer: a channel's drop is its weight times the sum of its A."""
    plugins.load_plugins(files)
    from camkit import explain, load_model

    model = load_model("tiny")
    settings = {"layer": "prepool", "utility": "logit"}
    photo = photos / "photo_0.png"
    found = explain(model, photo, method="channel-ablation", **settings)
    gradient = explain(model, photo, method="gradcam", **settings)
    assert found.maps.shape == gradient.maps.shape == (1, 7, 7)
    assert found.target == gradient.target


def test_lists_show_what_a_plugin_adds(files: list[Path]) -> None:
    code, output = run("list", "methods", "--plugin", files[0])
    assert code == 0
    assert re.search(r"^mymethod .* mymethod\.py$", output, re.MULTILINE)
    assert "aumann-N" in output
    assert "captum:NAME" in output
    assert "keep-half" in run("list", "metrics", "--plugin", files[2])[1]
    assert "tiny" in run("list", "models", "--plugin", files[3])[1]


def test_a_plugin_may_be_loaded_twice_but_takes_no_names(files: list[Path], tmp_path: Path) -> None:
    plugins.load_plugins([files[0], files[0]])
    thief = tmp_path / "thief.py"
    thief.write_text("from camkit import method\n@method('gradcam')\ndef gradcam(trace):\n    pass\n")
    with pytest.raises(CamkitError, match=r"plugin thief\.py, line 2: ValueError: method 'gradcam' exists"):
        plugins.load_plugins([thief])
    assert registry.METHODS["gradcam"].origin == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError: No module named"),
        ("x = 1\ndef f(:\n", "line 2: SyntaxError"),
        ("\n\n1 / 0\n", "line 3: ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(CamkitError, match=rf"plugin broken\.py, {message}"):
        plugins.load_plugins([file])
    with pytest.raises(UsageError, match="no such file"):
        plugins.load_plugins([tmp_path / "absent.py"])


WRONG = """
import torch
from camkit import method, metric

FINE = False

@method("wrong-shape")
def wrong_shape(trace):
    return trace.activation if not FINE else trace.activation.sum(dim=1)

@method("not-finite")
def not_finite(trace):
    maps = trace.activation.sum(dim=1)
    maps[1] = torch.nan
    return maps

@method("raises")
def raises(trace):
    if FINE:
        return trace.activation.sum(dim=1)
    raise KeyError("no such thing")

@metric("bad", directions={"bad": "higher"})
def bad(subject, saliency, explain):
    return {"good": subject.probability}
"""


def test_mistakes_cost_the_plugins_rows_and_nothing_else(
    files: list[Path], tmp_path: Path, photos: Path
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    out = tmp_path / "out"
    words = [
        "bench", "--model", "tiny", "--method", "gradcam,wrong-shape,not-finite,raises,layercam",
        "--metrics", "adcc,bad", "--layer", "prepool", "--limit", 3, "--batch-size", 3, "--data", photos,
        "--plugin", files[3], "--plugin", wrong, "-o", out,
    ]  # fmt: skip
    code, output = run(*words)
    assert code == 1
    assert "error: plugin wrong.py: metric 'bad': gives 'good', expected 'bad' (image photo_" in output
    assert "more; all in failures.csv" in output
    summary = pd.read_csv(out / "summary.csv").set_index("method")
    assert set(summary.index) == {"gradcam", "layercam", "not-finite"}
    assert (summary["images"] == 3).all()
    assert summary.loc["not-finite", "degenerate"] == 1
    assert summary["adcc"].notna().all()
    with (out / "tiny" / "failures.csv").open() as file:
        rows = [(row["method"], row["image"], row["reason"]) for row in csv.DictReader(file)]
    shape = "plugin wrong.py: method 'wrong-shape': gives (3, 16, 7, 7), expected (3, 7, 7)"
    assert len([row for row in rows if row[0] == "wrong-shape" and row[2] == shape]) == 3
    assert len([row for row in rows if row[2].endswith("method 'raises': KeyError: 'no such thing'")]) == 3
    assert len([row for row in rows if row[0] == "not-finite" and row[2].endswith("not finite")]) == 1

    # Mended, the same command computes what is missing, and the file keeps what still holds.
    wrong.write_text(WRONG.replace("FINE = False", "FINE = True").replace('"good"', '"bad"'))
    code, output = run(*words)
    assert code == 1  # the values of not-finite are what they were
    assert "error: plugin wrong.py: method 'not-finite': gives values that are not finite (image " in output
    assert "more; all in" not in output
    assert set(pd.read_csv(out / "summary.csv")["method"]) == set(words[4].split(","))
    left = pd.read_csv(out / "tiny" / "failures.csv")
    assert left["method"].tolist() == ["not-finite"]


def test_entry_points_are_loaded_and_named_when_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value, dist = "mine", "mypackage.mine", None

        def load(self) -> None:
            raise ImportError("half installed")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()] * (group == "camkit.metrics"))
    plugins.load_entry_points.cache_clear()
    with pytest.raises(CamkitError, match=r"plugin 'mine' of the package mypackage\.mine: ImportError: half"):
        plugins.load_plugins()
    loaded = []
    monkeypatch.setattr(Point, "load", lambda self: loaded.append(self.name))
    plugins.load_plugins()
    assert loaded == ["mine"]
    plugins.load_entry_points.cache_clear()


def test_scores_from_saved_maps_are_those_of_one_run(files: list[Path], tmp_path: Path, photos: Path) -> None:
    words = [
        "--model", "tiny", "--method", "gradcam,shapleycam", "--layer", "prepool", "--steps", 8,
        "--data", photos, "--plugin", files[3], "--batch-size", 4,
    ]  # fmt: skip
    assert run("bench", *words, "--metrics", "adcc,deletion,shapley", "-o", tmp_path / "one")[0] == 0
    two = tmp_path / "two"
    assert run("bench", *words, "--metrics", "adcc", "--save-maps", "-o", two)[0] == 0
    again = ("--data", photos, "--plugin", files[3], "--batch-size", 4)
    code, output = run("score", two, "--metrics", "deletion,shapley", *again)
    assert code == 0, output
    one, scored = (pd.read_csv(out / "summary.csv") for out in (tmp_path / "one", two))
    assert scored["deletion_auc"].notna().all()
    pd.testing.assert_frame_equal(one, scored[one.columns])


def test_score_says_what_saved_maps_cannot_give(files: list[Path], tmp_path: Path, photos: Path) -> None:
    words = ["--model", "tiny", "--data", photos, "--limit", 2, "--plugin", files[3], "-o", tmp_path / "a"]
    assert run("bench", *words, "--metrics", "deletion", "--steps", 4, "--save-maps")[0] == 0
    again = ("--data", photos, "--plugin", files[3])
    code, output = run("score", tmp_path / "a", "--metrics", "adcc", *again)
    assert code == 2
    assert "only maps of the images themselves are saved" in output
    write_photo(tmp_path / "other" / "x.png", seed=9)
    elsewhere = ("--data", tmp_path / "other", *again[2:])
    code, output = run("score", tmp_path / "a", "--metrics", "insertion", *elsewhere)
    assert code == 2
    words[-1] = tmp_path / "b"
    assert run("bench", *words, "--metrics", "deletion", "--steps", 4)[0] == 0
    code, output = run("score", tmp_path / "b", "--metrics", "insertion", *again)
    assert code == 2
    assert "no saved maps" in output


def test_import_brings_no_torch() -> None:
    code = "import sys, camkit; from camkit import method, metric, model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
