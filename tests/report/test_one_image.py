"""One image has no interval, in no format, and nothing is tested on it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from command_line import run
from report_data import blind, made_up, write_results

from camkit.report import paper, plots
from camkit.report.analysis import Analysis
from camkit.report.curves import _mean
from camkit.report.study import load_study


@pytest.fixture
def one_image(tmp_path: Path) -> Path:
    cells = {"gradcam": made_up(1, 0, curves=True), "layercam": made_up(1, 1), "flat": blind(1, 0.3, 0.2)}
    return write_results(tmp_path / "one", cells)


def test_one_image_has_no_interval_in_the_terminal_in_markdown_and_in_latex(one_image):
    text = run("report", one_image)
    row = next(line for line in text.splitlines() if line.startswith("gradcam"))
    assert row.count("±     –") == 8 and not re.search(r"± +\d", text)
    assert "(1 image, " in text and "–: one image gives none" in text
    assert "Only one image: there are no intervals, and nothing can be tested." in text
    assert "±     –" in run("report", one_image, "--format", "markdown")
    latex = run("report", one_image, "--format", "latex")
    assert r"$\pm$     --" in latex and not re.search(r"\\pm\$ +\d", latex)


def test_one_image_has_no_interval_in_csv(one_image):
    for words in (("report",), ("compare",)):
        frame = pd.read_csv(io.StringIO(run(*words, one_image, "--format", "csv")))
        assert len(frame) and frame[["low", "high", "p_holm"]].isna().all(axis=None)
        flag = "beats_best_control" if words == ("report",) else "told_apart"
        assert frame[flag].isna().all()


def test_one_image_has_no_interval_on_the_page(one_image, tmp_path):
    run("report", one_image, "--no-photos", "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    block = data["blocks"][0]
    assert set(np.ravel(block["low"])) == set(np.ravel(block["high"])) == {None}
    assert 'class="ends"' not in text and "±     –" in text


def test_one_image_is_compared_and_not_tested(one_image):
    text = run("compare", one_image)
    row = next(line for line in text.splitlines() if line.startswith("layercam")).split()
    assert row[2:4] == ["–", "–"] and row[-2:] == ["not", "tested"]
    assert "Cannot be told apart" not in text


def test_one_image_draws_hollow_points_and_no_bands(one_image):
    (block,) = load_study([one_image])
    with mpl.rc_context(plots.STYLE):
        figures = [
            plots.scores_figure(Analysis(block)),
            plots.scatter_figure(Analysis(block), "average_drop", "adcc"),
        ]
        drawn = {m: _mean(np.linspace(1, 0, 29)[None]) for m in block.methods}
        figures.append(plots.curves_figure(block, {"deletion": drawn}))
        for figure in figures:
            figure.draw_without_rendering()
            assert "one image gives no intervals" in figure.get_suptitle().replace("\n", " ")
    for axis in figures[0].axes:
        points = axis.collections[-1]
        assert (points.get_facecolor()[:, 3] == 0).all() and (points.get_edgecolor()[:, 3] == 1).all()
        assert not any(np.isfinite(path.vertices).all() for path in axis.collections[0].get_paths())
    assert all(line.get_markerfacecolor() == "none" for line in figures[1].axes[0].lines[::3])
    assert np.isnan(drawn["gradcam"].half).all()


def test_one_image_can_neither_agree_with_the_paper_nor_be_off(one_image):
    (found,), _ = paper.check_all([Analysis(block) for block in load_study([one_image])])
    assert not found.compared.any() and not found.off.any() and (~np.isnan(found.paper)).any()
    text = run("report", one_image, "--against", "paper")
    assert "No figure is compared: one image has no interval" in text and "figures are within" not in text


def test_a_method_with_one_image_beside_others_has_no_interval_alone(tmp_path):
    short = {name: np.where(np.arange(40) == 0, column, np.nan) for name, column in made_up(40, 1).items()}
    text = run("report", write_results(tmp_path, {"gradcam": made_up(40, 0), "layercam": short}))
    assert "Some scores rest on one image: they have no interval, and are not tested." in text
    rows = {line.split()[0]: line for line in text.splitlines() if " ± " in line}
    assert rows["layercam"].count("±     –") == 6 and "–" not in rows["gradcam"]
