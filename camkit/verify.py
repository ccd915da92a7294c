"""`camkit verify`: recompute a seeded share of a finished run, and compare."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from camkit.benchmark import load_batches, make_evaluation
from camkit.config import RunConfig
from camkit.data import DataSet, Item, find_images
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import Cell, CellScores
from camkit.plugins import load_plugins
from camkit.prepare import Prepared, Say, find_methods, numerics, prepare
from camkit.provenance import describe_protocol, unlike
from camkit.results import file_name, read_run, run_folders, summarise, summary_text
from camkit.tables import Row, merge_rows

SHARE, AT_LEAST = 0.01, 5
TOLERANCE = 1e-5
# These jump: a curve changes with the order of nearly equal pixels, which machines round differently.
CURVE_TOLERANCE = 1e-3
CURVES = ("deletion_auc", "insertion_auc")


@dataclass(frozen=True)
class Check:
    """One cell of a verified folder, in the terms of the command's table.

    Attributes:
        images: how many were recomputed.
        values: how many recorded values were compared.
        differing: how many are further away than the tolerance allows.
        largest: the largest difference, and `column` where it is.
    """

    model: str
    layer: str
    utility: str
    method: str
    images: int
    values: int
    differing: int
    largest: float
    column: str


def verify(folder: Path, config: RunConfig, say: Say = print) -> pd.DataFrame:
    """Recompute 1 % of a results folder's images, at least five, and compare every recorded value.

    Nothing in the folder is changed. `summary.csv` is also made again from the rows, and compared.

    Args:
        config: where the data are, the weights' file where there is one, the device, and the seed that
            picks the images; all that decides a number comes from the folder's run.json.
        say: takes each line that the user should see.

    Returns:
        One row a cell, see :class:`Check`.

    Raises:
        UsageError: there are no results in the folder, or data or weights are not those of the run.
        CamkitError: `summary.csv` does not follow from the rows.
    """
    load_plugins(config.plugin)
    folders = run_folders(folder)
    if not folders:
        raise UsageError(f"{folder}: no results there")
    path = folder / "summary.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != summary_text(summarise(folder)):
        raise CamkitError(f"{path} does not follow from the rows beside it: they were changed after the run")
    checks: list[Check] = []
    for cells in folders:
        protocol = read_run(cells)["protocol"]
        say(f"{protocol['model']}, {protocol['layer']}, {protocol['utility']}")
        checks += _verify_cells(cells, config, say)
    return pd.DataFrame(checks)


def _verify_cells(folder: Path, config: RunConfig, say: Say) -> Iterator[Check]:
    run = read_run(folder)
    if not run["segments"]:
        raise UsageError(f"{folder}: this run has not made a row yet")
    config = _as_it_ran(run, config)
    protocol = run["protocol"]
    data = find_images(config.data, config.seed, config.layout, config.labels)
    if data.fingerprint != protocol["data_fingerprint"]:
        raise UsageError(
            f"--data {config.data} is not the data of this run (another fingerprint); "
            f"that was named {run['segments'][-1]['data']!r}"
        )
    with numerics(config.tf32, config.deterministic):
        prepared = prepare(config.model[0], config.layer, data.items, config, say)
        recorded = {method: _rows(folder / f"{file_name(method)}.csv") for method in run["methods"]}
        names = {image for rows in recorded.values() for image in rows}
        items = _pick([item for item in data.items if item.id in names], config.seed)
        made = _recompute(prepared, config, data, protocol, items)
    for method, rows in recorded.items():
        yield _compare(protocol, method, rows, made.get(method, {}))


def _as_it_ran(run: Mapping[str, Any], config: RunConfig) -> RunConfig:
    """The settings of a folder of cells; `config` gives what run.json cannot know."""
    protocol, segment = run["protocol"], run["segments"][-1]
    if protocol["weights"] == "file" and config.weights in ("pretrained", "random"):
        raise UsageError(f"the weights were a file, {segment['weights_file']}: name it with --weights FILE")
    kept = ("steps", "preprocess", "exif", "dtype", "seed", "absent", "budget")
    return replace(
        config,
        model=(protocol["model"],),
        layer=(protocol["layer"],),
        utility=(protocol["utility"],),
        method=tuple(run["methods"]),
        metrics=tuple(run["metrics"]),
        target=protocol["target_rule"],
        weights=config.weights if protocol["weights"] == "file" else protocol["weights"],
        batch_size=segment["batch_size"],  # the same shape of every pass: the same bits on the same machine
        tf32=segment["tf32"],
        deterministic=segment["deterministic"],
        **{name: protocol[name] for name in kept},
    )


def _rows(path: Path) -> dict[str, Row]:
    return {image: row for (image,), row in merge_rows([path])[1].items()}


def _pick(items: Sequence[Item], seed: int) -> list[Item]:
    wanted = min(len(items), max(AT_LEAST, math.ceil(SHARE * len(items))))
    return random.Random(f"verify {seed}").sample(list(items), wanted)


def _recompute(
    prepared: Prepared, config: RunConfig, data: DataSet, protocol: Mapping[str, Any], items: Sequence[Item]
) -> dict[str, dict[str, dict[str, float]]]:
    """Method -> image -> column -> value, `target` among the columns."""
    (layer,), (utility,) = config.layer, config.utility
    cells = [Cell(layer, prepared.paths[layer], utility, method) for method in find_methods(config.method)]
    difference = unlike(protocol, describe_protocol(prepared, cells[0], config, data))
    if difference:
        raise UsageError(f"this is not what the run was made with: another {difference}")
    evaluation = make_evaluation(prepared, config, int(config.batch_size))
    made: dict[str, dict[str, dict[str, float]]] = {}
    for batch in load_batches(prepared, config, items, int(config.batch_size)):
        for result in evaluation.run(batch, dict.fromkeys(cells, config.metrics)):
            if isinstance(result, CellScores):
                images = made.setdefault(result.cell.method.name, {})
                for place, item in enumerate(result.items):
                    scores = {name: values[place] for name, values in result.scores.items()}
                    images[item.id] = {"target": float(result.target[place]), **scores}
    return made


def _compare(
    protocol: Mapping[str, Any],
    method: str,
    rows: Mapping[str, Row],
    made: Mapping[str, Mapping[str, float]],
) -> Check:
    """Every value that the run recorded for an image that was recomputed."""
    differences: list[tuple[float, str]] = []
    for image, values in made.items():
        for column, value in values.items():
            text = rows.get(image, {}).get(column, "")
            if text:
                was = float(text)
                same = was == value or (math.isnan(was) and math.isnan(value))
                gap = 0.0 if same else abs(was - value)
                differences.append((math.inf if math.isnan(gap) else gap, column))
    largest, column = max(differences, default=(0.0, ""))
    return Check(
        protocol["model"],
        protocol["layer"],
        protocol["utility"],
        method,
        len(made),
        len(differences),
        sum(gap > (CURVE_TOLERANCE if name in CURVES else TOLERANCE) for gap, name in differences),
        largest,
        column if largest else "",
    )
