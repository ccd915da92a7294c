"""`camkit report` and `camkit compare`: what the tables say, in every format."""

import io
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from command_line import run
from report_data import blind, made_up, write_cell, write_results

from camkit.cli import main
from camkit.report.grid import LATEX_ROWS, Entry, Grid, escape_latex, markdown
from camkit.report.scores import known_scores
from camkit.report.tables import terminal_table
from camkit.results.summary import summarise

IMAGES = 50


@pytest.fixture
def results(tmp_path):
    cells = {"gradcam": made_up(IMAGES, 0), "layercam": made_up(IMAGES, 1), "flat": blind(IMAGES, 0.3, 0.2)}
    return write_results(tmp_path / "results", cells)


def test_the_terminal_table_has_means_intervals_controls_and_top1(results):
    text = run("report", results)
    assert "resnet18 · conv · rest (50 images, top-1 74.00 %)" in text
    row = next(line for line in text.splitlines() if line.startswith("flat"))
    assert "20.00 ±  0.00" in row and "30.00 ±  0.00" in row
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert lines.index("layercam") < lines.index("flat") < lines.index("best")
    assert "nothing here: flat, the same map for every image" in text


def test_the_csv_has_fractions_that_pandas_reads(results):
    frame = pd.read_csv(io.StringIO(run("report", results, "--format", "csv")))
    assert len(frame) == 3 * 6
    drop = frame[(frame["method"] == "gradcam") & (frame["score"] == "average_drop")].iloc[0]
    assert drop["value"] == pytest.approx(made_up(IMAGES, 0)["average_drop"].mean(), rel=1e-6)
    assert drop["low"] < drop["value"] < drop["high"]
    assert drop["images"] == IMAGES and drop["best_control"] == "flat"


def test_adcc_is_the_harmonic_mean_of_means_in_the_report_too(results):
    frame = pd.read_csv(io.StringIO(run("report", results, "--format", "csv"))).set_index(["method", "score"])
    value = frame.loc["gradcam", "value"]
    factors = [value["coherency"], 1 - value["complexity"], 1 - value["average_drop"]]
    assert value["adcc"] == pytest.approx(3 / sum(1 / factor for factor in factors), rel=1e-6)


def test_the_format_follows_the_file_name(results, tmp_path):
    for name, start in (
        ("a.md", "### resnet18"),
        ("a.csv", "results,"),
        ("a.tex", "% Compiles"),
        ("a.txt", "resnet18"),
    ):
        assert run("report", results, "-o", tmp_path / name).strip() == str(tmp_path / name)
        assert (tmp_path / name).read_text().startswith(start)


def test_people_get_the_names_that_papers_have_and_programs_the_identifiers(results):
    for style in ("markdown", "latex"):
        for command in ("report", "compare"):
            text = run(command, results, "--format", style)
            assert "LayerCAM" in text and "layercam" not in text and "Flat" in text
    for style in ("terminal", "csv"):
        for command in ("report", "compare"):
            text = run(command, results, "--format", style)
            assert "layercam" in text and "LayerCAM" not in text and "Flat" not in text


def test_markdown_marks_best_and_second_and_escapes():
    grid = Grid("t", "", ("method", "AD ↓"), (((Entry("a_b|c"), Entry("1.00", bold=True)),),), ("a note",))
    text = markdown([grid])
    assert r"a\_b\|c" in text and "**1.00**" in text and "- a note" in text


def test_latex_escapes_what_it_must():
    assert escape_latex("a_b&50%#$x~^{}\\") == (
        r"a\_b\&50\%\#\$x\textasciitilde{}\textasciicircum{}\{\}\textbackslash{}"
    )
    assert escape_latex("AD ↓ ± 3 · 猫") == r"AD $\downarrow$ $\pm$ 3 $\cdot$ ?"


def test_latex_has_a_caption_with_the_protocol_and_a_table_for_each_block(results):
    write_results(results, {"gradcam": made_up(IMAGES, 3)}, model="vgg_16")
    text = run("report", results, "--format", "latex")
    assert text.count(r"\begin{table}") == 2 and text.count(r"\toprule") == 2
    assert "layer conv, utility rest, target predicted, 50 images" in text
    assert r"vgg\_16" in text and r"\textbf{" in text and r"\underline{" in text
    assert text.count("{") == text.count("}")


def test_no_latex_table_is_longer_than_a_page(tmp_path):
    cells = {f"m{place:02}": made_up(5, place) for place in range(60)} | {"flat": blind(5, 0.3, 0.2)}
    for model in ("resnet18", "vgg16"):
        write_results(tmp_path, cells, model=model)
    text = run("report", tmp_path, "--format", "latex")
    tables = text.split(r"\begin{table}")[1:]
    rows = [sum(line.endswith(r"\\") and " & " in line for line in table.splitlines()) for table in tables]
    # Each with its headings: 42 of 62 rows, then 20.
    assert rows == [43, 21, 43, 21]
    assert "(continued)" in tables[1] and tables[1].count(r"\textit") == 1
    assert "Only 5 images" not in tables[0] and "Only 5 images" in tables[1]


def test_three_rows_of_a_method_stay_in_one_latex_table():
    assert LATEX_ROWS % 3 == 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(results, tmp_path):
    write_results(
        results, {"my_100%_$#&~^{}": made_up(IMAGES, 3)}, model="a_b", utility="log-softmax", errors=["ü_x"]
    )
    (tmp_path / "table.tex").write_text(run("report", results, "--format", "latex"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_compare_says_what_differs_and_what_cannot_be_told_apart(tmp_path):
    scores = made_up(IMAGES, 0)
    noise = np.random.default_rng(5).normal(0, 1e-2, IMAGES)
    cells = {
        "gradcam": scores,
        "layercam": scores | {"complexity": scores["complexity"] - 0.1},
        "gradcam-e": scores | {"complexity": scores["complexity"] + noise - noise.mean()},
    }
    text = run("compare", write_results(tmp_path, cells), "--baseline", "gradcam")
    block = text[text.index("Com ↓") :].split("\n\n")[0]
    layercam = next(line for line in block.splitlines() if line.startswith("layercam"))
    assert (
        "−10.00" in layercam and "< 0.001" in layercam and "100 %" in layercam and layercam.endswith("better")
    )
    assert "Cannot be told apart from gradcam on 50 images: gradcam-e." in block


def test_compare_in_csv(results):
    frame = pd.read_csv(io.StringIO(run("compare", results, "--format", "csv")))
    assert set(frame["method"]) == {"layercam", "flat"} and set(frame["baseline"]) == {"gradcam"}
    row = frame[(frame["method"] == "layercam") & (frame["score"] == "complexity")].iloc[0]
    gain = made_up(IMAGES, 1)["complexity"] - made_up(IMAGES, 0)["complexity"]
    assert row["difference"] == pytest.approx(gain.mean(), abs=1e-6)
    assert row["won"] == pytest.approx((gain < 0).mean())


def test_compare_with_an_unknown_baseline(results):
    assert "Did you mean 'gradcam'" in run("compare", results, "--baseline", "gradcm", code=2)


def test_average_ranks_over_models(tmp_path):
    base = made_up(IMAGES, 0)
    for model, first in (("resnet18", 0.01), ("swin_t", 0.02), ("vgg16", -0.01)):
        cells = {"gradcam": base, "layercam": base | {"complexity": base["complexity"] - first}}
        write_results(tmp_path, cells, model=model)
    text = run("compare", tmp_path)
    block = text[text.index("conv · rest · Com ↓, average rank over 3 families of 3 models") :]
    rows = {line.split()[0]: line.split()[1] for line in block.splitlines()[3:5]}
    assert rows == {"layercam": "1.33", "gradcam": "1.67"}


PLUGIN = """
from camkit import metric

@metric("sharp", columns={"sharpness": "higher"})
def sharp(subject):
    return {"sharpness": subject.saliency.amax(dim=(1, 2))}
"""


@pytest.mark.parametrize("command", ["report", "compare", "plot"])
def test_a_plugins_scores_are_shown_with_the_plugin_and_left_out_without(tmp_path, command):
    cells = {
        name: {"sharpness": np.arange(40.0) + place} for place, name in enumerate(("gradcam", "layercam"))
    }
    out = write_results(tmp_path / "r", cells)
    plugin = tmp_path / "sharp.py"
    plugin.write_text(PLUGIN)
    words = [command, str(out), *(["-o", str(tmp_path / "figures")] if command == "plot" else [])]
    without = CliRunner().invoke(main, words)
    assert without.exit_code == 2 and "resnet18 · conv · rest is left out" in without.stderr
    assert "--plugin FILE" in without.stderr and "Traceback" not in without.stderr
    found = CliRunner().invoke(main, [*words, "--plugin", str(plugin)])
    assert found.exit_code == 0, found.output
    assert ("resnet18-conv-rest-scores" if command == "plot" else "sharpness ↑") in found.stdout


def test_bad_folders_are_refused_in_one_line(tmp_path):
    assert "no such folder" in run("report", tmp_path / "none", code=2)
    assert "no results found" in run("compare", tmp_path, code=2)
    assert "--strict goes with" in run("report", tmp_path, "--strict", code=2)
    assert "-o FILE.html" in run("report", tmp_path, "--format", "html", code=2)


def test_a_score_of_two_groups_stands_with_the_larger_one():
    """`complexity` is in `adcc` and in `shape`: it stays beside the scores that it is a part of."""
    names = [
        score.name for score in known_scores(["complexity", "adcc", "gini", "coherency", "deletion_auc"])
    ]
    assert names == ["coherency", "complexity", "adcc", "deletion_auc", "gini"]


def test_a_file_of_an_unknown_ending_is_refused_unless_the_format_is_said(results, tmp_path):
    out = tmp_path / "table.docx"
    assert "unknown ending" in run("report", results, "-o", out, code=2)
    assert not out.exists()
    run("report", results, "-o", out, "--format", "markdown")
    assert out.read_text().startswith("###")
    for command in ("compare", "grade"):
        said = run(command, results, "-o", tmp_path / "page.html", code=2)
        assert "unknown ending; known are .md, .csv, .tex, .txt" in said


def test_a_table_whose_methods_have_unlike_many_images_says_so(results):
    write_cell(
        results / "resnet18" / "conv-rest", "layercam", made_up(2, 1), ["img/00000.jpg", "img/00001.jpg"]
    )
    title = "resnet18 · conv · rest (2 to 50 images, top-1 74.00 %)"
    assert title in run("report", results)
    assert title in terminal_table(summarise(results))


def test_layers_stand_by_their_numbers(tmp_path):
    for layer in ("blocks.10", "blocks.2", "blocks.2.1"):
        write_results(tmp_path, {"gradcam": made_up(9, 0)}, layer=layer)
    assert summarise(tmp_path)["layer"].tolist() == ["blocks.2", "blocks.2.1", "blocks.10"]
    text = run("report", tmp_path)
    assert text.index("· blocks.2 ·") < text.index("· blocks.2.1 ·") < text.index("· blocks.10 ·")
