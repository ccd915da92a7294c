"""What lies at a path, before anyone says what it means."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from camkit.data.archives import EXTENSIONS, Listing, is_image, list_tar
from camkit.data.classes import WNID
from camkit.data.sources import Source
from camkit.errors import UsageError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
SPLITS = {
    "train": "training", "training": "training", "val": "validation", "valid": "validation",
    "validation": "validation", "test": "test",
}  # fmt: skip

Entries = tuple[tuple[str, Source], ...]


@dataclass(frozen=True)
class Contents:
    """Images, tar archives and parquet files below a folder (or one archive).

    Attributes:
        root: the folder or the archive.
        images: (id, source) of every loose image, in the order of their names.
        faults: folder -> what is wrong with it.
        notes: lines for the user on what was left out.
    """

    root: Path
    images: Entries = ()
    tars: tuple[Path, ...] = ()
    parquets: tuple[Path, ...] = ()
    faults: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def listings(self) -> dict[Path, Listing]:
        """The tar archives, listed."""
        return {tar: list_tar(tar) for tar in self.tars}

    def kinds(self) -> dict[str, int]:
        """How many there are of what there is."""
        found = {
            "images": len(self.images),
            "tar archives": len(self.tars),
            "parquet files": len(self.parquets),
        }
        return {kind: number for kind, number in found.items() if number}


def look(path: Path) -> Contents:
    """List a folder with its subfolders, or take an archive.

    Raises:
        UsageError: there is nothing, or nothing that camkit reads.
    """
    if path.is_dir():
        return _walk(path)
    if not path.exists():
        raise UsageError(f"--data {path}: no such file or folder")
    if path.name.lower().endswith(COMPRESSED):
        raise UsageError(
            f"--data {path}: camkit reads plain tar archives (a compressed one can be read only from its "
            "beginning).\nUncompress it (for .tar.gz: gunzip) or unpack it."
        )
    if path.suffix == ".parquet":
        return Contents(path, parquets=(path,))
    if path.suffix == ".tar" or tarfile.is_tarfile(path):
        return Contents(path, tars=(path,))
    raise UsageError(f"--data {path}: expected a folder, a .tar or a .parquet file")


def _walk(root: Path) -> Contents:
    images: list[tuple[str, Source]] = []
    files: list[Path] = []
    faults: dict[str, str] = {}
    seen: set[str] = set()

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        faults[name] = f"the folder cannot be listed: {error.strerror}"

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unlisted):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above would be followed for ever
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        here = Path(folder)
        prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/"
        if WNID.fullmatch(here.name) and not names and not subfolders:
            faults[prefix.rstrip("/")] = "the class folder is empty"
        images += [(prefix + name, here / name) for name in names if is_image(name)]
        files += [here / name for name in names if name.endswith((".tar", ".parquet")) and name[0] != "."]
    contents = Contents(
        root,
        tuple(sorted(images)),
        tuple(sorted(path for path in files if path.suffix == ".tar")),
        tuple(sorted(path for path in files if path.suffix == ".parquet")),
        faults,
        tuple(f"{name or '.'}: {reason}" for name, reason in faults.items()),
    )
    if not contents.kinds():
        reason = f"\n{contents.notes[0]}" if faults else ""
        raise UsageError(
            f"--data {root}: no images found (looked for {' '.join(EXTENSIONS)}, .tar and .parquet "
            f"in all subfolders){reason}"
        )
    return contents


def split_of(name: str) -> str | None:
    """The split that a path names: by a folder `train` or `val`, or in the name of an archive."""
    *words, file = name.lower().split("/")
    if file.endswith((".tar", ".parquet")):
        words += re.split(r"[^a-z]+", file)
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def validation_only(contents: Contents) -> Contents:
    """The validation split, where folders or archives of several splits lie side by side.

    Raises:
        UsageError: there are several, and none is the validation split.
    """
    archives = [path.relative_to(contents.root).as_posix() for path in (*contents.tars, *contents.parquets)]
    names = [name for name, _ in contents.images] + archives
    found = {split for name in names if (split := split_of(name))}
    if len(found) < 2:
        return contents
    if "validation" not in found:
        raise UsageError(
            f"--data {contents.root} holds several splits ({', '.join(sorted(found))}): name one of them"
        )

    def kept(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(p for p in paths if split_of(p.relative_to(contents.root).as_posix()) == "validation")

    left = ", ".join(sorted(found - {"validation"}))
    return replace(
        contents,
        images=tuple(image for image in contents.images if split_of(image[0]) == "validation"),
        tars=kept(contents.tars),
        parquets=kept(contents.parquets),
        notes=(*contents.notes, f"of several splits, validation is taken; left out: {left}"),
    )
