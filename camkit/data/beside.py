"""Label files that lie in or near the images' folder: Kaggle's solution, Tiny ImageNet's annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from camkit.data.classes import WNID, ClassList
from camkit.data.labels import Labels, by_wnid
from camkit.data.names import file_of
from camkit.data.texts import read_table, read_text
from camkit.errors import UsageError

KAGGLE, ANNOTATIONS = "LOC_val_solution.csv", "val_annotations.txt"
# From val/ to where Kaggle's solution lies: ILSVRC/Data/CLS-LOC/val.
FOLDERS_UP = 4


def folders_up(root: Path) -> list[Path]:
    start = root.resolve()
    return [start, *start.parents][: FOLDERS_UP + 1 + (not start.is_dir())]


def is_file(path: Path) -> bool:
    """Whether there is a file; a folder that may not be looked into has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def from_kaggle(root: Path, names: Sequence[str], classes: ClassList) -> Labels | None:
    """By Kaggle's `LOC_val_solution.csv` (`ImageId,PredictionString`: a wnid and a box), near the folder.

    Raises:
        UsageError: it is another kind of file.
    """
    path = next((f / KAGGLE for f in folders_up(root) if is_file(f / KAGGLE)), None)
    if path is None:
        return None
    rows = read_table(path, ("ImageId", "PredictionString"))
    wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows if row["PredictionString"]}
    pairs = ((name, wnids.get(PurePosixPath(name).stem)) for name in names)
    return by_wnid(pairs, KAGGLE, f"{KAGGLE} does not name it", classes)


def find_annotations(root: Path) -> Path | None:
    """Tiny ImageNet's `val_annotations.txt`, for the data set's folder, its `val` or `val/images`."""
    start = root.resolve()
    places = (start / "val", start, *([start.parent] if start.name == "images" else ()))
    return next((place / ANNOTATIONS for place in places if is_file(place / ANNOTATIONS)), None)


def from_annotations(root: Path, names: Sequence[str], classes: ClassList) -> Labels | None:
    """By Tiny ImageNet's annotations: a file name, a wnid and a box per line, with tabs between them.

    Raises:
        UsageError: a line is another kind, or a file has two wnids.
    """
    path = find_annotations(root)
    if path is None:
        return None
    wnids: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        name, wnid, *_ = (part.strip() for part in (*line.split("\t"), ""))
        if not WNID.fullmatch(wnid):
            raise UsageError(f"{path}, line {number}: expected a file name, a tab and a wnid; found {line!r}")
        if wnids.setdefault(name, wnid) != wnid:
            raise UsageError(f"{path}, line {number}: {name!r} has another wnid further up")
    pairs = ((name, wnids.get(file_of(name))) for name in names)
    return by_wnid(pairs, ANNOTATIONS, f"{ANNOTATIONS} does not name it", classes)
