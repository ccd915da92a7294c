"""Names in figures: all inside, apart and readable, also long ones and dollar signs."""

from __future__ import annotations

import re
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from command_line import run
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from report_data import analysis, blind, made_up, write_results

from camkit.report import plots
from camkit.report.analysis import Analysis
from camkit.report.curves import MeanCurve
from camkit.report.figures import Explained, saliency_figure, save_figure


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
