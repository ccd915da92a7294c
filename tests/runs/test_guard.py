"""What plugins may not do: what they do wrong costs their own rows and nothing else."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import camkit_tiny  # noqa: F401  (registers it)

from camkit import plugins
from camkit.cli import main
from camkit.entries import METHODS, Method
from camkit.report.analysis import Analysis
from camkit.report.audit import audit
from camkit.report.study import load_study

Files = dict[str, Path]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.output


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

@metric("bad", columns={"bad": "higher"})
def bad(subject):
    return {"good": subject.probability}
"""


def test_mistakes_cost_the_plugins_rows_and_nothing_else(
    plugin_files: Files, tmp_path: Path, photos: Path
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    out = tmp_path / "out"
    words = [
        "bench", "--model", "tiny", "--method", "gradcam,wrong-shape,not-finite,raises,layercam",
        "--metrics", "adcc,bad", "--layer", "prepool", "--limit", 3, "--batch-size", 3, "--data", photos,
        "--plugin", plugin_files["mymodel.py"], "--plugin", wrong, "-o", out,
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
        failures = list(csv.DictReader(file))
    rows = [(row["method"], row["image"], row["reason"]) for row in failures]
    assert {row["scored"] for row in failures if row["method"] == "not-finite"} == {"yes", ""}
    assert {row["scored"] for row in failures if row["method"] != "not-finite"} == {""}
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

@metric("declared", columns={"agrees": "higher"}, flags={"odd": "odd images"}, curves=("own_curve",))
def declared(subject):
    curve = torch.stack([subject.probability, subject.probability], dim=1)
    return {"agrees": subject.probability > 0.5, "odd": subject.probability > 0, "own_curve": curve.double()}

@metric("extra-number", columns={"one": "higher"})
def extra_number(subject):
    return {"one": subject.probability, "two": 0.5}

@metric("extra-flag", columns={"three": "higher"})
def extra_flag(subject):
    return {"three": subject.probability, "four": subject.probability > 0}

@metric("extra-column", columns={"five": "higher"})
def extra_column(subject):
    return {"five": subject.probability, "six": subject.probability}

@metric("short-flag", columns={"eight": "higher"}, flags={"nine": "odd images"})
def short_flag(subject):
    return {"eight": subject.probability, "nine": subject.probability[:1] > 0}

@metric("no-bool", columns={"ten": "higher"}, flags={"eleven": "odd images"})
def no_bool(subject):
    return {"ten": subject.probability, "eleven": subject.probability}

@metric("no-curve", columns={"twelve": "higher"}, curves=("thirteen_curve",))
def no_curve(subject):
    return {"twelve": subject.probability, "thirteen_curve": subject.probability}

@metric("no-flag", columns={"fourteen": "higher"}, flags={"fifteen": "odd images"})
def no_flag(subject):
    return {"fourteen": subject.probability}

@metric("no-dict", columns={"seven": "higher"})
def no_dict(subject):
    return subject.probability

@method("edits")
def edits(trace):
    # numpy() shares a tensor's memory, and no counter sees what it does there.
    for tensor in (trace.activation, trace.gradient, trace.hvp, trace.images, trace.logits, trace.pixels()):
        tensor.numpy()[...] = 0
    for tensor in (trace.activation, trace.absent_activation, trace.target):
        tensor.zero_()
    return trace.activation.sum(dim=1)

@metric("edits", columns={"nothing": "neither"}, sees_layer=True)
def edits_too(subject):
    images, maps = (subject.images, subject.filled("blur")), (subject.saliency, subject.maps)
    for tensor in (*images, *maps, subject.probability, subject.trace.activation):
        tensor.numpy()[...] = 0
    return {"nothing": subject.score(subject.images)}
"""


@pytest.fixture
def odd(plugin_files: Files, tmp_path: Path, photos: Path):
    """Run `camkit bench` with tiny, of three photos, and the plugins of ODD."""
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    always = [
        "--model", "tiny", "--layer", "prepool", "--limit", 3, "--batch-size", 3, "--steps", 4,
        "--data", photos, "--plugin", plugin_files["mymodel.py"], "--plugin", file,
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
    wrong = "extra-number,extra-flag,extra-column,short-flag,no-bool,no-curve,no-flag,no-dict"
    words = ("--method", "gradcam", "--metrics", f"declared,{wrong},adcc")
    code, output = odd("out", *words)
    assert code == 1, output
    extra = "none of its columns, curves and flags"
    assert reasons(tmp_path / "out") == {
        f"metric 'extra-number': gives float (no tensor) as 'two': {extra}",
        f"metric 'extra-flag': gives (3,) as 'four': {extra}",
        f"metric 'extra-column': gives (3,) as 'six': {extra}",
        "metric 'short-flag': gives (1,) as 'nine', expected (3,)",
        "metric 'no-bool': gives (3,) as 'eleven': expected a flag, (3,) of bool",
        "metric 'no-curve': gives (3,) as 'thirteen_curve': expected a curve, (3, points)",
        "metric 'no-flag': gives 'fourteen', expected 'fifteen'",
        "metric 'no-dict': gives Tensor, expected a dict of columns",
    }
    (row,) = pd.read_csv(tmp_path / "out" / "summary.csv").to_dict("records")
    assert row["adcc"] > 0
    assert row["agrees"] in (0, 1 / 3, 2 / 3, 1)
    assert (tmp_path / "out" / "tiny" / "prepool-rest" / "gradcam.own_curve").exists()
    flags = pd.read_csv(tmp_path / "out" / "tiny" / "flags.csv")
    assert (flags["flag"] == "odd").sum() == 3
    study = load_study([tmp_path / "out"])
    assert "Odd images: gradcam 3." in audit(Analysis(study[0]), study)
    # A declared column is a column: the next run finds it there.
    code, output = odd("out", "--method", "gradcam", "--metrics", "declared")
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


def test_a_plugin_cannot_swallow_an_interrupt() -> None:
    entry = Method("mine", lambda trace: None, "Mine", (), "", source_file="/mine.py")
    with pytest.raises(KeyboardInterrupt), plugins.blamed("method", entry):
        raise KeyboardInterrupt


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
    calls = METHODS["bright-parts"].function.__globals__["calls"]
    assert calls == [4] * (2 * 2)
    tables = [path.read_bytes() for path in sorted(out.glob("*/*/bright-parts.csv"))]
    assert len(tables) == 4 and len(set(tables)) == 1
    assert not list(out.glob("*/*/liar.csv"))
    failures = pd.read_csv(next(out.glob("*/failures.csv")))
    assert len(failures) == 4 * 6
