"""Class lists: what the indices of labels, and of a model's outputs, stand for. ImageNet's is timm's."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from timm.data import ImageNetInfo

from camkit.errors import UsageError

WNID = re.compile(r"n\d{8}")
NUMBER = re.compile(r"([+-]?\d{1,9})(\.0*)?")
CLASSES = 1000
IMAGENET, FOLDERS = "imagenet", "folders"
# What a classifier with so many outputs usually tells apart.
OUTPUTS = {
    1001: "a background class before ImageNet's thousand, in TensorFlow's numbering",
    21841: "ImageNet-21k", 21843: "ImageNet-21k", 11221: "ImageNet-21k, cleaned",
    10450: "ImageNet-21k, cleaned", 11821: "ImageNet-12k",
}  # fmt: skip


def outputs_named(count: int) -> str:
    """`1001 classes (a background class …)`: a number of outputs, with what is known of it."""
    return f"{count} classes" + (f" ({OUTPUTS[count]})" if count in OUTPUTS else "")


def number_of(text: str) -> int | None:
    """The whole number that a text is, written as `5`, `005` or `5.0`; None where it is none."""
    found = NUMBER.fullmatch(text.strip())
    return int(found.group(1)) if found else None


@dataclass(frozen=True)
class ClassList:
    """The classes of a run, in the order of their indices, from 0.

    Attributes:
        name: `imagenet`, `folders`, or the name of the file that it was read from.
        names: one per class; in a list with wnids, several names of one class stand with commas between them.
        wnids: WordNet ids, one per class; empty where the list has none.
    """

    name: str
    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """sha256 over names and wnids in their order: lists that have it mean the same by every index."""
        wnids = self.wnids or ("",) * len(self)
        text = "".join(f"{name}\0{wnid}\n" for name, wnid in zip(self.names, wnids, strict=True))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def title(self) -> str:
        """What the list is, in a sentence."""
        return {IMAGENET: "ImageNet-1k", FOLDERS: "the class folders"}.get(self.name, self.name)

    def short_name(self, index: int) -> str:
        """The name of a class; the first, where a list with wnids gives several."""
        return self.names[index].split(",")[0].strip() if self.wnids else self.names[index]

    def index_of(self, text: str) -> int:
        """The class that a text stands for: by its index, its wnid or its name.

        Raises:
            UsageError: it stands for no class, or for two.
        """
        text = text.strip()
        number, named = number_of(text), self.indices_named(text)
        if len(named) > 1:
            both = " and ".join(self._shown(index) for index in named)
            raise UsageError(f"label {text!r} is the name of classes {both}: give the index or the wnid")
        if number is not None and 0 <= number < len(self):
            if named and named != (number,):
                raise UsageError(
                    f"label {text!r} is an index of {self.title}, and also the name of class {named[0]}: "
                    "give that class another name (--classes FILE)"
                )
            return number
        if named:
            return named[0]
        if number is not None:
            last = len(self) - 1
            raise UsageError(f"label {text} is no class of {self.title}: indices go from 0 to {last}")
        if self.wnids and WNID.fullmatch(text):
            raise UsageError(f"label {text!r} is none of {self.title}'s wnids")
        raise UsageError(f"label {text!r} is no index, wnid or name of a class of {self.title}")

    def indices_named(self, text: str) -> tuple[int, ...]:
        """The classes whose wnid or name a text is, whatever its case and with spaces for underscores.

        In a list without wnids a name as it is written stands above one that differs in that: `Cat`, `cat`.
        """
        if text in self.index_of_wnid:
            return (self.index_of_wnid[text],)
        exact, plain = self._by_name
        return tuple(sorted(exact.get(text) or plain.get(_plain(text)) or ()))

    def indices_of(self, names: Sequence[str]) -> list[int]:
        """The indices of a data set's own list of class names, in its order.

        A list as long as this one is this one where no name in it contradicts that: lists have to tell
        ImageNet's two cranes apart, and each finds another name for it.

        Raises:
            UsageError: a name stands for no class, or for two.
        """
        if len(names) == len(self):
            known = [(place, self.indices_named(name)) for place, name in enumerate(names)]
            agree = sum(place in found for place, found in known)
            if agree > len(self) / 2 and all(place in found for place, found in known if found):
                return list(range(len(self)))
        return [self.index_of(name) for name in names]

    @cached_property
    def index_of_wnid(self) -> dict[str, int]:
        """Index by wnid; empty where the list has none."""
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @cached_property
    def _by_name(self) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
        """Classes by their names as written, where the list has no wnids, and by :func:`_plain` names."""
        exact: dict[str, set[int]] = defaultdict(set)
        plain: dict[str, set[int]] = defaultdict(set)
        for index, names in enumerate(self.names):
            if not self.wnids:
                exact[names.strip()].add(index)
            for name in (names, *(names.split(",") if self.wnids else ())):
                plain[_plain(name)].add(index)
        return exact, plain

    def _shown(self, index: int) -> str:
        return f"{index} ({self.wnids[index] if self.wnids else self.names[index]})"


def _plain(name: str) -> str:
    """In lower case, with single spaces, also for underscores."""
    return " ".join(name.lower().replace("_", " ").split())


@cache
def imagenet() -> ClassList:
    """The thousand classes of ImageNet-1k."""
    info = ImageNetInfo()
    return ClassList(IMAGENET, tuple(info.label_descriptions()), tuple(info.label_names()))


def wnid_to_index() -> dict[str, int]:
    """WordNet id -> ImageNet class index (0 to 999)."""
    return imagenet().index_of_wnid


def class_name(index: int, outputs: int, listed: ClassList | None = None) -> str:
    """The name of one of a model's classes; `class 7` where the list is not of the model's classes.

    Args:
        outputs: how many classes the model tells apart.
        listed: None: ImageNet's.
    """
    listed = listed or imagenet()
    return listed.short_name(index) if outputs == len(listed) else f"class {index}"
