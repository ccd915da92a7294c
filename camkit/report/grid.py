"""A table for people, and how it looks in a terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click
from tabulate import MIN_PADDING, SEPARATING_LINE, tabulate


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        text: as shown; `bold` and `underline` where the format allows; `detail` stands behind it.
        value: what it sorts by.
        hint: more about it, in few words; in the page only.
    """

    text: str
    value: float | None = None
    bold: bool = False
    underline: bool = False
    detail: str = ""
    hint: str = ""

    @property
    def key(self) -> float | None:
        """What it sorts by, if that is a number."""
        return None if self.value is None or not math.isfinite(self.value) else self.value


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: of this table, such as the model; `caption`: of the tables with the same protocol.
        groups: rows in groups with a line between them; a row begins with its name.
        notes: lines below the table.
        sortable: its rows mean the same in any order.
    """

    title: str
    caption: str
    headings: tuple[str, ...]
    groups: tuple[tuple[tuple[Entry, ...], ...], ...]
    notes: tuple[str, ...] = ()
    sortable: bool = True


def terminal(
    grids: Sequence[Grid],
    legend: Sequence[str] = (),
    remarks: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Text with ANSI styles; :func:`click.unstyle` takes them out.

    Args:
        width: in letters. A table that is wider goes on below, with the first column again; a column that is
            too wide beside the first one stays so. None: as wide as it is.
    """

    def styled(cell: Entry) -> str:
        style = cell.bold or cell.underline
        text = click.style(cell.text, bold=cell.bold, underline=cell.underline) if style else cell.text
        return f"{text} {cell.detail}" if cell.detail else text

    def filled(text: str, indent: str = "") -> str:
        if width is None:
            return indent + text
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        wrapper.initial_indent = wrapper.subsequent_indent = indent
        return wrapper.fill(text)

    blocks = []
    for grid in grids:
        parts = [
            tabulate(
                _rows(part, styled, line=[SEPARATING_LINE]),
                part.headings,
                tablefmt="simple",
                disable_numparse=True,
                stralign="right",
                colalign=("left",),
            )
            for part in _narrow(grid, width)
        ]
        title = click.style(filled(grid.title), bold=True)
        notes = [filled(note, "  ") for note in grid.notes]
        blocks.append("\n".join([title, "\n\n".join(parts), *notes]))
    words = "\n".join(map(filled, (*legend, *remarks)))
    return "\n\n".join([*blocks, *([words] if words else [])]) + "\n"


BETWEEN = 2  # blanks between two columns of a table in the terminal


def _narrow(grid: Grid, width: int | None) -> list[Grid]:
    """The grid in parts of its columns that are at most `width` letters wide, the first column in each."""
    rows = [row for group in grid.groups for row in group]
    widths = [
        max(
            [
                len(heading) + MIN_PADDING,
                *(len(f"{row[place].text} {row[place].detail}".rstrip()) for row in rows),
            ]
        )
        for place, heading in enumerate(grid.headings)
    ]
    parts: list[list[int]] = [[0]]
    for place in range(1, len(widths)):
        needed = sum(widths[one] + BETWEEN for one in parts[-1]) + widths[place]
        if width is not None and needed > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(place)
    return [
        replace(
            grid,
            headings=tuple(grid.headings[place] for place in part),
            groups=tuple(tuple(tuple(row[place] for place in part) for row in g) for g in grid.groups),
        )
        for part in parts
    ]


def markdown(grids: Sequence[Grid], legend: Sequence[str] = (), remarks: Sequence[str] = ()) -> str:
    """Pipe tables; underlining is HTML, which Markdown lets through."""

    def marked(cell: Entry) -> str:
        text = re.sub(r"([\\`*_|<>\[\]])", r"\\\1", cell.text)
        text = f"**{text}**" if cell.bold else text
        text = f"<u>{text}</u>" if cell.underline else text
        return f"{text} {cell.detail}" if cell.detail else text

    blocks = []
    for grid in grids:
        rows = _rows(grid, marked, line=["—", *[""] * (len(grid.headings) - 1)])
        align = ("left", *["right"] * (len(grid.headings) - 1))
        table = tabulate(rows, grid.headings, tablefmt="pipe", disable_numparse=True, colalign=align)
        notes = [f"- {note}" for note in grid.notes]
        blocks.append("\n\n".join(part for part in (f"### {grid.title}", table, "\n".join(notes)) if part))
    return "\n\n".join([*blocks, *legend, *remarks]) + "\n"


def _rows(grid: Grid, render: Callable[[Entry], str], line: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for group in grid.groups:
        if rows and group:
            rows.append(line)
        rows += [[render(cell) for cell in row] for row in group]
    return rows


LATEX_LETTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "–": "--", "—": "---", "·": r"$\cdot$",
    "×": r"$\times$", "≤": r"$\le$", "’": "'",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text for LaTeX; letters beyond ASCII that have no command here become `?`."""
    return "".join(LATEX_LETTERS.get(c, c if c.isascii() else "?") for c in text)


def latex(grids: Sequence[Grid], legend: Sequence[str] = (), remarks: Sequence[str] = ()) -> str:
    """A document that compiles as it is: one booktabs table per grid; long ones in parts, a page each.

    The legend is in each caption; remarks on the whole stand behind the tables.
    """

    def marked(cell: Entry) -> str:
        text = escape_latex(cell.text)
        text = rf"\textbf{{{text}}}" if cell.bold else text
        text = rf"\underline{{{text}}}" if cell.underline else text
        return rf"{text} {{\scriptsize {escape_latex(cell.detail)}}}" if cell.detail else text

    tables = []
    for grid in grids:
        rows = [(place == 0, row) for group in grid.groups for place, row in enumerate(group)]
        for start in range(0, len(rows), LATEX_ROWS):
            title = escape_latex(grid.title) + (" (continued)" if start else "")
            body = [rf"\multicolumn{{{len(grid.headings)}}}{{l}}{{\textit{{{title}}}}} \\"]
            for place, (first, row) in enumerate(rows[start : start + LATEX_ROWS]):
                if first or place == 0:
                    body.append(r"\midrule")
                body.append(" & ".join(marked(cell) for cell in row) + r" \\")
            last = start + LATEX_ROWS >= len(rows)
            tables.append(LATEX_TABLE % {
                "caption": escape_latex(" ".join([grid.caption, *legend])),
                "columns": "l" + "r" * (len(grid.headings) - 1),
                "headings": " & ".join(escape_latex(heading) for heading in grid.headings),
                "body": "\n".join(body),
                "notes": escape_latex(" ".join(grid.notes)) if last else "",
            })  # fmt: skip
    return LATEX_DOCUMENT % "\n".join([*tables, *(f"{escape_latex(remark)}\n" for remark in remarks)])


# Of a table that fits on a page with its caption and notes; three rows per method (`--against paper`) stay
# together.
LATEX_ROWS = 42
LATEX_TABLE = r"""\begin{table}[H]
\centering
\caption{%(caption)s}
\setlength{\tabcolsep}{3pt}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%%
\begin{tabular}{%(columns)s}
\toprule
%(headings)s \\
\midrule
%(body)s
\bottomrule
\end{tabular}}

\medskip
\begin{minipage}{\linewidth}\scriptsize
%(notes)s
\end{minipage}
\end{table}
"""

LATEX_DOCUMENT = r"""%% Compiles as it is. A paper that takes a table over loads booktabs, float and graphicx.
\documentclass{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{float}
\usepackage{graphicx}
\begin{document}
%s
\end{document}
"""
