"""A results folder: what lies where, run.json, and summary.csv.

OUT/summary.csv                                  one row per cell
OUT/<model>/predictions.csv                      what the model says of each image
OUT/<model>/classes.csv                          the model's classes, where they are not ImageNet's
OUT/<model>/errors.csv                           images that could not be read (only if there are any)
OUT/<model>/failures.csv                         plugin errors (likewise)
OUT/<model>/flags.csv                            degenerate maps and other odd cases (likewise)
OUT/<model>/<layer>-<utility>/run.json           all that decided the numbers
OUT/<model>/<layer>-<utility>/<method>.csv       one row per image
OUT/.parts/rank-<k>/<model>/…                    the same of one of several processes, until it is merged
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camkit.data import ClassList
from camkit.data.classfiles import read_class_file
from camkit.errors import CamkitError
from camkit.results.columns import IMAGE, ROW
from camkit.results.files import ODD_NAMES, UTF8, write_atomically
from camkit.results.table import Table, csv_line, merge_rows, read_fields

DEFINITIONS_VERSION = 2  # docs/definitions.md says what each changed
PREDICTIONS, ERRORS, FLAGS, CLASSES = "predictions.csv", "errors.csv", "flags.csv", "classes.csv"
FAILURES = "failures.csv"
GIVEN = "given"  # in run.json: methods whose maps come from elsewhere, and where from
PREDICTED_NAME = "predicted_name"  # follows from the class and the list
# Of each table of a model: its columns, and those that identify a row.
MODEL_TABLES = {
    PREDICTIONS: (("image", "label", "predicted", "probability", PREDICTED_NAME), ("image",)),
    ERRORS: (("image", "stage", "reason"), ("image",)),
    FAILURES: (
        ("layer", "utility", "method", "image", "reason", "scored"),
        ("layer", "utility", "method", "image", "reason"),
    ),
    FLAGS: (
        ("layer", "utility", "method", "image", "flag"),
        ("layer", "utility", "method", "image", "flag"),
    ),
}


def write_classes(folder: Path, classes: ClassList) -> None:
    """Keep a model's class list, in a form that `--classes` reads."""
    wnids = classes.wnids or ("",) * len(classes)
    rows = zip(map(str, range(len(classes))), classes.names, wnids, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CLASSES, "".join(csv_line(row) for row in (("index", "name", "wnid"), *rows)))


def read_classes(folder: Path) -> ClassList | None:
    """A model's class list that is not ImageNet's; None where its folder holds none."""
    return read_class_file(folder / CLASSES) if (folder / CLASSES).exists() else None


def model_table(folder: Path, name: str, also: Iterable[Path] = ()) -> Table:
    """One of a model's own tables; `also`: the same model's folders in other places."""
    columns, keys = MODEL_TABLES[name]
    return Table(folder / name, columns, keys, [other / name for other in also])


def file_name(name: str) -> str:
    """A model's, layer's or method's name as part of a path."""
    return name.replace("/", "__").replace(":", "__")


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder of cells.

    Raises:
        CamkitError: it is not JSON.
    """
    path = folder / "run.json"
    try:
        return json.loads(path.read_text(encoding=UTF8, errors=ODD_NAMES))
    except (OSError, ValueError) as error:
        raise CamkitError(f"{path} cannot be read ({error}): move it away, or use another --out") from error


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def run_folders(out: Path) -> list[Path]:
    """All folders of cells below a results folder, `layer2` before `layer10`."""
    return sorted((path.parent for path in out.glob("*/*/run.json")), key=_natural)


def _natural(folder: Path) -> list[tuple[str, int]]:
    """Sorts a folder of cells by its model's and its own name, numbers in them by their value."""
    parts = (re.findall(r"(\D*)(\d*)", name) for name in folder.parts[-2:])
    return [(text, int(number or -1)) for part in parts for text, number in part] + [(folder.name, 0)]


def flag_counts(path: Path) -> Counter[tuple[str, str, str, str]]:
    """(layer, utility, method, flag) -> number of images, from a model's flags.csv."""
    columns, keys = MODEL_TABLES[FLAGS]
    rows = merge_rows([path], keys)[1].values()
    return Counter((row["layer"], row["utility"], row["method"], row["flag"]) for row in rows)


def model_counts(folder: Path, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of a folder of cells: unreadable images, and method -> flag -> number of images."""
    flags: dict[str, dict[str, int]] = {}
    for (layer, utility, method, flag), images in sorted(flag_counts(folder.parent / FLAGS).items()):
        if (layer, utility) == (protocol["layer"], protocol["utility"]):
            flags.setdefault(method, {})[flag] = images
    return {"errors": len(merge_rows([folder.parent / ERRORS])[1]), "flags": flags}


def top1(path: Path) -> float:
    """Share of labelled images whose predicted class is their label; NaN without labels."""
    rows = merge_rows([path])[1].values()
    hits = [row["label"] == row["predicted"] for row in rows if row["label"]]
    return sum(hits) / len(hits) if hits else float("nan")


def read_scores(path: Path) -> pd.DataFrame:
    """The numbers of a per-image CSV by image, also while a run is writing it; the first value stands.

    Empty, without columns too, where the run that made the file was killed before its first row.

    Raises:
        CamkitError: the file is no table of scores.
    """
    header, records = read_fields(path)
    if not records:
        return pd.DataFrame()
    rows = pd.DataFrame(records, columns=header, dtype=object)
    missing = [name for name in ROW if name not in header]
    if missing:
        raise CamkitError(f"{path}: not a table of scores (no column {', '.join(missing)})")
    texts = [name for name, column in ROW.items() if not column.is_number and name != IMAGE]
    rows = rows.set_index(IMAGE).drop(columns=texts).apply(pd.to_numeric, errors="coerce").astype(np.float64)
    return rows if rows.index.is_unique else rows.groupby(level=0, sort=False).first()
