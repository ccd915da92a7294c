"""The commands that read results: report, compare and plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from camkit.errors import CamkitError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from camkit.report.analysis import Analysis
    from camkit.report.grid import Grid

SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html"}


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


def _style(style: str | None, out: Path | None) -> str:
    return style or (SUFFIXES.get(out.suffix.lower(), "terminal") if out else "terminal")


def _emit(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(click.unstyle(text), encoding="utf-8", errors="replace")
    click.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB)" if out.suffix == ".html" else str(out))


def _render(style: str, grids: list[Grid], legend: tuple[str, ...], frame: Callable[[], pd.DataFrame]) -> str:
    from camkit.report import grid

    if style == "csv":
        return frame().to_csv(index=False, float_format="%.9g", lineterminator="\n")
    return {"terminal": grid.terminal, "markdown": grid.markdown, "latex": grid.latex}[style](grids, legend)


@click.command()
@_folders
@_output("terminal", "markdown", "csv", "latex", "html")
@click.option(
    "--against", type=click.Choice(["paper"]), help="Compare with the published figures (arXiv 2501.06261)."
)
@click.option("--strict", is_flag=True, help="With --against: exit code 1 where a full-set figure is off.")
def report(
    folders: tuple[Path, ...], style: str | None, out: Path | None, against: str | None, strict: bool
) -> None:
    """The table of results: means with 95 % intervals, marks, controls, and audit lines.

    \b
    Examples:
      camkit report results/local
      camkit report results/local -o table.tex
      camkit report results/local --against paper --strict
    """
    from camkit.report import tables
    from camkit.report.analysis import Analysis
    from camkit.report.study import load_study

    if strict and not against:
        raise UsageError("--strict goes with --against paper")
    style = _style(style, out)
    study = load_study(folders)
    analyses = [Analysis(block) for block in study]
    if against:
        _report_against_paper(analyses, style, out, strict)
        return
    grids = [tables.score_grid(analysis, study) for analysis in analyses]
    _emit(_render(style, grids, tables.LEGEND, lambda: tables.score_frame(analyses)), out)


def _report_against_paper(analyses: list[Analysis], style: str, out: Path | None, strict: bool) -> None:
    from camkit.report import paper

    checks, left_out = paper.check_all(analyses)
    verdict = [*paper.verdict(checks), *paper.randomcam_lines(checks), *left_out]
    grids = [paper.check_grid(found) for found in checks]
    _emit(_render(style, grids, (*paper.LEGEND, *verdict), lambda: paper.check_frame(checks)), out)
    if out is not None or style == "csv":
        click.echo("\n".join(verdict), err=True)
    if strict and any(found.full and found.off.any() for found in checks):
        raise CamkitError("a figure over the full set is off (--strict)")


@click.command()
@_folders
@click.option("--baseline", default="gradcam", show_default=True, metavar="METHOD", help="Compare with this.")
@_output("terminal", "markdown", "csv", "latex")
def compare(folders: tuple[Path, ...], baseline: str, style: str | None, out: Path | None) -> None:
    """Each method's paired difference to a baseline: interval, corrected p value, images won.

    With results of several models, also average ranks over the models.

    \b
    Example:
      camkit compare results/local --baseline gradcam
    """
    from camkit.report import comparisons
    from camkit.report.analysis import Analysis
    from camkit.report.study import load_study

    analyses = [Analysis(block) for block in load_study(folders)]
    found = comparisons.compare_all(analyses, baseline)
    grids = [grid for one in found for grid in comparisons.comparison_grids(one)]
    grids += [comparisons.rank_grid(table) for table in comparisons.rank_tables(analyses)]
    text = _render(_style(style, out), grids, comparisons.LEGEND, lambda: comparisons.comparison_frame(found))
    _emit(text, out)
