"""run.json: what decided the numbers of a folder of cells (its protocol), and with what they were made.

protocol   decides a number: another value is refused
segments   what moves only last bits (device, threads, batch size, versions): each segment says with
           what it ran, and which rows it made
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from camkit.config import RunConfig
from camkit.data import DataSet
from camkit.errors import UsageError
from camkit.evaluate import Cell
from camkit.prepare import Prepared
from camkit.results import DEFINITIONS_VERSION, read_run

# Entries of a segment that may differ between two starts of the same segment.
BOOKKEEPING = {
    "command", "data", "data_images", "layout", "labels", "started", "ended", "starts", "rows",
    "images", "seconds", "waiting_seconds", "passes", "head_passes", "images_per_second", "waiting_for_data",
    "not_deterministic", "plugins",
}  # fmt: skip
PLUGIN = "plugin"  # begins the difference that is a plugin's file
# Entries of a segment that add up over its starts.
COUNTS = ("images", "seconds", "waiting_seconds", "passes", "head_passes")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def describe_protocol(prepared: Prepared, cell: Cell, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """Everything that decides a number of a cell's folder."""
    loaded = prepared.loaded
    return {
        "model": loaded.row.name,
        "library_name": f"{loaded.row.library}/{loaded.row.entry}",
        "layer": cell.layer,
        "module": cell.path,
        "utility": cell.utility,
        "target_rule": config.target,
        "steps": config.steps,
        "preprocess": config.preprocess,
        "exif": config.exif,
        "transform": loaded.preprocess.describe(),
        "dtype": config.dtype,
        "tf32": config.tf32,
        "weights": loaded.weights.kind,
        "weights_tag": loaded.weights.tag,
        "weights_sha256": loaded.weights.sha256,
        "seed": config.seed,
        "absent": config.absent,
        "budget": config.budget,
        "data_fingerprint": data.fingerprint,
        "definitions": DEFINITIONS_VERSION,
    }


def describe_segment(prepared: Prepared, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """With what, and when, some of the rows of a folder are made."""
    device = prepared.network.device
    cuda = device.type == "cuda"
    return {
        "command": config.command(),
        "started": now(),
        "data": data.name,
        "data_images": len(data.items),
        "layout": data.layout,
        "labels": data.labels,
        "weights_file": prepared.loaded.weights.file,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "driver": _driver() if cuda else None,
        "processor": None if cuda else processor(),
        "threads": torch.get_num_threads(),
        "compile": config.compile,
        "plugins": {Path(file).name: _sha256(Path(file)) for file in config.plugin},
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda if cuda else None,
            **{name: version(name) for name in ("camkit", "torch", "torchvision", "timm", "numpy", "pillow")},
        },
        "git": _git_commit(),
    }


def as_it_ran(folder: Path, config: RunConfig) -> RunConfig:
    """The settings with which a folder of cells was made, for what is to be made in the same way.

    Batch size and determinism are those of the last start.

    Args:
        config: gives what run.json does not know: where data and a weights' file are, on what to run.

    Raises:
        UsageError: there are no rows yet, or the weights were a file and `config` names none.
        CamkitError: run.json cannot be read.
    """
    run = read_run(folder)
    if not run["segments"]:
        raise UsageError(f"{folder}: this run has not made a row yet")
    protocol, segment = run["protocol"], run["segments"][-1]
    weights = protocol["weights"] if config.weights == "pretrained" else config.weights
    if protocol["weights"] == "file" and config.weights == "pretrained":
        raise UsageError(
            f"{folder}: the weights were a file, {segment['weights_file']}: name it with --weights FILE"
        )
    same = ("steps", "preprocess", "exif", "dtype", "tf32", "seed", "absent", "budget")
    return replace(
        config,
        model=(protocol["model"],),
        layer=(protocol["layer"],),
        utility=(protocol["utility"],),
        method=tuple(run["methods"]),
        metrics=tuple(run["metrics"]),
        target=protocol["target_rule"],
        weights=weights,
        batch_size=segment["batch_size"],
        deterministic=segment["deterministic"],
        **{name: protocol[name] for name in same},
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What moves last bits and is not the same in two segments, as `name old -> new`.

    So is a plugin's file, which may move more, where both have it: it may have been mended.
    """
    files = new.get("plugins", {})
    pairs = [
        (f"{PLUGIN} {file}", digest, files.get(file, digest))
        for file, digest in old.get("plugins", {}).items()
    ]
    old, new = _flat(old), _flat(new)
    pairs += [(name.replace("_", " "), old.get(name), new.get(name)) for name in {**old, **new}]
    return [f"{name} {there} -> {here}" for name, there, here in pairs if there != here]


def _flat(segment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in segment.items() if name not in BOOKKEEPING}
    return {**kept, **kept.pop("versions", {})}


def add_segment(segments: list[dict[str, Any]], segment: Mapping[str, Any]) -> list[str]:
    """Go on with the last segment if it ran with the same things, else begin one.

    A segment of the same start that made nothing (a batch did not fit into memory) gives way to the new one.

    Returns:
        What is not as it was when the last rows or scores were made.
    """
    if segments and segments[-1]["started"] == segment["started"] and not _made_something(segments[-1]):
        segments.pop()
    plugins = {**(segments[-1].get("plugins", {}) if segments else {}), **segment["plugins"]}
    before = next(filter(_made_something, reversed(segments)), None)
    changed = differences(before, segment) if before else []
    if not segments or differences(segments[-1], segment):
        segments.append({**segment, "starts": 1, **dict.fromkeys(COUNTS, 0), "rows": {}})
    else:
        segments[-1] |= {"command": segment["command"], "starts": segments[-1]["starts"] + 1}
        segments[-1].pop("ended", None)  # it goes on
    segments[-1]["plugins"] = plugins
    return changed


def _made_something(segment: Mapping[str, Any]) -> bool:
    return bool(segment["images"]) or any(segment["rows"].values())


def credit(segments: list[dict[str, Any]], rows: Mapping[str, Iterable[int]]) -> None:
    """Enter the rows that no segment has as the last one's: who was killed could not do it itself.

    Args:
        rows: method -> places, in the data set's order, of the images that have a row.
    """
    if not segments:
        return
    for method, places in rows.items():
        new = set(places) - places_of(segments, method)
        if new:
            mine = segments[-1]["rows"]
            mine[method] = to_ranges(new | set(from_ranges(mine.get(method, ""))))


def places_of(segments: Iterable[Mapping[str, Any]], method: str) -> set[int]:
    """Places, in the data set's order, of the images of which segments have a method's row."""
    return {place for segment in segments for place in from_ranges(segment["rows"].get(method, ""))}


def merge_segments(segments: list[dict[str, Any]], others: Sequence[Mapping[str, Any]]) -> None:
    """Take in the segments of another part of the run: those that ran with the same things become one."""
    for other in others:
        same = next((segment for segment in segments if not differences(segment, other)), None)
        if same is None:
            segments.append(dict(other))
            continue
        for method, ranges in other["rows"].items():
            places = {*from_ranges(ranges), *from_ranges(same["rows"].get(method, ""))}
            same["rows"][method] = to_ranges(places)
        same["plugins"] = {**other.get("plugins", {}), **same.get("plugins", {})}
        same["started"] = min(same["started"], other["started"])
        if "ended" in other:
            same["ended"] = max(same.get("ended", ""), other["ended"])
        same["starts"] += other["starts"]
        add_counts(same, other)


def add_counts(segment: dict[str, Any], counts: Mapping[str, float]) -> None:
    """Add to a segment's counts (:data:`COUNTS`), and renew the rates that follow from them."""
    for name in COUNTS:
        segment[name] = round(segment.get(name, 0) + counts.get(name, 0), 3)  # older ones lack some
    seconds = segment["seconds"]
    segment["images_per_second"] = round(segment["images"] / seconds, 3) if seconds else None
    segment["waiting_for_data"] = round(segment["waiting_seconds"] / seconds, 4) if seconds else None


def to_ranges(places: Iterable[int]) -> str:
    """{0, 1, 2, 5} -> "0-2,5"."""
    ranges: list[list[int]] = []
    for place in sorted(places):
        if ranges and place == ranges[-1][1] + 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def from_ranges(text: str) -> list[int]:
    """The inverse of :func:`to_ranges`."""
    places: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        places.extend(range(int(first), int(last or first) + 1))
    return places


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@cache
def processor() -> str:
    """What the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def _driver() -> str | None:
    """The version of the NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout
        return output.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


@cache
def _git_commit() -> str | None:
    """The commit of the source tree that camkit runs from, with `-dirty` where files differ; None without."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
