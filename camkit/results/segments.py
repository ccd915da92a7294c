"""run.json: what decided the numbers of a folder of cells (its protocol), and with what they were made.

protocol   decides a number: another value is refused
segments   what moves only last bits (device, threads, batch size, versions): each segment says with
           what it ran, and which rows it made
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

# Entries of a segment that may differ between two starts of the same segment.
BOOKKEEPING = {
    "command", "data", "data_images", "layout", "labels", "started", "ended", "starts", "rows",
    "images", "seconds", "waiting_seconds", "passes", "head_passes", "images_per_second", "waiting_for_data",
    "not_deterministic", "plugins", "costs",
}  # fmt: skip
# Entries of a segment that add up over its starts.
COUNTS = ("images", "seconds", "waiting_seconds", "passes", "head_passes")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Difference(NamedTuple):
    """Something in which two segments differ; a plugin's file may move more than last bits."""

    name: str
    there: Any
    here: Any
    plugin: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.there} -> {self.here}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """What is not the same in two segments.

    A plugin's file counts where both have it: it may have been mended.
    """
    files = new.get("plugins", {})
    found = [
        Difference(f"plugin {file}", digest, files.get(file, digest), plugin=True)
        for file, digest in old.get("plugins", {}).items()
    ]
    old, new = _flat(old), _flat(new)
    found += [Difference(name.replace("_", " "), old.get(name), new.get(name)) for name in {**old, **new}]
    return [one for one in found if one.there != one.here]


def _flat(segment: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in segment.items() if name not in {*BOOKKEEPING, "versions"}}
    return kept | segment.get("versions", {})


def add_segment(segments: list[dict[str, Any]], segment: Mapping[str, Any]) -> list[Difference]:
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
        add_costs(same, other.get("costs", {}))


def add_counts(segment: dict[str, Any], counts: Mapping[str, float]) -> None:
    """Add to a segment's counts (:data:`COUNTS`), and renew the rates that follow from them."""
    for name in COUNTS:
        segment[name] = round(segment.get(name, 0) + counts.get(name, 0), 3)  # older ones lack some
    seconds = segment["seconds"]
    segment["images_per_second"] = round(segment["images"] / seconds, 3) if seconds else None
    segment["waiting_for_data"] = round(segment["waiting_seconds"] / seconds, 4) if seconds else None


def add_costs(segment: dict[str, Any], costs: Mapping[str, Mapping[str, float]]) -> None:
    """Add to what each method took: `explaining_seconds`, `scoring_seconds`, over `images`.

    Seconds of the device. What methods share (the first pass, a layer's gradient, the blank and the blurred
    image) counts for the first one that needs it.
    """
    there = segment.setdefault("costs", {})
    for method, cost in costs.items():
        before = there.get(method, {})
        there[method] = {name: round(before.get(name, 0) + value, 3) for name, value in cost.items()}


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
