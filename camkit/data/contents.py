"""What lies at a path, before anyone says what it means."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from camkit.data.archives import Listing, list_tar
from camkit.data.kinds import EXTENSIONS
from camkit.data.sources import Source
from camkit.data.walk import Walk
from camkit.errors import UsageError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
Entries = tuple[tuple[str, Source], ...]


@dataclass(frozen=True)
class Contents:
    """Images, tar archives and parquet files below a folder (or one archive).

    Attributes:
        root: the folder or the archive.
        images: (id, source) of every loose image, in the order of their names.
        folders: every folder that was looked into, by its path below `root`, which is the empty one.
        faults: folder -> what is wrong with it.
        notes: lines for the user on what was left out.
    """

    root: Path
    images: Entries = ()
    tars: tuple[Path, ...] = ()
    parquets: tuple[Path, ...] = ()
    folders: tuple[str, ...] = ()
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
    walk = Walk(root)
    contents = Contents(
        root,
        tuple(sorted(walk.images)),
        tuple(sorted(path for path in walk.archives if path.suffix == ".tar")),
        tuple(sorted(path for path in walk.archives if path.suffix == ".parquet")),
        tuple(sorted(walk.folders)),
        walk.faults,
        (
            *(f"{name or '.'}: {reason}" for name, reason in walk.faults.items()),
            *walk.notes,
            *walk.left_out.notes(),
        ),
    )
    if not contents.kinds():
        reasons = "".join(f"\n{note}" for note in contents.notes)
        raise UsageError(
            f"--data {root}: no images found (looked for {' '.join(EXTENSIONS)}, .tar and .parquet "
            f"in all subfolders){reasons}"
        )
    return contents
