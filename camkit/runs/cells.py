"""What the names of a run stand for: models, methods, and the cells of a model."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

import camkit.methods
import camkit.metrics
import camkit.network.utilities  # noqa: F401  (all three fill registries)
from camkit.config import RunConfig
from camkit.entries import COSTLY, METHODS, Method
from camkit.errors import CamkitError, Say, UsageError
from camkit.methods.altered import expand
from camkit.methods.fusion import at_layer
from camkit.network.models import PAPER_ROWS, find_row
from camkit.network.passes import Network
from camkit.network.prepare import Prepared
from camkit.registry import ALL, unknown_name
from camkit.results.cells import Cell

NO_REGIONS = "these data do not say where the class is (camkit bench --regions, or --data mosaic:PATH)"


def find_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name or by group (`paper`, `controls`, `all`: without the costly), each once.

    Raises:
        UsageError: a name is neither.
    """
    groups = METHODS.groups
    found: dict[str, Method] = {}
    for name in (each for given in names for each in expand(given)):
        if not METHODS.knows(name) and name not in groups:
            also = f"; and {', '.join(METHODS.forms)}; groups: {', '.join(sorted(groups - {ALL}))}, {ALL}"
            raise unknown_name("method", name, METHODS, also)
        grouped = [
            m for m in METHODS.values() if name in m.groups or (name == ALL and COSTLY not in m.groups)
        ]
        found |= {member.name: member for member in grouped or [METHODS[name]]}
    return list(found.values())


def find_models(names: Iterable[str]) -> list[str]:
    """Model names, `all` being the paper's twelve.

    Raises:
        UsageError: a model does not exist.
    """
    listed = [row.name for name in names for row in (PAPER_ROWS if name == ALL else [find_row(name)])]
    return list(dict.fromkeys(listed))


def cells_of(summary: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The rows of a run's cells in a summary that may hold others too; under `--layer all` of every layer."""
    methods = [method.name for method in find_methods(config.method)]
    return summary[
        summary["model"].isin(find_models(config.model))
        & (summary["layer"].isin(config.layer) | (ALL in config.layer))
        & summary["utility"].isin(config.utility)
        & summary["method"].isin(methods)
    ]


def cells_of_model(prepared: Prepared, config: RunConfig, say: Say = lambda line: None) -> list[Cell]:
    """All cells of one model in a run: its layers by its utilities by its methods.

    Methods that this model or a layer cannot have are left out, and said; one that was named, and no layer
    can have, is refused.

    Raises:
        UsageError: a method does not exist.
        CamkitError: a method was named that the model cannot have, or it can have none of a group.
    """
    cells = []
    named = prepared.layers(config.layer)
    for found in find_methods(config.method):
        if lacking_in_data(found, config):
            continue
        lacking: dict[str, list[str]] = {}  # why -> the layers
        for layer in named:
            method = at_layer(found, prepared.paths[layer])
            why = what_is_lacking(method, prepared.network, prepared.paths[layer])
            if why:
                lacking.setdefault(why, []).append(layer)
            else:
                cells += [Cell(layer, prepared.paths[layer], utility, method) for utility in config.utility]
        for why, layers in lacking.items():
            line = f"{prepared.loaded.row.name}, layer {', '.join(layers)}: {found.name}: {why}"
            if found.name in config.method and not any(cell.method.name == found.name for cell in cells):
                raise CamkitError(line)
            say(f"{line}; left out")
    if not cells:
        raise CamkitError(
            f"{prepared.loaded.row.name} can have none of the methods {', '.join(config.method)}"
        )
    order = {utility: place for place, utility in enumerate(config.utility)}
    places = {layer: place for place, layer in enumerate(named)}
    return sorted(cells, key=lambda cell: (places[cell.layer], order[cell.utility]))


def what_is_lacking(method: Method, network: Network, path: str) -> str:
    """Why a network or its layer cannot have a method; "" where they can."""
    return method.lacks(network, path) if method.lacks else ""


def check_located(config: RunConfig) -> None:
    """Scores of where the class is are asked for only where that is known.

    Raises:
        UsageError: it is not.
    """
    if "localisation" in config.metrics and not config.has_regions:
        raise UsageError(f"--metrics localisation: {NO_REGIONS}")


def lacking_in_data(method: Method, config: RunConfig) -> str:
    """Why a run over these data cannot have a method; "" where it can."""
    if "tiles" in method.uses and not config.of_mosaics:
        return "it changes tiles of mosaics (camkit bench --data mosaic:PATH)"
    return NO_REGIONS if "regions" in method.uses and not config.has_regions else ""
