"""What reports got wrong: one image, shares of 0, many methods, dollar signs, narrow terminals."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from report_data import blind, made_up, write_results
from scipy import stats
from terminals import in_a_terminal

import camkit
from camkit.cli import main
from camkit.entries import MODELS, all_columns
from camkit.entries import model as register
from camkit.network.models import PAPER_ROWS, family_of
from camkit.report import paper, plots
from camkit.report.analysis import Analysis, compare
from camkit.report.comparisons import comparison_frame, rank_grid, rank_tables
from camkit.report.curves import MeanCurve, _mean
from camkit.report.figures import Explained, saliency_figure, save_figure
from camkit.report.grid import Entry, Grid, terminal
from camkit.report.statistics import holm
from camkit.report.study import load_study
from camkit.report.tables import score_frame, terminal_table
from camkit.results.summary import summarise

REPORT = importlib.import_module("camkit.cli.report")  # the package calls the command so
DOCS = Path(camkit.__file__).parent.parent / "docs"


def run(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert found.exit_code == code, found.output
    return found.output


def analysis(tmp_path: Path, cells: dict, **settings: object) -> Analysis:
    return Analysis(load_study([write_results(tmp_path / "results", cells, **settings)])[0])


# One image has no interval, in every format


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


# Shares


def shares(images: int, *hits: int) -> dict[str, np.ndarray]:
    """IC of two methods and a control, (images,); the ones stand first."""
    return {
        name: made_up(images, number) | {"increase": (np.arange(images) < count).astype(float)}
        for number, (name, count) in enumerate(zip(("gradcam", "layercam", "flat"), hits, strict=True))
    }


def test_ic_and_certified_are_declared_as_shares():
    declared = all_columns()
    assert declared["increase"].share
    assert [name for name, column in declared.items() if column.share] == ["increase", "certified"]


def test_ic_of_0_on_24_images_may_be_up_to_14_percent(tmp_path):
    out = write_results(tmp_path, shares(24, 0, 9, 0))
    row = next(line for line in run("report", out).splitlines() if line.startswith("gradcam"))
    assert "0.00 ± 13.80" in row
    frame = pd.read_csv(io.StringIO(run("report", out, "--format", "csv"))).set_index(["method", "score"])
    wilson = stats.binomtest(9, 24).proportion_ci(method="wilson")
    low, high = frame.loc[("layercam", "increase"), ["low", "high"]]
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert frame.loc[("gradcam", "increase"), "high"] == pytest.approx(0.138, abs=5e-4)


def test_differences_in_ic_have_mcnemars_p_and_an_interval_of_some_width(tmp_path):
    found = compare(analysis(tmp_path, shares(24, 0, 9, 0)), baseline=0)
    place = found.analysis.block.columns.index("increase")
    rows = comparison_frame([found]).set_index(["method", "score"])
    layercam, flat = (found.analysis.block.methods.index(name) for name in ("layercam", "flat"))
    low, high = rows.loc[("layercam", "increase"), ["low", "high"]]
    assert 0 < low < 9 / 24 < high
    assert found.low[flat, place] == pytest.approx(-0.138, abs=5e-4)
    alone = compare(analysis(tmp_path / "alone", {n: {"increase": c["increase"]} for n, c in shares(24, 0, 9, 0).items()}), 0)  # fmt: skip # noqa: E501
    exact = np.array([stats.binomtest(9, 9).pvalue, 1.0])
    np.testing.assert_allclose(alone.p[[layercam, flat], 0], holm(exact))


def test_the_length_behind_a_value_is_that_of_the_longer_side(tmp_path):
    found = analysis(tmp_path, {"gradcam": made_up(30, 0), "flat": blind(30, 0.3, 0.2)})
    row = score_frame([found]).set_index(["method", "score"]).loc[("gradcam", "coherency")]
    assert row.value - row.low > 1.2 * (row.high - row.value)  # few low ones among many near 1
    text = run("report", tmp_path / "results")
    assert f"± {100 * (row.value - row.low):5.2f}" in next(
        s for s in text.splitlines() if s.startswith("gradcam")
    )


# The best control, chosen and tested on the same images


def controlled(images: int = 60, **others: float) -> dict[str, dict[str, np.ndarray]]:
    """Complexity only: a method at 0.2, and controls at the means given; `edges` is noisy, `flat` is not."""
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 1, images)
    noise = (noise - noise.mean()) / noise.std()
    cells = {"gradcam": {"complexity": 0.2 + 0.05 * noise}}
    for name, mean in others.items():
        noise = rng.normal(0, 1, images)
        noise = (noise - noise.mean()) / noise.std()
        spread = {"flat": 0.001, "edges": 0.3}[name]
        cells[name] = {"complexity": mean + spread * noise}
    return cells


def test_a_method_has_to_beat_every_control_not_only_the_one_that_looks_best(tmp_path):
    sure = analysis(tmp_path / "a", controlled(flat=0.24))
    assert sure.beats_control[0, 0] == 1
    both = analysis(tmp_path / "b", controlled(flat=0.24, edges=0.25))
    assert both.block.methods[both.best_control[0]] == "flat"  # which it beats, and yet
    assert both.beats_control[0, 0] == 0
    edges = both.common - both.common.only(both.block.methods.index("edges"))
    assert both.control_p[0, 0] == pytest.approx(edges.p_value[0, 0])
    worse = analysis(tmp_path / "c", controlled(flat=0.19))
    assert worse.control_p[0, 0] == 1 and worse.beats_control[0, 0] == 0


def test_the_dagger_is_corrected_over_the_methods_and_scores_of_its_table(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 60)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    better = 0.3 - 2.3 * 0.1 / np.sqrt(60) + 0.1 * noise  # t = -2.3: p = 0.025
    one = {"gradcam": {"complexity": better}, "flat": {"complexity": np.full(60, 0.3)}}
    assert analysis(tmp_path / "one", one).beats_control[0, 0] == 1
    more = {name: {"complexity": 0.3 + 0.1 * rng.normal(0, 1, 60)} for name in ("layercam", "hirescam")}
    found = analysis(tmp_path / "more", one | more)
    assert found.beats_control[0, 0] == 0
    raw = np.array([0.0250, 1, 1])
    assert found.control_p[0, 0] == pytest.approx(holm(raw)[0], rel=0.02)
    assert "†" in next(
        s for s in run("report", tmp_path / "more/results").splitlines() if s.startswith("gradcam")
    )
    assert "corrected (Holm) over the methods and scores" in run("report", tmp_path / "more/results")


def test_a_table_of_methods_no_better_than_controls_claims_one_is_in_5_percent_at_most(tmp_path):
    """200 tables of 4 methods and 3 controls, alike in distribution: the best control is chosen in each."""
    rng, wrong = np.random.default_rng(0), 0
    names = ("gradcam", "layercam", "hirescam", "xgradcam", "flat", "centre", "edges")
    first = analysis(tmp_path, {name: {"complexity": np.zeros(40)} for name in names})
    for _ in range(200):
        values = rng.beta(2, 5, (40, len(names), 1)) + rng.beta(2, 5, (40, 1, 1))
        block = type(first.block)(**{**vars_of(first.block), "values": values})
        wrong += bool(np.nansum(Analysis(block).beats_control))
    assert wrong <= 10


def vars_of(block: object) -> dict:
    return {name: getattr(block, name) for name in block.__dataclass_fields__}  # type: ignore[attr-defined]


# Ranks by family


def test_the_papers_models_are_five_families():
    families: dict[str, list[str]] = {}
    for row in PAPER_ROWS:
        families.setdefault(row.family, []).append(row.name)
    assert families == {
        "resnet": ["resnet18", "resnet50", "resnet101", "resnet152", "resnext50"],
        "vgg": ["vgg16"],
        "efficientnet": ["efficientnet_b0"],
        "mobilenetv2": ["mobilenet_v2"],
        "swin_transformer": ["swin_t", "swin_s", "swin_b", "swin_l"],
    }
    listing = json.loads(run("list", "models", "--format", "json"))
    assert {row["name"]: row["family"] for row in listing}["swin_l"] == "swin_transformer"


def test_the_family_is_that_of_the_librarys_source_also_of_other_models_and_plugins():
    found = [
        family_of(name)
        for name in ("timm/resnet10t", "torchvision/swin_t", "timm/swin_tiny_patch4_window7_224")
    ]
    assert found == ["resnet", "swin_transformer", "swin_transformer"]
    assert family_of("no-longer-here") == "no-longer-here"
    try:
        register("own")(lambda pretrained: None)
        register("own-resnet", family="resnet")(lambda pretrained: None)
        assert (family_of("own"), family_of("own-resnet")) == ("own", "resnet")
    finally:
        for name in ("own", "own-resnet"):
            MODELS._entries.pop(name, None)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """In three ResNets layercam is simpler than gradcam, in VGG and Swin the other way round."""
    base = made_up(50, 0)
    for model in ("resnet18", "resnet50", "resnet101", "vgg16", "swin_t"):
        change = -0.01 if model.startswith("resnet") else 0.01
        cells = {"gradcam": base, "layercam": base | {"complexity": base["complexity"] + change}}
        write_results(tmp_path / "several", cells, model=model)
    return tmp_path / "several"


def test_three_resnets_are_one_of_three_families(several):
    text = run("compare", several)
    block = text[text.index("Com ↓, average rank over 3 families of 5 models") :].split("\n\n")[0]
    rows = {line.split()[0]: line.split()[1] for line in block.splitlines()[3:5]}
    assert rows == {"gradcam": "1.33", "layercam": "1.67"}  # by models it was the other way round
    assert "resnet (resnet101, resnet18, resnet50)" in block
    assert "are not independent" in block and "swin_transformer (swin_t)" in block


def test_one_family_is_ranked_but_not_tested_nor_drawn(several, tmp_path):
    for model in ("vgg16", "swin_t"):
        shutil.rmtree(several / model)
    text = run("compare", several)
    block = text[text.index("Com ↓, average rank over 1 family of 3 models") :].split("\n\n")[0]
    assert "nothing is tested" in block and "Nemenyi" not in block and "among the best" not in block
    assert "ranks-" not in run("plot", several, "--format", "svg", "-o", tmp_path / "figures")
    (table, *_) = rank_tables([Analysis(one) for one in load_study([several])])
    assert rank_grid(table).headings == ("method", "average rank")


# Figures with many methods


def many(methods: int, images: int = 20) -> dict[str, dict[str, np.ndarray]]:
    names = [f"a-method-of-mine-{place:02}" for place in range(methods - 2)]
    cells = {name: made_up(images, place) for place, name in enumerate(names)}
    return cells | {"price_$x$_to_$y^2$": made_up(images, 99), "flat": blind(images, 0.3, 0.2)}


@pytest.mark.parametrize("methods", [3, 26, 40])
def test_all_names_are_inside_every_figure_apart_and_large_enough_to_read(tmp_path, methods):
    block = analysis(tmp_path, many(methods)).block
    curves = {
        kind: {name: MeanCurve(np.linspace(1, 0, 29), np.full(29, 0.1), 20) for name in block.methods}
        for kind in ("deletion", "insertion")
    }
    with mpl.rc_context(plots.STYLE):
        for figure in (
            plots.scatter_figure(Analysis(block), "average_drop", "adcc"),
            plots.scores_figure(Analysis(block)),
            plots.curves_figure(block, curves),
        ):
            figure.set_dpi(200)
            figure.draw_without_rendering()
            texts = [one for one in drawn_texts(figure) if one.get_text().startswith("a-method")]
            assert len({text.get_text() for text in texts}) == methods - 2
            assert min(text.get_fontsize() for text in texts) >= 6
            boxes = [extent(text) for text in texts]
            assert all(inside(box, figure) for box in boxes)
            lines = [middle(box) for box in boxes]
            assert not any(one.overlaps(other) for one, other in combinations(lines, 2))


def drawn_texts(figure: Figure) -> list[Text]:
    return [one for one in figure.findobj(Text) if one.get_text() and one.get_visible()]


def extent(text: Text) -> Bbox:
    """Of the letters in pixels; an annotation's own has its arrow too."""
    return Text.get_window_extent(text)


def middle(box: Bbox) -> Bbox:
    """The middle half of a line's height, which two lines that can be read never share."""
    return box.expanded(1, 0.5)


def inside(box: Bbox, figure: Figure) -> bool:
    whole = figure.bbox.expanded(1.002, 1.002)  # a pixel
    return whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


def test_names_beside_the_scatter_are_a_line_apart(tmp_path):
    block = analysis(tmp_path, many(40)).block
    with mpl.rc_context(plots.STYLE):
        figure = plots.scatter_figure(Analysis(block), "average_drop", "adcc")
        figure.set_dpi(200)
        figure.draw_without_rendering()
        boxes = [extent(text) for text in figure.axes[0].texts]
    centres = np.sort([(box.y0 + box.y1) / 2 for box in boxes])
    assert len(centres) == 40 and np.diff(centres).min() >= 6 * 200 / 72  # 6 points


@pytest.mark.parametrize(
    ("name", "model"), [("a-long-name-" * 5, "resnet18"), ("gradcam", "timm_" + "vit_patch16_" * 7)]
)
def test_a_long_name_and_a_long_title_are_inside(tmp_path, name, model):
    block = analysis(tmp_path, {name: made_up(20, 0), "layercam": made_up(20, 1)}, model=model).block
    with mpl.rc_context(plots.STYLE):
        scatter = plots.scatter_figure(Analysis(block), "average_drop", "adcc")
        for figure in (scatter, plots.scores_figure(Analysis(block))):
            figure.draw_without_rendering()
            texts = [one for one in drawn_texts(figure) if len(one.get_text()) > 20]
            assert texts and all(inside(extent(text), figure) for text in texts)
    assert scatter.axes[0].get_window_extent().width > 2 * scatter.dpi  # and there is room for the points


def test_dollar_signs_in_a_name_are_no_formula(tmp_path):
    for model in ("resnet18", "vgg16"):
        out = write_results(tmp_path / "r", many(4), model=model)
    run("plot", out, "--format", "svg", "-o", tmp_path / "figures")
    for kind in ("resnet18-conv-rest-scores", "resnet18-conv-rest-scatter", "ranks-conv-rest-adcc"):
        # In a text element: matplotlib notes the source of a formula in a comment.
        assert re.search(
            r">(\s|\d)*price_\$x\$_to_\$y\^2\$[\s\d.]*</text>", (tmp_path / f"figures/{kind}.svg").read_text()
        ), kind
    photo = np.zeros((8, 8, 3), dtype=np.uint8)
    row = Explained(photo, photo, photo, "costs $5$, 40 %", {"my_$x$": np.ones((8, 8))})
    with mpl.rc_context({"svg.fonttype": "none"}):
        save_figure(saliency_figure([row]), tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text()
    assert ">my_$x$</text>" in text and ">costs $5$, 40 %</text>" in text


# Tables as wide as the terminal


def without_styles(text: str) -> str:
    return click.unstyle(text)


def cells_of(text: str) -> dict[tuple[int, str, str], str]:
    """(block, row, heading) -> entry, from the places of the rules below the headings."""
    found, block, lines = {}, 0, without_styles(text).splitlines()
    for place, line in enumerate(lines):
        block += line.startswith("resnet18 · ")
        if not line.startswith("method "):
            continue
        spans = [match.span() for match in re.finditer("-+", lines[place + 1])]
        headings = [line[a:b].strip() for a, b in spans]
        for row in lines[place + 2 :]:
            if not row or row.startswith("  "):
                break
            if not row.startswith("-"):
                entries = [row[a:b].strip() for a, b in spans]
                found |= {(block, entries[0], h): e for h, e in zip(headings[1:], entries[1:], strict=True)}
    return found


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    cells = {"gradcam": made_up(50, 0, curves=True), "shapleycam-h": made_up(50, 1, curves=True)}
    cells["flat"] = blind(50, 0.3, 0.2, deletion_auc=0.3, insertion_auc=0.4)
    return write_results(tmp_path / "wide", cells)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("command", ["report", "compare", "bench"])
def test_tables_fit_the_terminal_and_lose_nothing(wide, monkeypatch, width, command):
    def text(letters: int | None) -> str:
        if command == "bench":  # whose means are printed by the same function, also by score and merge
            return terminal_table(summarise(wide), letters)
        monkeypatch.setattr(REPORT, "table_width", lambda: letters)
        return run(command, wide)

    whole, narrow = text(None), text(width)
    lines = without_styles(narrow).splitlines()
    assert max(map(len, lines)) <= width
    assert cells_of(narrow) == cells_of(whole) and len(cells_of(whole)) >= 3 * 6
    if width == 160:
        assert [line for line in lines if line.startswith("gradcam")] == [
            line for line in without_styles(whole).splitlines() if line.startswith("gradcam")
        ]
    elif command == "report":
        assert sum(line.startswith("gradcam ") for line in lines) == 2
        assert max(map(len, whole.splitlines())) > 100


def test_a_part_has_at_least_one_column_beside_the_names():
    row = tuple(Entry(text) for text in ("m" * 60, "1.00", "2.00", "3.00"))
    text = terminal([Grid("t", "", ("method", "a", "b", "c"), ((row,),))], width=40)
    assert text.count("m" * 60) == 3 and all(f"{value}.00" in text for value in (1, 2, 3))


@pytest.mark.parametrize(
    "words", [("bench", "--model", "resnet18"), ("score", "DIR", "--metrics", "adcc"), ("merge", "DIR")]
)
def test_the_commands_that_print_means_fit_them_to_the_terminal(wide, monkeypatch, words):
    """What they would run is left out: it gives these means."""
    summary = summarise(wide)
    monkeypatch.setattr("camkit.runs.bench.bench", lambda *_, **__: summary)
    monkeypatch.setattr("camkit.runs.cells.cells_of", lambda *_: summary)
    monkeypatch.setattr("camkit.runs.rescore.rescore", lambda *_, **__: summary)
    module = importlib.import_module("camkit.cli.bench" if words[0] == "bench" else "camkit.cli.runs")
    monkeypatch.setattr(module, "table_width", lambda: 80)
    lines = run(*(wide if word == "DIR" else word for word in words)).splitlines()
    table = [line for line in lines if "summary.csv" not in line]
    assert max(map(len, table)) <= 80 and sum(line.startswith("gradcam ") for line in table) == 2


def test_a_real_terminal_of_80_columns_gets_narrow_tables_and_a_pipe_whole_ones(wide):
    lines = without_styles(in_a_terminal(80, "report", wide)).splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.startswith("gradcam ") for line in lines) == 2
    words = [sys.executable, "-m", "camkit", "report", str(wide)]
    piped = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    ).stdout.splitlines()
    assert sum(line.startswith("gradcam ") for line in piped) == 1 and max(map(len, piped)) > 120


def test_a_file_gets_whole_tables(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(REPORT, "table_width", lambda: 80)
    run("report", wide, "-o", tmp_path / "table.txt")
    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert sum(line.startswith("gradcam ") for line in lines) == 1


# The CSV files, read by others


def test_the_snippet_for_pandas_reads_what_is_there(tmp_path, monkeypatch):
    names = ["00012.jpg", "1e5", "NA", "3-1", b"caf\xe9.png".decode("utf-8", "surrogateescape")]
    scores = made_up(5, 0)
    scores["coherency"][3] = np.nan
    out = tmp_path / "results" / "local"
    write_results(out, {"gradcam": scores}, model="resnet50", names=names)
    (out / "summary.csv").write_text(summarise(out).to_csv(index=False))
    monkeypatch.chdir(tmp_path)
    section = (DOCS / "report.md").read_text(encoding="utf-8").split("## Reading the CSV files")[1]
    code = re.search(r"pandas:\n\n((?:    .*\n|\n)+)", section)[1]
    scope: dict = {}
    exec("\n".join(line[4:] for line in code.splitlines()), scope)
    rows = scope["gradcam"]
    assert list(rows.index) == [*names[:4], "caf\\xe9.png"]
    np.testing.assert_allclose(rows["coherency"], scores["coherency"], rtol=1e-8)
    assert scope["summary"]["method"].tolist() == ["gradcam"]


def test_the_coverage_in_the_docs_is_that_of_a_command():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    command = re.search(r"python (scripts/\w+\.py) RUN", text)[1]
    assert (DOCS.parent / command).exists()
    row = next(line for line in text.splitlines() if re.match(r"\| mean +\| +30 \| Coh ", line))
    least, _, most = (float(share) for share in row.split("|")[4].split("/"))
    assert 93 <= least <= most <= 97
