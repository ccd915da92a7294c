"""Folding the parts of a run that several processes divided into one results folder; it can be repeated."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from camkit.errors import UsageError
from camkit.results.arrays import Curves, Maps, curve_paths
from camkit.results.columns import row_columns
from camkit.results.files import remove_temporaries, write_atomically, writing
from camkit.results.folder import (
    ERRORS,
    MODEL_TABLES,
    PREDICTIONS,
    file_name,
    model_counts,
    model_table,
    read_run,
    run_folders,
    write_run,
)
from camkit.results.lock import LOCK, InUse, hold
from camkit.results.protocol import check_agreement, check_protocol
from camkit.results.segments import credit, merge_segments
from camkit.results.summary import summarise, write_summary
from camkit.results.table import Table, merge_rows, render
from camkit.share import PARTS, part_folders

# Seconds to wait for the lock of the whole folder, which others hold while they write a summary.
PATIENCE = 300.0
ORDER = "order.csv"


def merge(out: Path) -> pd.DataFrame:
    """Fold all parts of a results folder into it, and write its summary.csv.

    Returns:
        The summary.

    Raises:
        UsageError: there is no such results folder, or what is in it disagrees.
        CamkitError: a run is at work there, or files cannot be written.
    """
    if not out.is_dir():
        raise UsageError(f"{out}: no such results folder")
    order = read_order(out)
    for model in sorted(
        {folder.name for part in part_folders(out) for folder in part.iterdir() if folder.is_dir()}
    ):
        with hold(out / model):
            fold(out, model, order)
    check_agreement(out)
    return refresh_summary(out)


def refresh_summary(out: Path) -> pd.DataFrame:
    """Write summary.csv from the rows that are there, if any; the last run to end has them all."""
    with hold(out, PATIENCE):
        remove_temporaries(out)
        _remove_folded_parts(out)
        summary = summarise(out)
        if len(summary):
            write_summary(out, summary)
    return summary


def write_order(out: Path, order: Mapping[str, int]) -> None:
    """Keep the order of the data set's images beside the parts: a merge has to sort by it."""
    folder = out / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ORDER, render(["image"], ({"image": image} for image in order)))


def read_order(out: Path) -> dict[str, int]:
    """Image -> place; empty where there are no parts."""
    return {image: place for place, (image,) in enumerate(merge_rows([out / PARTS / ORDER])[1])}


def _remove_folded_parts(out: Path) -> None:
    """Remove the parts' folder once all models in it have been folded."""
    with suppress(OSError):  # it is not there, or parts are still in it
        for part in part_folders(out):
            part.rmdir()
        (out / PARTS / ORDER).unlink(missing_ok=True)
        (out / PARTS).rmdir()


def fold(out: Path, model: str, order: Mapping[str, int], busy: bool = False) -> None:
    """Fold the parts of one model into OUT/<model>, whose lock the caller holds, and remove them.

    Every file is written whole before a part is removed: killed anywhere, it can be done again. A part that
    has been counted loses its run.json at once: only killed just between, run.json counts its images twice.

    Args:
        order: image -> place.
        busy: leave parts alone in which a process is at work.

    Raises:
        UsageError: the parts' protocols disagree.
        CamkitError: a run is at work in a part, or files cannot be written.
    """
    there = [part / model for part in part_folders(out) if (part / model).is_dir()]
    with ExitStack() as locks:
        parts = [part for part in there if _hold_part(locks, part, busy)]
        (out / model).mkdir(parents=True, exist_ok=True)
        for name in MODEL_TABLES:
            model_table(out / model, name, parts).compact(order)
        for cells in sorted({run.parent.name for part in parts for run in part.glob("*/run.json")}):
            _fold_cells(out, out / model / cells, [part / cells for part in parts], order)
        for part in parts:
            shutil.rmtree(part)


def is_whole(out: Path, model: str, images: Iterable[str]) -> bool:
    """Whether no part of a model is left, and each of its images was classified or could not be read."""
    left = any((part / model).is_dir() for part in part_folders(out))
    known = merge_rows([out / model / PREDICTIONS, out / model / ERRORS])[1]
    return not left and all((image,) in known for image in images)


def _hold_part(locks: ExitStack, part: Path, busy: bool) -> bool:
    try:
        locks.enter_context(hold(part))
    except InUse:
        if busy:
            return False
        raise
    return True


def _fold_cells(out: Path, folder: Path, parts: Sequence[Path], order: Mapping[str, int]) -> None:
    parts = [part for part in parts if (part / "run.json").exists()]
    runs = [read_run(part) for part in parts]
    for run in runs:
        check_protocol([out, *part_folders(out)], run["protocol"])
    merged: dict[str, Any] = (
        read_run(folder) if (folder / "run.json").exists() else {**runs[0], "segments": []}
    )
    for name in ("methods", "metrics"):
        merged[name] = list(dict.fromkeys(value for run in (merged, *runs) for value in run[name]))
    folder.mkdir(parents=True, exist_ok=True)
    columns = row_columns(merged["metrics"])
    for method in merged["methods"]:
        name = f"{file_name(method)}.csv"
        for part, run in zip(parts, runs, strict=True):
            rows = merge_rows([part / name])[1]
            credit(run["segments"], {method: [order[image] for (image,) in rows if image in order]})
        Table(folder / name, columns, also=[part / name for part in parts]).compact(order)
        for name in {path.name for part in parts for path in curve_paths(part, file_name(method))}:
            Curves(folder / name, also=[part / name for part in parts]).finish(order)
        Maps(
            folder / f"{file_name(method)}.npz", [part / f"{file_name(method)}.npz" for part in parts]
        ).finish(order)
    for run in runs:
        merge_segments(merged["segments"], run["segments"])
    write_run(folder, merged | model_counts(folder, merged["protocol"]))
    for part in parts:
        (part / "run.json").unlink()


def set_aside(out: Path) -> Path | None:
    """Move a results folder to OUT.<time>; None where there is none.

    Raises:
        UsageError: it is the working directory, or holds that.
        CamkitError: a run is at work in it, or it cannot be moved.
    """
    real = out.resolve()  # of a link, what it names: the new results lie there too
    results = (real, *part_folders(real))
    if not any(run_folders(folder) for folder in results):
        return None
    if Path.cwd().is_relative_to(real):
        raise UsageError(f"--force: {out} cannot be moved while you are in it: change the directory first")
    with ExitStack() as locks:
        # Also of a run that is loading its model and has written nothing yet.
        models = {lock.parent for folder in results for lock in folder.glob(f"*/{LOCK}")}
        for folder in (real, *sorted(models)):
            locks.enter_context(hold(folder))
        aside = real.with_name(f"{real.name}.{datetime.now():%Y%m%d-%H%M%S-%f}")
        with writing(out):
            real.rename(aside)
            real.mkdir()
    return aside
