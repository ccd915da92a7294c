"""Which part of a data set is its validation split, where several splits lie side by side."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from camkit.data.contents import Contents
from camkit.data.names import folders_of
from camkit.errors import UsageError

TRAINING, VALIDATION = "training", "validation"
SPLITS = {
    "train": TRAINING, "training": TRAINING, "val": VALIDATION, "valid": VALIDATION,
    "validation": VALIDATION, "test": "test",
}  # fmt: skip


def split_of(name: str) -> str | None:
    """The split that a path names: by a folder `train` or `val`, or in the name of an archive."""
    *words, file = name.lower().split("/")
    if file.endswith((".tar", ".parquet")):
        words += re.split(r"[^a-z]+", file)
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def is_split(folder: str) -> bool:
    """Whether a folder of this name is a split."""
    return folder.lower() in SPLITS


def validation_only(contents: Contents) -> Contents:
    """The validation split, where folders or archives of several splits lie side by side.

    A folder beside it that is named after it, as `val_blurred`, is another version of it and left out too.

    Raises:
        UsageError: there are several, and none is the validation split.
    """
    archives = [path.relative_to(contents.root).as_posix() for path in (*contents.tars, *contents.parquets)]
    names = [name for name, _ in contents.images] + archives
    found = {split for name in names if (split := split_of(name))}
    several = len(found) > 1
    if several and VALIDATION not in found:
        raise UsageError(
            f"--data {contents.root} holds several splits ({', '.join(sorted(found))}): name one of them"
        )

    def stays(name: str) -> bool:
        return split_of(name) == VALIDATION or not (several or _is_version(name))

    left = Counter(split_of(name) or _outermost(name) for name in names if not stays(name))
    if VALIDATION not in found or not left:
        return contents

    def kept(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(path for path in paths if stays(path.relative_to(contents.root).as_posix()))

    others = ", ".join(f"{name} ({number})" for name, number in sorted(left.items()))
    note = f"validation is taken; left out: {others}"
    return replace(
        contents,
        images=tuple(image for image in contents.images if stays(image[0])),
        tars=kept(contents.tars),
        parquets=kept(contents.parquets),
        notes=(*contents.notes, f"of several splits, {note}" if several else note),
    )


def _is_version(name: str) -> bool:
    """Whether a path names a version of the validation split: by a folder `val_blurred`."""
    return any(
        SPLITS.get(re.split(r"[^a-z]", folder)[0]) == VALIDATION and not is_split(folder)
        for folder in map(str.lower, folders_of(name))
    )


def _outermost(name: str) -> str:
    folders = folders_of(name)
    return f"{folders[0]}/" if folders else name


def split_folder(names: Sequence[str]) -> str:
    """Where the images' own folders begin: empty, or the split that all images lie in, as `val/`."""
    prefix = ""
    while True:
        outermost = {name[len(prefix) :].partition("/")[0] for name in names}
        if len(outermost) != 1 or not is_split(*outermost):
            return prefix
        prefix += f"{outermost.pop()}/"
