"""Labels of images by their ids: from a file, the devkit, Kaggle's solution, folders and file names.

Each function gives :class:`Labels`, or None where what it needs is not there. None of them numbers what it
finds: an index comes from a wnid, from ImageNet's own list, or from whoever wrote it down.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from camkit.data.classes import CLASSES, WNID, parse_label, wnid_to_index
from camkit.data.names import file_of, folder_of
from camkit.errors import CamkitError, UsageError

VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?=[._])")
NAME_SUFFIX = re.compile(r"_(n\d{8})\.\w+$")
KAGGLE = "LOC_val_solution.csv"
# From val/ to where Kaggle's solution lies: ILSVRC/Data/CLS-LOC/val.
FOLDERS_UP = 4


@dataclass(frozen=True)
class Labels:
    """Class indices of images.

    Attributes:
        by_id: image -> class index.
        origin: where they come from, for the user; empty where there are none.
        missing: image -> why it has none, where others have one.
        notes: lines that the user should see.
    """

    by_id: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NONE = Labels()


def by_wnid(wnids: Iterable[tuple[str, str | None]], origin: str, reason: str) -> Labels:
    """Labels of (image, wnid) pairs; `reason` says what is wrong with images whose wnid is None."""
    known, missing = {}, {}
    for name, wnid in wnids:
        if wnid is None:
            missing[name] = reason
        elif wnid in wnid_to_index():
            known[name] = wnid_to_index()[wnid]
        else:
            missing[name] = f"{wnid} is no class of ImageNet-1k"
    return Labels(known, origin, missing)


def folder_wnid(name: str) -> str | None:
    """The wnid that an image's folder is named by."""
    folder = file_of(folder_of(name))
    return folder if WNID.fullmatch(folder) else None


def from_folders(names: Iterable[str]) -> Labels:
    """By folders named by wnids."""
    pairs = ((name, folder_wnid(name)) for name in names)
    return by_wnid(pairs, "the wnid folders", "it lies outside the wnid folders")


def folder_index(name: str) -> int | None:
    """The class index that an image's folder is named by, 0 to 999."""
    folder = file_of(folder_of(name))
    return int(folder) if re.fullmatch(r"0|[1-9]\d{0,2}", folder) else None


def from_index_folders(names: Iterable[str]) -> Labels:
    """By folders named by class indices, as in ImageNet-V2."""
    known, missing = {}, {}
    for name in names:
        index = folder_index(name)
        if index is None:
            missing[name] = f"it lies outside the folders 0 to {CLASSES - 1}"
        else:
            known[name] = index
    return Labels(known, f"the folders 0 to {CLASSES - 1}", missing)


def name_wnid(name: str) -> str | None:
    """The wnid at the end of a file name, as in `ILSVRC2012_val_00000001_n01751748.JPEG`."""
    found = NAME_SUFFIX.search(file_of(name))
    return found.group(1) if found else None


def from_names(names: Sequence[str]) -> Labels | None:
    """By file names that end in `_n01751748.JPEG`."""
    if not any(map(name_wnid, names)):
        return None
    pairs = ((name, name_wnid(name)) for name in names)
    return by_wnid(pairs, "the wnids in the file names", "its file name ends in no wnid")


def validation_number(name: str) -> int | None:
    """7 for `ILSVRC2012_val_00000007.JPEG`."""
    found = VALIDATION_NAME.match(file_of(name))
    return int(found.group(1)) if found else None


def folders_up(root: Path) -> list[Path]:
    start = root.resolve()
    return [start, *start.parents][: FOLDERS_UP + 1 + (not start.is_dir())]


def is_file(path: Path) -> bool:
    """Whether there is a file; a folder that may not be looked into has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def from_kaggle(root: Path, names: Sequence[str]) -> Labels | None:
    """By Kaggle's `LOC_val_solution.csv` (`ImageId,PredictionString`: a wnid and a box), near the folder.

    Raises:
        UsageError: it is another kind of file.
    """
    path = next((f / KAGGLE for f in folders_up(root) if is_file(f / KAGGLE)), None)
    if path is None:
        return None
    rows = _read_csv(path, ("ImageId", "PredictionString"))
    wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows if row["PredictionString"]}
    pairs = ((name, wnids.get(PurePosixPath(name).stem)) for name in names)
    return by_wnid(pairs, KAGGLE, f"{KAGGLE} does not name it")


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, restval="")
            found = reader.fieldnames or ()
            rows = list(reader)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except csv.Error as error:
        raise UsageError(f"{path}: no CSV file ({error})") from error
    absent = [column for column in columns if column not in found]
    if absent:
        expected = ",".join(columns)
        raise UsageError(f"{path}: expected a CSV file with the columns {expected}; no {absent[0]!r}")
    return rows


def from_file(path: Path, names: Sequence[str]) -> Labels:
    """By a CSV file `image,label`: the image's id or file name; a 0-based index, a wnid or a class name.

    Raises:
        UsageError: the file cannot be read, names no image of the data, two labels for one image, a label
            that is no class or the name of two, or a file name that several images have.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_name[file_of(name)].append(name)
    ids = set(names)
    known: dict[str, int] = {}
    strangers = 0
    for number, row in enumerate(_read_csv(path, ("image", "label")), start=2):
        matches = [row["image"]] if row["image"] in ids else by_name.get(row["image"], [])
        strangers += not matches
        if len(matches) > 1:
            raise UsageError(
                f"{path}, row {number}: {len(matches)} images are called {row['image']!r}: give the path, as "
                f"{matches[0]!r}"
            )
        if not matches or not row["label"].strip():
            continue
        try:
            label = parse_label(row["label"])
        except UsageError as error:
            raise UsageError(f"{path}, row {number}: {error}") from error
        if known.setdefault(matches[0], label) != label:
            raise UsageError(f"{path}, row {number}: {row['image']!r} has another label further up")
    if not known:
        raise UsageError(f"{path} names none of the images; theirs are like {names[0]!r}")
    notes = (f"{path.name}: {strangers} rows name images that are not there",) if strangers else ()
    missing = {name: f"{path.name} gives it no label" for name in names if name not in known}
    return Labels(known, path.name, missing, notes)


def from_texts(texts: Iterable[tuple[str, str | None]], origin: str) -> Labels:
    """By what a data set says of an image: an index, a wnid or a class name; None where it says nothing."""
    known, missing = {}, {}
    for name, text in texts:
        if text is None:
            missing[name] = "it comes without a label"
            continue
        try:
            known[name] = parse_label(text)
        except UsageError as error:
            missing[name] = str(error)
    return Labels(known, origin, missing) if known else NONE


def renumbered(origin: str, layout: str) -> str:
    """The line that says why numbers are not taken as ImageNet's indices."""
    return (
        f"{origin} is not used: its numbers go from 0 without a gap, so they may be the data set's own; "
        f"--layout {layout} takes them as ImageNet's indices"
    )


def first_found(sources: Iterable[Callable[[], Labels | None]]) -> Labels:
    """The first labels that are there; those that contradict themselves or the images are passed over."""
    notes: list[str] = []
    for source in sources:
        try:
            labels = source()
        except CamkitError as error:
            notes.append(f"labels not used: {error}")
            continue
        if labels is not None and labels.by_id:
            return replace(labels, notes=(*notes, *labels.notes))
    return Labels(notes=tuple(notes))


def describe(labels: Labels, images: int) -> list[str]:
    """Lines on where the labels come from and on images without one."""
    if not labels.by_id:
        none = "labels: none found; only the predicted class can be explained (--labels FILE gives some)"
        return [*labels.notes, none]
    lines = [*labels.notes, f"labels: from {labels.origin}"]
    reasons = Counter(labels.missing.values()).most_common(3)
    return lines + [f"{number} of {images} images have no label: {reason}" for reason, number in reasons]
