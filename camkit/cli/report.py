"""The commands that read results: report, compare, grade and plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from camkit.cli.options import READING, Command, config_option, config_options, debug_option, table_width
from camkit.console import say
from camkit.errors import UsageError
from camkit.report.grid import Grid

SUFFIXES = {
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".txt": "terminal",
    "": "terminal",
}


def _folders(command: Callable) -> Callable:
    return click.argument(
        "folders", nargs=-1, required=True, metavar="DIR…", type=click.Path(path_type=Path)
    )(command)


def _output(*formats: str) -> Callable:
    """--format and -o, which every table has."""

    def decorate(command: Callable) -> Callable:
        command = click.option(
            "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there."
        )(command)
        return click.option(
            "--format",
            "style",
            type=click.Choice(formats),
            help="How it looks.  [default: by the ending of --out, else terminal]",
        )(command)

    return decorate


def _style(style: str | None, out: Path | None, page: bool = False) -> str:
    """The format that is named, else that of the file's ending; `page`: whether html is one of them."""
    suffix = out.suffix.lower() if out else ""
    known = {ending: name for ending, name in SUFFIXES.items() if page or name != "html"}
    if not style and suffix not in known:
        raise UsageError(f"-o {out}: unknown ending; known are {', '.join(filter(None, known))}, or --format")
    return style or known[suffix]


def _naming(style: str) -> Callable[[str], str]:
    """A terminal shows methods as commands take them, all else as papers write them."""
    from camkit.report.scores import identifier, title_of

    return identifier if style in ("terminal", "csv") else title_of


def _emit(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(click.unstyle(text), encoding="utf-8", errors="replace")
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)" if out.suffix == ".html" else str(out))


def _render(
    style: str,
    grids: list[Grid],
    legend: tuple[str, ...],
    frame: Callable[[], Any],
    out: Path | None,
    remarks: tuple[str, ...] = (),
) -> str:
    from camkit.report import grid

    if style == "csv":
        return frame().to_csv(index=False, float_format="%.9g", lineterminator="\n")
    if style == "terminal":
        return grid.terminal(grids, legend, remarks, None if out else table_width())
    render = {"markdown": grid.markdown, "latex": grid.latex}[style]
    return render(grids, legend, remarks)


def _analyses(folders: tuple[Path, ...], plugin: tuple[str, ...]) -> list[Any]:
    """Each block below the folders as an :class:`camkit.report.analysis.Analysis`."""
    from camkit.plugins import load_plugins
    from camkit.report.analysis import Analysis
    from camkit.report.study import load_study

    load_plugins(plugin)
    return [Analysis(block) for block in load_study(folders, say)]


@click.command(cls=Command)
@_folders
@_output("terminal", "markdown", "csv", "latex", "html")
@click.option(
    "--against", type=click.Choice(["paper"]), help="Compare with the published figures (arXiv 2501.06261)."
)
@click.option(
    "--strict",
    is_flag=True,
    help="With --against: exit code 1 where a full-set figure is off, or none was checked.",
)
@click.option(
    "--data", metavar="PATH|sample", help="Where the photos lie, for html.  [default: $CAMKIT_DATA]"
)
@config_options(*READING)
@click.option(
    "--no-photos", is_flag=True, help="An html page without photos, where passing them on is not allowed."
)
@config_option("plugin")
@debug_option
def report(
    folders: tuple[Path, ...],
    style: str | None,
    out: Path | None,
    against: str | None,
    strict: bool,
    data: str | None,
    no_photos: bool,
    plugin: tuple[str, ...],
    **reading: Any,
) -> None:
    """The table of results: means with 95 % intervals, marks, controls, and audit lines.

    Results of several layers also have a table of which layer suits the model.

    html is one file with tables, figures and images; the images' maps are there if `bench --save-maps` kept
    them.

    \b
    Examples:
      camkit report results/local
      camkit report results/local -o table.tex
      camkit report results/local --against paper --strict
      camkit report results/local --data /data/imagenet/val -o report.html
    """
    if strict and not against:
        raise UsageError("--strict goes with --against paper")
    style = _style(style, out, page=True)
    if style == "html" and out is None:
        raise UsageError("--format html writes a page: say where with -o FILE.html")
    from camkit.report import layers, paper, tables

    named = _naming(style)
    analyses = _analyses(folders, plugin)
    legend: tuple[str, ...] = tables.LEGEND
    remarks: tuple[str, ...] = ()
    checks: list[paper.Check] = []
    if against:
        checks, left_out = paper.check_all(analyses)
        remarks = (*paper.verdict(checks), *paper.randomcam_lines(checks, named), *left_out)
        grids, legend = [paper.check_grid(found, named) for found in checks], paper.LEGEND
        frame = partial(paper.check_frame, checks)
    else:
        study = [analysis.block for analysis in analyses]
        grids = [tables.score_grid(analysis, study, named) for analysis in analyses]
        grids += layers.layer_grids(analyses, named)
        frame = partial(tables.score_frame, analyses)
    if style == "html":
        data = data or os.environ.get("CAMKIT_DATA")
        text = _page(folders, analyses, grids, (*legend, *remarks), None if no_photos else (data, reading))
    else:
        text = _render(style, grids, legend, frame, out, remarks)
    _emit(text, out)
    if remarks and (out is not None or style == "csv"):
        say("\n".join(remarks))
    if strict:
        paper.strict(checks)


def _page(
    folders: tuple[Path, ...],
    analyses: list[Any],
    grids: list[Grid],
    legend: tuple[str, ...],
    photos: tuple[str | None, Mapping[str, Any]] | None,
) -> str:
    """The HTML page; `photos`: where they lie and how to read that, None where no photos are wanted."""
    from camkit.report import gallery, grade_tables, grades, html
    from camkit.report.study import load_study

    graded = []
    if any(analysis.block.of_mosaics for analysis in analyses):
        graded = [grade_tables.grade_grid(one) for one in grades.grade(load_study(folders, altered=True))]
    selections = gallery.within_limit([gallery.select(analysis.block) for analysis in analyses])
    found = {} if photos is None else gallery.find_photos(selections, *photos, say)
    return html.page(analyses, grids, legend, selections, found, graded, grade_tables.LEGEND)


@click.command(cls=Command)
@_folders
@click.option("--baseline", default="gradcam", show_default=True, metavar="METHOD", help="Compare with this.")
@click.option(
    "--across", is_flag=True, help="Only count under how many protocols a method beats the baseline."
)
@_output("terminal", "markdown", "csv", "latex")
@config_option("plugin")
@debug_option
def compare(
    folders: tuple[Path, ...],
    baseline: str,
    across: bool,
    style: str | None,
    out: Path | None,
    plugin: tuple[str, ...],
) -> None:
    """Each method's paired difference to a baseline: interval, corrected p value, images won.

    With results of several models, also average ranks over the models.

    \b
    Example:
      camkit compare results/local --baseline gradcam
    """
    from camkit.report import comparisons

    analyses = _analyses(folders, plugin)
    style = _style(style, out)
    named = _naming(style)
    found = comparisons.compare_all(analyses, baseline)
    if across:
        grids = comparisons.across_grids(found, named)
    else:
        grids = [grid for one in found for grid in comparisons.comparison_grids(one, named)]
        grids += [comparisons.rank_grid(table, named) for table in comparisons.rank_tables(analyses)]
    text = _render(style, grids, comparisons.LEGEND, lambda: comparisons.comparison_frame(found), out)
    _emit(text, out)


@click.command(cls=Command)
@_folders
@_output("terminal", "markdown", "csv", "latex")
@config_option("plugin")
@debug_option
def grade(folders: tuple[Path, ...], style: str | None, out: Path | None, plugin: tuple[str, ...]) -> None:
    """What each score is worth: what it notices of a misplaced map, and what chance does to it.

    Mosaics give what has a truth, photos the rest (docs/scores.md).

    \b
    Example:
      camkit grade results/mosaics results/photos

    \b
    after
      camkit bench --model resnet50 --data mosaic:/data/imagenet/val --limit 100 \\
        --method paper,controls,region,hirescam~all --metrics localisation,adcc,deletion,shape \\
        --save-maps -o results/mosaics
    """
    from camkit.plugins import load_plugins
    from camkit.report import grade_tables, grades
    from camkit.report.study import load_study

    load_plugins(plugin)
    reports = grades.grade(load_study(folders, say, altered=True))
    if not reports:
        raise UsageError("no score here is graded: those with a known answer are not (docs/scores.md)")
    grids = [grade_tables.grade_grid(one) for one in reports]
    frame = partial(grade_tables.grade_frame, reports)
    _emit(_render(_style(style, out), grids, grade_tables.LEGEND, frame, out), out)


@click.command(cls=Command)
@_folders
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="[default: DIR/figures]")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["png", "svg", "pdf"]),
    help="May be repeated.  [default: all three]",
)
@config_option("plugin")
@debug_option
def plot(
    folders: tuple[Path, ...], out: Path | None, formats: tuple[str, ...], plugin: tuple[str, ...]
) -> None:
    """Figures for a paper: scores with intervals, two scores, curves and, with several models, ranks.

    \b
    Example:
      camkit plot results/local --format pdf -o figures
    """
    from camkit.report.plots import FORMATS, write_figures

    analyses = _analyses(folders, plugin)
    for path in write_figures(analyses, out or folders[0] / "figures", formats or FORMATS):
        click.echo(str(path))
