"""The scores as people read them: headings, directions, and one plain line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.entries import METHODS, METRICS, Column, Method, all_columns
from camkit.errors import UsageError
from camkit.results.summary import method_place

# What each ShapleyCAM turns into where the Hessian term is zero.
WITHOUT_HESSIAN = {"shapleycam": "gradcam", "shapleycam-h": "hirescam", "shapleycam-e": "gradcam-e"}


@dataclass(frozen=True)
class Score:
    """A score column as tables show it; `name` is its name in the CSV files."""

    name: str
    declared: Column

    @property
    def short(self) -> str:
        """The field's name for it."""
        return self.declared.heading or self.name

    @property
    def plain(self) -> str:
        """What it means, one sentence."""
        return self.declared.text or self.short

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where it is no score of the map."""
        return {"higher": 1, "lower": -1}.get(self.declared.better, 0)

    @property
    def heading(self) -> str:
        """The short name with an arrow to the better side."""
        return f"{self.short} {' ↑↓'[self.sign]}".rstrip()


def known_scores(columns: Iterable[str]) -> list[Score]:
    """The scores among `columns`, in the tables' order; columns that no metric declares are left out.

    Metrics stand as they are registered, their columns by their places; what is no score of a map comes last.
    """
    numbered = sorted(enumerate(METRICS.values()), key=lambda one: len(one[1].columns))
    places = {  # of a column of two groups, the larger one's: `shape` must not take complexity from `adcc`
        name: (column.better == "neither", number, column.place)
        for number, metric in numbered
        for name, column in metric.columns.items()
    }
    declared, present = all_columns(), set(columns)
    return [
        Score(name, declared[name]) for name in sorted(places, key=lambda n: places[n]) if name in present
    ]


def _known(name: str) -> Method | None:
    """A method, as far as it is known here.

    None of other packages' explainers, which are not imported for a table, and of a plugin's methods, which
    whoever reads the results need not have.
    """
    try:
        return None if ":" in name else METHODS[name]
    except UsageError:
        return None


def _is_in(name: str, group: str) -> bool:
    method = _known(name)
    return method is not None and group in method.groups


def is_control(name: str) -> bool:
    return _is_in(name, "controls")


def is_ceiling(name: str) -> bool:
    """Whether it shows what a map can reach, and is no method to compare with."""
    return _is_in(name, "ceilings")


def is_blind(name: str) -> bool:
    """Whether a method's map is the same for every image."""
    method = _known(name)
    return method is not None and method.blind


def of_one_layer(name: str) -> bool:
    """Whether a method's map is that of the layer that is named; True where that is unknown."""
    method = _known(name)
    return method is None or method.of_one_layer


def table_place(name: str) -> tuple[int, int, str]:
    """Sorts methods as tables show them: then the controls, then the ceilings."""
    return 2 * is_ceiling(name) + is_control(name), *method_place(name)


Naming = Callable[[str], str]  # a method's identifier -> the name that a table shows


def identifier(name: str) -> str:
    """The name as commands and CSV files have it."""
    return name


def title_of(name: str) -> str:
    """A method's name for people."""
    method = _known(name)
    return name if method is None else method.title
