"""Figures of a study for a paper: scores with intervals, two scores, curves, critical differences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from camkit.report.analysis import Analysis
from camkit.report.comparisons import RankTable, rank_tables
from camkit.report.curves import MeanCurve, mean_curves
from camkit.report.figures import PLAIN_TEXT, save_figure
from camkit.report.scores import title_of
from camkit.report.study import Block
from camkit.results.folder import file_name

FORMATS = ("png", "svg", "pdf")
METHOD, CONTROL = "#0b57a4", "#8a929b"
# Letters stay letters, to be searched and edited.
STYLE = {"svg.fonttype": "none", "pdf.fonttype": 42, "savefig.dpi": 200, "font.size": 8, **PLAIN_TEXT}
NAME_SIZE = 6  # points, of names beside a figure
NAME_HEIGHT, LETTER_WIDTH = 0.11, 0.055  # inches that a line of names and one of their letters want
TITLE_LETTER = 0.068  # inches


def write_figures(analyses: Sequence[Analysis], folder: Path, formats: Sequence[str]) -> list[Path]:
    """All figures in all formats; the paths written."""
    written = []
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        for name, figure in _figures(analyses):
            for suffix in formats:
                written.append(folder / f"{name}.{suffix}")
                save_figure(figure, written[-1])
    return written


def _figures(analyses: Sequence[Analysis]) -> Iterator[tuple[str, Figure]]:
    for analysis in analyses:
        block = analysis.block
        parts = [*([] if block.alone else [block.source]), block.model, block.layer, block.utility]
        name = "-".join(file_name(part) for part in parts)
        yield f"{name}-scores", scores_figure(analysis)
        if {"average_drop", "adcc"} <= set(block.columns):
            yield f"{name}-scatter", scatter_figure(analysis, "average_drop", "adcc")
        if curves := mean_curves(block):
            yield f"{name}-curves", curves_figure(block, curves)
    for table in rank_tables(analyses):
        if len(table.families) == 1:  # nothing is tested, so there is no critical difference
            continue
        place = "-".join(file_name(part) for part in (*table.place, table.score.name))
        yield f"ranks-{place}", rank_figure(table)


def _head(figure: Figure, title: str) -> None:
    """The figure's title, in as many lines as its width wants."""
    figure.suptitle(textwrap.fill(title, int(figure.get_figwidth() / TITLE_LETTER)), fontsize=8)


def _title(block: Block, known: np.ndarray) -> str:
    """The block's title, which also says why points have no interval."""
    return block.title + ("" if known.any() else "; one image gives no intervals")


def scores_figure(analysis: Analysis) -> Figure:
    """One panel per score: means and 95 % intervals; the dotted line is the best control.

    Points without an interval are hollow.
    """
    block = analysis.block
    low, high = (100 * ends for ends in analysis.intervals)
    value, known = 100 * analysis.own.value, ~np.isnan(low)
    panels = len(block.scores)
    columns = panels if panels <= 4 else -(-panels // 2)
    lines = -(-panels // columns)
    height = (0.16 * len(block.methods) + 0.55) * lines + 0.3
    names = [*map(title_of, block.methods)]
    width = 0.35 + LETTER_WIDTH * 1.3 * max(map(len, names)) + 1.5 * columns
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    rows = np.arange(len(block.methods))
    colours = np.where(block.controls, CONTROL, METHOD)
    for column, axis in enumerate(axes.flat):
        if column >= panels:
            axis.remove()
            continue
        sure = known[:, column]
        axis.hlines(rows[sure], low[sure, column], high[sure, column], colors=colours[sure], linewidth=1.2)
        filled = np.where(sure, colours, "none")
        axis.scatter(value[:, column], rows, c=filled, edgecolors=colours, s=10, zorder=3)
        if analysis.best_control is not None and analysis.best_control[column] >= 0:
            best = value[analysis.best_control[column], column]
            axis.axvline(best, color=CONTROL, linestyle=":", linewidth=0.8)
        axis.set_title(block.scores[column].heading, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    axes[0, 0].set_yticks(rows, names)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    _head(figure, _title(block, known))
    return figure


def scatter_figure(analysis: Analysis, across: str, up: str) -> Figure:
    """Two scores of every method, with their intervals; squares are controls, hollow: no interval."""
    block = analysis.block
    x, y = block.columns.index(across), block.columns.index(up)
    value, (low, high) = 100 * analysis.own.value, analysis.intervals
    names = [*map(title_of, block.methods)]
    # As high as the column of names wants, and as wide as the longest of them.
    height = max(3.2, NAME_HEIGHT * len(names) + 0.7)
    width = max(4.2, 3.2 + LETTER_WIDTH * max(map(len, names)))
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    arms = np.maximum([value - 100 * low, 100 * high - value], 0)  # (2, methods, scores), NaN without
    for row, control in enumerate(block.controls):
        colour = CONTROL if control else METHOD
        known = not np.isnan(arms[:, row, [x, y]]).any()
        axis.errorbar(
            value[row, x],
            value[row, y],
            xerr=arms[:, [row], x],
            yerr=arms[:, [row], y],
            fmt="s" if control else "o",
            markersize=4,
            markerfacecolor=colour if known else "none",
            linewidth=0.7,
            color=colour,
        )
    _names_beside(axis, names, value[:, [x, y]])
    axis.set_xlabel(f"{block.scores[x].heading}, percent")
    axis.set_ylabel(f"{block.scores[y].heading}, percent")
    _head(figure, _title(block, ~np.isnan(low[:, [x, y]])))
    return figure


def _names_beside(axis: Axes, names: Sequence[str], points: np.ndarray) -> None:
    """Names in a column on the right, each as near to its point's height as the others let it."""
    low, high = axis.get_ylim()
    shown = [row for row in np.argsort(-points[:, 1], kind="stable") if np.isfinite(points[row]).all()]
    step = min(0.052, 1 / max(len(shown), 1)) * (high - low)
    heights = points[shown, 1].copy()
    for place in range(1, len(shown)):
        heights[place] = min(heights[place], heights[place - 1] - step)
    floor = low
    for place in reversed(range(len(shown))):  # what has been pushed out below goes up again
        heights[place] = max(heights[place], floor)
        floor = heights[place] + step
    right = axis.get_xlim()[1]
    for row, height in zip(shown, heights, strict=True):
        axis.annotate(
            names[row],
            points[row],
            xytext=(right + 0.03 * (right - axis.get_xlim()[0]), height),
            va="center",
            fontsize=NAME_SIZE,
            annotation_clip=False,
            arrowprops={  # to the middle of the name's left side; lines to its middle cross other names
                "arrowstyle": "-",
                "linewidth": 0.3,
                "color": CONTROL,
                "relpos": (0, 0.5),
                "shrinkB": 0,
            },
        )


def curves_figure(block: Block, curves: Mapping[str, Mapping[str, MeanCurve]]) -> Figure:
    """Mean deletion and insertion curves; bands are the 95 % intervals of the means, controls dashed."""
    methods = max(map(len, curves.values()))
    height = max(2.9, 1.2 * NAME_HEIGHT * methods + 0.3)  # of the names beside them
    figure = Figure(figsize=(3.4 * len(curves) + 1.0, height), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    palette = mpl.colormaps["tab10"]
    for axis, (kind, lines) in zip(axes, curves.items(), strict=True):
        for method, one in lines.items():
            row = block.methods.index(method)
            control = bool(block.controls[row])
            colour = CONTROL if control else palette(row % 10)
            share = 100 * np.linspace(0, 1, len(one.mean))
            dashes = ("--", ":", "-.")[row % 3] if control else "-"
            axis.plot(share, 100 * one.mean, dashes, color=colour, linewidth=1, label=title_of(method))
            low, high = 100 * (one.mean - one.half), 100 * (one.mean + one.half)
            axis.fill_between(
                share, low.clip(0, 100), high.clip(0, 100), color=colour, alpha=0.1, linewidth=0
            )
        axis.set_xlabel(f"pixels {'deleted' if kind == 'deletion' else 'put in'}, percent")
        axis.set_title(kind.capitalize(), fontsize=8)
    axes[0].set_ylabel("probability, percent")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=6, frameon=False)
    _head(figure, _title(block, np.array([one.images > 1 for one in lines.values()])))
    return figure


def alike(average: np.ndarray, critical_difference: float) -> list[tuple[float, float]]:
    """The longest spans of sorted average ranks that are closer than the critical difference."""
    ordered = np.sort(average)
    spans: list[tuple[float, float]] = []
    for place, first in enumerate(ordered):
        last = ordered[ordered - first < critical_difference][-1]
        if last > first and (not spans or last > spans[-1][1]):
            spans.append((float(ordered[place]), float(last)))
    return spans


def rank_figure(table: RankTable) -> Figure:
    """Critical-difference diagram (Demsar, JMLR 2006): bars join methods that cannot be told apart."""
    average = table.ranks.average
    methods = len(average)
    order = np.argsort(average, kind="stable")
    spans = alike(average, table.ranks.critical_difference)
    left = (methods + 1) // 2
    depth = 0.35 * len(spans) + 0.8
    figure = Figure(figsize=(6, 0.22 * (depth + left) / 0.5 + 0.6), layout="constrained")
    axis = figure.subplots()
    axis.set_xlim(0, methods + 1)
    axis.set_ylim(depth + 0.6 * left, -0.9)
    axis.axis("off")
    axis.hlines(0, 1, methods, colors="black", linewidth=1)
    for rank in range(1, methods + 1):
        axis.vlines(rank, -0.12, 0.12, colors="black", linewidth=1)
        if rank % -(-methods // 16) == 1 or methods <= 16:  # more numbers would run into each other
            axis.text(rank, -0.25, str(rank), ha="center", va="bottom")
    for number, (first, last) in enumerate(spans):
        axis.hlines(0.45 + 0.35 * number, first - 0.05, last + 0.05, colors="black", linewidth=3)
    for place, method in enumerate(order):
        on_left = place < left
        row = depth + 0.6 * (place if on_left else methods - 1 - place)
        end = 0.7 if on_left else methods + 0.3
        axis.plot([average[method], average[method], end], [0, row, row], color=METHOD, linewidth=0.8)
        words = f"{title_of(table.methods[method])}  {average[method]:.2f}"
        axis.text(end, row, f" {words} ", ha="right" if on_left else "left", va="center")
    difference = f"critical difference {table.ranks.critical_difference:.2f}"
    _head(figure, f"{table.title}; {difference}")
    return figure
