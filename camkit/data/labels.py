"""Labels of images by what a data set says of them: wnids, numbers, names; in folders, file names and fields.

Each function gives :class:`Labels`, or None where what it needs is not there. None of them numbers what it
finds: an index comes from a wnid or a name in the class list, or from whoever wrote it down and said of which
list it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from camkit.data.classes import WNID, ClassList, number_of
from camkit.data.names import file_of, folder_of, folders_of
from camkit.data.numbers import unlike_wnids, why_not_indices
from camkit.errors import CamkitError, UsageError

VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?=[._])")
NAME_SUFFIX = re.compile(r"_(n\d{8})\.\w+$")


@dataclass(frozen=True)
class Reading:
    """How a data set is to be read, beside where it lies.

    Attributes:
        classes: what its labels stand for.
        named: the user named the class list.
        layout: the layout that the user named.
        image_column, label_column: the columns that the user named.
    """

    classes: ClassList
    named: bool = False
    layout: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the user named, by their options."""
        named = {"--image-column": self.image_column, "--label-column": self.label_column}
        return {option: name for option, name in named.items() if name}


@dataclass(frozen=True)
class Labels:
    """Class indices of images.

    Attributes:
        by_id: image -> class index.
        origin: where they come from, for the user; empty where there are none.
        missing: image -> why it has none, where others have one.
        notes: lines that the user should see.
        refused: why labels that are there are not used; empty where some are, or where there are none.
    """

    by_id: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: str = ""


def by_wnid(wnids: Iterable[tuple[str, str | None]], origin: str, reason: str, classes: ClassList) -> Labels:
    """Labels of (image, wnid) pairs; `reason` says what is wrong with images whose wnid is None."""
    known, missing, strange = {}, {}, ""
    for name, wnid in wnids:
        found = classes.indices_named(wnid) if wnid else ()
        if len(found) == 1:
            known[name] = found[0]
            continue
        missing[name] = f"{wnid} is no class of {classes.title}" if wnid else reason
        strange = strange or (missing[name] if wnid else "")
    return used(known, origin, missing, strange)


def used(known: Mapping[str, int], origin: str, missing: Mapping[str, str], strange: str) -> Labels:
    """Labels; where there is none, `strange`: why the first one that was there was not understood."""
    if known:
        return Labels(known, origin, missing)
    return Labels(refused=f"{origin}: {strange}" if strange else "")


def folder_wnid(name: str) -> str | None:
    """The wnid that the nearest folder so named has: `n01443537` for `n01443537/images/0.JPEG`."""
    return next((folder for folder in reversed(folders_of(name)) if WNID.fullmatch(folder)), None)


def from_folders(names: Iterable[str], classes: ClassList) -> Labels:
    """By folders named by wnids."""
    pairs = ((name, folder_wnid(name)) for name in names)
    return by_wnid(pairs, "the wnid folders", "it lies outside the wnid folders", classes)


def from_class_folders(names: Iterable[str], classes: ClassList) -> Labels:
    """By folders named as classes are; of several above each other, by the outermost."""
    known, missing, strange = {}, {}, ""
    for name in names:
        found = [index for folder in folders_of(name) for index in classes.indices_named(folder)]
        if found:
            known[name] = found[0]
        else:
            missing[name] = f"it lies in no folder that is named as a class of {classes.title} is"
            strange = strange or f"{folder_of(name)!r} is named as none of {classes.title}'s classes"
    return used(known, "the class folders", missing, strange)


def folder_number(name: str) -> int | None:
    """The number that an image's folder is named by, `7` and `007` alike."""
    folder = file_of(folder_of(name))
    return int(folder) if re.fullmatch(r"[0-9]{1,9}", folder) else None


def from_number_folders(names: Iterable[str], classes: ClassList, named: bool) -> Labels:
    """By folders named by class indices, as in ImageNet-V2.

    Raises:
        UsageError: the list was named, and the numbers are none of its indices.
    """
    last = len(classes) - 1
    known, missing = {}, {}
    for name in names:
        number = folder_number(name)
        if number is None:
            missing[name] = f"it lies outside the folders 0 to {last}"
        else:
            known[name] = number
    origin = f"the folders 0 to {last}"
    refused = _refused(why_not_indices(known.values(), classes, named), "the folders named by numbers", named)
    return refused or Labels(known, origin, missing)


def _refused(reason: str | None, origin: str, named: bool) -> Labels | None:
    """No labels, with the reason why; None where there is none.

    Raises:
        UsageError: the user named the class list, and the labels are not of it.
    """
    if reason is None:
        return None
    if named:
        raise UsageError(f"{origin}: {reason}")
    return Labels(refused=f"{origin}: {reason}")


def name_wnid(name: str) -> str | None:
    """The wnid at the end of a file name, as in `ILSVRC2012_val_00000001_n01751748.JPEG`."""
    found = NAME_SUFFIX.search(file_of(name))
    return found.group(1) if found else None


def from_names(names: Sequence[str], classes: ClassList) -> Labels | None:
    """By file names that end in `_n01751748.JPEG`."""
    if not any(map(name_wnid, names)):
        return None
    pairs = ((name, name_wnid(name)) for name in names)
    return by_wnid(pairs, "the wnids in the file names", "its file name ends in no wnid", classes)


def validation_number(name: str) -> int | None:
    """7 for `ILSVRC2012_val_00000007.JPEG`."""
    found = VALIDATION_NAME.match(file_of(name))
    return int(found.group(1)) if found else None


def from_texts(
    texts: Iterable[tuple[str, str | None]],
    origin: str,
    reading: Reading,
    unread: Mapping[str, str] = MappingProxyType({}),
) -> Labels:
    """By what a data set says of an image: an index, a wnid or a class name; None where it says nothing.

    For numbers see :mod:`camkit.data.numbers`; a wnid or a name among them names the list.

    Args:
        unread: image -> why what it says cannot be read.

    Raises:
        UsageError: the user named the class list, and the numbers are none of its indices.
    """
    known: dict[str, int] = {}
    missing: dict[str, str] = {}
    numbers: dict[str, int] = {}
    strange = next(iter(unread.values()), "")
    for name, text in texts:
        if text is None:
            missing[name] = unread.get(name, "it comes without a label")
            continue
        number = number_of(text)
        if number is not None and number >= 0:
            numbers[name] = number
        try:
            known[name] = reading.classes.index_of(text)
        except UsageError as error:
            missing[name] = str(error)
            strange = strange or missing[name]
    # A wnid or a name among them names the list as the user would.
    named = reading.named or not known.keys() <= numbers.keys()
    wnids = {name: name_wnid(name) or folder_wnid(name) for name in numbers}
    reason = why_not_indices(numbers.values(), reading.classes, named)
    refused = _refused(reason or unlike_wnids(numbers, wnids, reading.classes), origin, reading.named)
    return refused or used(known, origin, missing, strange)


def first_found(sources: Iterable[Callable[[], Labels | None]]) -> Labels:
    """The first labels that are there; those that contradict themselves or the images are passed over."""
    reasons: list[str] = []
    for source in sources:
        try:
            labels = source()
        except CamkitError as error:
            reasons.append(str(error))
            continue
        if labels is not None and labels.by_id:
            notes = (f"labels not used: {reason}" for reason in reasons)
            return replace(labels, notes=(*notes, *labels.notes))
        if labels is not None and labels.refused:
            reasons.append(labels.refused)
    first, *others = reasons or [""]
    return Labels(notes=tuple(f"labels not used: {reason}" for reason in others), refused=first)


def describe(labels: Labels, images: int) -> list[str]:
    """Lines on where the labels come from and on images without one."""
    if not labels.by_id:
        found = f"labels not used: {labels.refused}" if labels.refused else "labels: none found"
        only = "only the predicted class can be explained (--labels FILE gives some)"
        return [*labels.notes, f"{found}; {only}"]
    lines = [*labels.notes, f"labels: from {labels.origin}"]
    reasons = Counter(labels.missing.values()).most_common(3)
    return lines + [f"{number} of {images} images have no label: {reason}" for reason, number in reasons]
