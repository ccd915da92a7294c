"""ImageNet's thousand classes: by index, by WordNet id (wnid), by name. The lists are timm's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from timm.data import ImageNetInfo

from camkit.errors import UsageError

WNID = re.compile(r"n\d{8}")
CLASSES = 1000


@cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo()


@cache
def wnid_to_index() -> dict[str, int]:
    """WordNet id -> ImageNet class index (0 to 999)."""
    return {wnid: index for index, wnid in enumerate(_imagenet().label_names())}


def index_to_wnid(index: int) -> str:
    return _imagenet().index_to_label_name(index)


def class_name(index: int, classes: int) -> str:
    """The first name of an ImageNet class, or `class 7` for models with other than 1,000 classes."""
    if classes != CLASSES:
        return f"class {index}"
    return _imagenet().index_to_description(index).split(",")[0]


@cache
def _by_name() -> dict[str, set[int]]:
    """Every name of every class, and all its names together as in `tench, Tinca tinca` -> class indices."""
    found: dict[str, set[int]] = defaultdict(set)
    for index in range(CLASSES):
        names = _imagenet().index_to_description(index)
        for name in (names, *names.split(",")):
            found[_plain(name)].add(index)
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def parse_label(text: str) -> int:
    """The class index that a text stands for: a 0-based index, a wnid or a class name.

    Raises:
        UsageError: it stands for no class, or for two.
    """
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,9}", text):
        if 0 <= int(text) < CLASSES:
            return int(text)
        raise UsageError(f"label {text} is no ImageNet class: indices go from 0 to {CLASSES - 1}")
    if WNID.fullmatch(text):
        if text in wnid_to_index():
            return wnid_to_index()[text]
        raise UsageError(f"label {text!r} is none of ImageNet-1k's wnids")
    found = sorted(_by_name().get(_plain(text), ()))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"label {text!r} is no index, wnid or name of an ImageNet class")
    wnids = " and ".join(f"{index} ({index_to_wnid(index)})" for index in found)
    raise UsageError(f"label {text!r} is the name of classes {wnids}: give the index or the wnid")


def class_list(names: Sequence[str]) -> list[int]:
    """The class indices of a data set's own list of class names, in its order.

    A list of a thousand is ImageNet's own where no name in it contradicts that: lists have to tell the two
    cranes apart, and each finds another name for it.

    Raises:
        UsageError: a name stands for no class, or for two.
    """
    if len(names) == CLASSES:
        known = [(place, _candidates(name)) for place, name in enumerate(names)]
        agree = sum(place in found for place, found in known)
        if agree > CLASSES / 2 and all(place in found for place, found in known if found):
            return list(range(CLASSES))
    return [parse_label(name) for name in names]


def _candidates(name: str) -> set[int]:
    if name in wnid_to_index():
        return {wnid_to_index()[name]}
    return _by_name().get(_plain(name), set())


def own_numbering(labels: Iterable[int]) -> bool:
    """Whether labels look like a data set's own numbers, 0 to k - 1 without a gap, not ImageNet's.

    Ten classes numbered 0 to 9 are hardly ImageNet's first ten, which are fishes and birds.
    """
    found = set(labels)
    return bool(found) and len(found) < CLASSES and found == set(range(len(found)))
