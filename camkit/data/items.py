"""An image, a data set, the order in which `--limit` takes the images, and the fingerprint."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from camkit.data import sources
from camkit.data.classes import ClassList, imagenet
from camkit.data.names import folder_of
from camkit.data.regions import Region
from camkit.data.sources import Source
from camkit.errors import CamkitError

SAMPLE = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        id: path relative to the data root with `/`, or the member's name: the `image` column of every CSV.
        source: where its bytes come from.
        label: index in the data set's class list, or None where it is not known.
        group: what the images are spread over (the label, else the folder).
        target: the class to explain, whatever the target rule; None: the rule's.
        region: where in the image that class is, as far as is known.
    """

    id: str
    source: Source
    label: int | None
    group: str
    target: int | None = None
    region: Region | None = None


@dataclass(frozen=True)
class DataSet:
    """All images of a run's data, in the order in which `--limit` takes them.

    Attributes:
        layout: a name of :data:`camkit.data.layouts.LAYOUTS`, or `sample`.
        labels: where the labels come from; empty where there are none.
        regions: a fingerprint of where the classes are; empty where that is not said.
        classes: what the labels stand for: ImageNet's list where no other was named.
        notes: lines that the user should see.
        unlabelled: image -> why it has no label, where others have one.
        faults: folder or file -> what is wrong with it, though it is no image.
    """

    name: str
    items: tuple[Item, ...]
    fingerprint: str
    layout: str = "sample"
    labels: str = ""
    regions: str = ""
    classes: ClassList = field(default_factory=imagenet)
    notes: tuple[str, ...] = ()
    unlabelled: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


def make_items(entries: Iterable[tuple[str, Source]], labels: Mapping[str, int]) -> list[Item]:
    """Items of (id, source) pairs."""
    items = []
    for name, source in entries:
        label = labels.get(name)
        group = folder_of(name) or "." if label is None else str(label)
        items.append(Item(name, source, label, group))
    return items


def spread(items: Sequence[Item], seed: int) -> list[tuple[int, Item]]:
    """A fixed, seeded order that goes round the groups, one image each, before it takes a second.

    Returns:
        (round, item) pairs.
    """

    # A group's key is needed once per image: a thousand groups, fifty thousand images.
    @cache
    def key(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogateescape")).digest()

    groups: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: key(item.id)):
        groups[item.group].append(item)
    turns = [
        (turn, key(group), item) for group, members in groups.items() for turn, item in enumerate(members)
    ]
    return [(turn, item) for turn, _, item in sorted(turns, key=lambda turn: turn[:2])]


def in_order(items: Sequence[Item], seed: int) -> tuple[Item, ...]:
    """The items in the order of :func:`spread`."""
    return tuple(item for _, item in spread(items, seed))


def in_storage_order(items: Iterable[Item]) -> list[Item]:
    """The items as they lie on disk, where reading them all is fastest."""
    return sorted(items, key=lambda item: item.source)  # type: ignore[arg-type,return-value]


def fingerprint(items: Sequence[Item]) -> str:
    """sha256 over every image's id, label and size in bytes: what is cheap to read and hard to share."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        try:
            size = sources.size(item.source)
        except OSError:
            size = -1
        label = "" if item.label is None else item.label
        digest.update(f"{item.id}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sample_items() -> list[Item]:
    """The sample photos, from scikit-image; they have no labels.

    Raises:
        CamkitError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise CamkitError(
            "the sample photos come with scikit-image: pip install scikit-image, or name --data PATH"
        )
    root = Path(found.submodule_search_locations[0]) / "data"
    return make_items([(name, root / name) for name in SAMPLE], labels={})
