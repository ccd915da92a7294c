"""Results on disk: per-image rows, run.json, summary.csv, and what a run finds there when it starts again.

    OUT/summary.csv                                  one row a cell
    OUT/<model>/predictions.csv                      what the model says of each image
    OUT/<model>/errors.csv                           images that could not be read (only if there are any)
    OUT/<model>/flags.csv                            degenerate maps (only if there are any)
    OUT/<model>/<layer>-<utility>/run.json           all that decided the numbers
    OUT/<model>/<layer>-<utility>/<method>.csv       one row an image

Tables are append-only logs while a run goes on: an image that gets another score later has a second row.
Reading merges such rows and drops a torn last line; :meth:`Table.compact` writes the merged table.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camkit.config import DEFAULT_METRICS
from camkit.csv_text import csv_line
from camkit.errors import CamkitError, UsageError
from camkit.registry import METHODS, METRICS
from camkit.statistics import cell_means

DEFINITIONS_VERSION = 1
KEYS = ("image", "label", "target", "probability")
# Names of files that are no valid UTF-8 survive the way through a CSV.
UTF8, ODD_NAMES = "utf-8", "surrogateescape"
# pandas cannot hold such names: for means and counts, their bytes are written out.
PANDAS_NAMES = "backslashreplace"


def file_name(name: str) -> str:
    """A model's, layer's or method's name as part of a path."""
    return name.replace("/", "__").replace(":", "__")


def score_columns(metrics: Iterable[str] = ()) -> list[str]:
    """The score columns of a per-image CSV: those of the default groups, then those of `metrics`."""
    groups = dict.fromkeys((*DEFAULT_METRICS, *metrics))
    return [column for group in groups for column in METRICS[group].columns]


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding=UTF8, errors=ODD_NAMES) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_text(path: Path) -> str:
    """A file as it is: line breaks within a name, and bytes that are no UTF-8, come back unchanged."""
    with path.open(newline="", encoding=UTF8, errors=ODD_NAMES) as file:
        return file.read()


def number(value: float) -> str:
    """Nine significant digits: a float32 comes back exactly."""
    return format(value, ".9g")


class Table:
    """An append-only CSV file whose rows are merged by a key when it is read.

    Args:
        columns: the header for a new file; a file that is there keeps the columns it has, and new ones are
            added behind them.
        keys: columns that identify a row.
    """

    def __init__(self, path: Path, columns: Sequence[str], keys: Sequence[str] = ("image",)) -> None:
        self.path = path
        self.keys = keys
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        present, whole = self._read()
        self.columns = list(dict.fromkeys([*present, *columns]))
        if not whole or (present and self.columns != present):
            self.compact()

    def _read(self) -> tuple[list[str], bool]:
        """Fill `rows`; give the file's columns, and whether it holds just these rows."""
        if not self.path.exists():
            return [], True
        text = read_text(self.path)
        records = list(csv.reader(io.StringIO(text, newline="")))
        if not records:
            return [], True
        whole = text.endswith("\n")
        header, *body = records if whole else records[:-1] or [[]]
        for record in body:
            if len(record) != len(header):
                whole = False  # torn by a crash
                continue
            row = dict(zip(header, record, strict=True))
            known = self.rows.setdefault(self._key(row), row)
            if known is not row:
                known.update({name: value for name, value in row.items() if value})
                whole = False
        return header, whole

    def _key(self, row: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(row[key] for key in self.keys)

    def _line(self, row: Mapping[str, str]) -> str:
        return csv_line(row.get(column, "") for column in self.columns)

    def append(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Add rows; they are on disk when this returns."""
        rows = list(rows)
        if not rows:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding=UTF8, errors=ODD_NAMES) as file:
            if new:
                file.write(csv_line(self.columns))
            file.writelines(self._line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            known = self.rows.setdefault(self._key(row), {})
            known.update({name: value for name, value in row.items() if value or name not in known})

    def compact(self, order: Mapping[str, int] | None = None) -> None:
        """Rewrite the file with one row a key, sorted by the place of `image` in `order` where given."""
        rows = list(self.rows.values())
        if order is not None:
            rows.sort(key=lambda row: order.get(row["image"], len(order)))
        text = csv_line(self.columns) + "".join(self._line(row) for row in rows)
        if not self.path.exists() or read_text(self.path) != text:
            write_atomically(self.path, text)


class Maps:
    """The signed maps of a cell (`--save-maps`): spooled batch by batch, one `.npz` at the end.

    The `.npz` holds `images` (N,), the names, and `maps` (N, h, w), float32, before ReLU.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spool = path.with_suffix(".maps")
        self.maps: dict[str, np.ndarray] = {}
        if path.exists():
            with np.load(path) as saved:
                self.maps = dict(zip(saved["images"].tolist(), saved["maps"], strict=True))
        if self.spool.exists():
            with self.spool.open("rb") as file:
                while (names := _load(file)) is not None and (maps := _load(file)) is not None:
                    self.maps |= dict(zip(names.tolist(), maps, strict=True))

    def append(self, images: Sequence[str], maps: np.ndarray) -> None:
        with self.spool.open("ab") as file:
            np.save(file, np.array(images))
            np.save(file, maps)
            file.flush()
            os.fsync(file.fileno())
        self.maps |= dict(zip(images, maps, strict=True))

    def finish(self, order: Mapping[str, int]) -> None:
        """Write the `.npz`, in the order of the run's images."""
        if not self.maps:
            return
        names = sorted(self.maps, key=lambda name: order.get(name, len(order)))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, images=np.array(names), maps=np.stack([self.maps[name] for name in names])
            )
        temporary.replace(self.path)
        self.spool.unlink(missing_ok=True)


def _load(file: io.BufferedReader) -> np.ndarray | None:
    """The next array of a spool, None at its end or where it is torn."""
    try:
        return np.load(file, allow_pickle=False)
    except (EOFError, ValueError, OSError):
        return None


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder of cells.

    Raises:
        CamkitError: it is not JSON.
    """
    path = folder / "run.json"
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CamkitError(f"{path} cannot be read ({error}): move it away, or use another --out") from error


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def run_folders(out: Path) -> list[Path]:
    """All folders of cells below a results folder."""
    return sorted(path.parent for path in out.glob("*/*/run.json"))


def check_protocol(out: Path, protocol: Mapping[str, Any], shared: Sequence[str]) -> None:
    """One results folder holds one protocol.

    Args:
        protocol: what decides the numbers of the cells about to run.
        shared: the entries of it that all models and layers of one folder have in common.

    Raises:
        UsageError: cells that are there were made with something else; the message names it.
    """
    for folder in run_folders(out):
        there = read_run(folder)["protocol"]
        same_cells = all(
            there.get(key) == protocol[key] for key in ("model", "layer", "utility") if key in protocol
        )
        names = protocol.keys() if same_cells else shared
        for name in names:
            if there.get(name) != protocol.get(name):
                old, new = (json.dumps(value.get(name), ensure_ascii=False) for value in (there, protocol))
                raise UsageError(
                    f"{out} holds results with another {name.replace('_', ' ')}: {old} in "
                    f"{folder.relative_to(out)}, now {new}.\nUse another --out."
                )


def flag_counts(path: Path) -> dict[tuple[str, str, str, str], int]:
    """(layer, utility, method, flag) -> number of images, from a model's flags.csv."""
    if not path.exists():
        return {}
    flags = pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding_errors=PANDAS_NAMES
    ).drop_duplicates()
    return flags.groupby(["layer", "utility", "method", "flag"]).size().to_dict()


def top1(path: Path) -> float:
    """Share of labelled images whose predicted class is their label; NaN without labels."""
    predictions = pd.read_csv(path, usecols=["label", "predicted"], encoding_errors=PANDAS_NAMES).dropna()
    return (
        float((predictions["label"] == predictions["predicted"]).mean()) if len(predictions) else float("nan")
    )


def summarise(out: Path) -> pd.DataFrame:
    """One row a cell of everything below `out`: counts, top-1 and the mean of each score."""
    summary = []
    for folder in run_folders(out):
        run = read_run(folder)
        protocol = run["protocol"]
        flags = flag_counts(folder.parent / "flags.csv")
        accuracy = top1(folder.parent / "predictions.csv")
        for method in sorted(run["methods"], key=_method_place):
            path = folder / f"{file_name(method)}.csv"
            if not path.exists():
                continue
            rows = pd.read_csv(
                path,
                dtype={"image": str},
                keep_default_na=False,
                na_values={"label": [""]},
                encoding_errors=PANDAS_NAMES,
            )
            columns = [column for column in rows.columns if column not in KEYS]
            rows[columns] = rows[columns].apply(pd.to_numeric, errors="coerce")
            cell = (protocol["layer"], protocol["utility"], method)
            summary.append(
                {
                    "model": protocol["model"],
                    "layer": protocol["layer"],
                    "utility": protocol["utility"],
                    "method": method,
                    "target_rule": protocol["target_rule"],
                    "images": len(rows),
                    "degenerate": flags.get((*cell, "degenerate"), 0),
                    "degenerate_masked": flags.get((*cell, "degenerate_masked"), 0),
                    "top1": accuracy,
                    **cell_means(rows, columns),
                }
            )
    return pd.DataFrame(summary)


def write_summary(out: Path, summary: pd.DataFrame) -> None:
    write_atomically(
        out / "summary.csv", summary.to_csv(index=False, float_format="%.9g", lineterminator="\n")
    )


def _method_place(name: str) -> tuple[int, str]:
    names = list(METHODS)
    return (names.index(name) if name in names else len(names), name)
