"""One results folder holds one protocol: all that decides the numbers of its cells, see run.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from camkit.config import deciding_options
from camkit.errors import CamkitError, UsageError
from camkit.results.folder import read_run, run_folders

# Beside the options that decide numbers: what all cells of a results folder have in common, and what those of
# one model have besides.
SHARED = ("weights", "data_fingerprint", "regions", "class_list")
OF_MODEL = ("library_name", "transform", "weights_tag", "weights_sha256")


class Difference(NamedTuple):
    """Something in which two protocols differ; the values as JSON."""

    name: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{self.name}: {self.there}, now {self.here}"


def check_protocol(folders: Iterable[Path], protocol: Mapping[str, Any]) -> None:
    """One results folder holds one protocol.

    Args:
        folders: results folders (OUT and its parts).
        protocol: what decides the numbers of the cells about to run.

    Raises:
        UsageError: cells that are there were made with something else; the message names it.
    """
    for out in folders:
        for folder in run_folders(out):
            try:
                difference = unlike(read_run(folder)["protocol"], protocol)
            except CamkitError as error:
                if isinstance(error.__cause__, FileNotFoundError):  # another process has folded it since
                    continue
                raise
            if difference and difference.name == "definitions":
                raise UsageError(
                    f"{out} holds results of version {difference.there} of the definitions, now "
                    f"{difference.here}: they can be reported, but no longer added to "
                    f"({folder.relative_to(out)}).\n"
                    "Use another --out, or --force: it moves the old results aside and starts afresh."
                )
            if difference:
                raise UsageError(
                    f"{out} holds results with another {difference} ({folder.relative_to(out)}).\n"
                    "Use another --out, or --force: it moves the old results aside and starts afresh."
                )


def unlike(there: Mapping[str, Any], here: Mapping[str, Any]) -> Difference | None:
    """First difference that makes two protocols incompatible, or None.

    Those of one model, layer and utility agree in everything.
    """

    def same(*names: str) -> bool:
        return all(there.get(name) == here.get(name) for name in names)

    # Definitions first: under others, options may have another meaning.
    names: Iterable[str] = ["definitions", *(one.metadata["decides"] for one in deciding_options()), *SHARED]
    if same("model"):
        names = [*names, *OF_MODEL]
    if same("model", "layer", "utility"):
        names = {"definitions": None, **there, **here}
    for name in names:
        if not same(name):
            values = (json.dumps(one.get(name), ensure_ascii=False) for one in (there, here))
            return Difference(name.replace("_", " "), *values)
    return None


def check_agreement(out: Path) -> None:
    """All cells of a results folder were made with the same settings, whoever put them there.

    Raises:
        UsageError: they were not; the message names two and the difference.
    """
    protocols = {folder.relative_to(out): read_run(folder)["protocol"] for folder in run_folders(out)}
    for (first, there), (second, here) in combinations(protocols.items(), 2):
        difference = unlike(there, here)
        if difference:
            raise UsageError(
                f"{out} holds results that disagree in {difference.name}: {difference.there} in {first}, "
                f"{difference.here} in {second}.\nMove one of them to a results folder of its own."
            )
