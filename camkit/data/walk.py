"""A folder and all below it: the images, the archives, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

from camkit.data.classes import WNID
from camkit.data.kinds import LeftOut, holds_copies, is_image
from camkit.data.sources import Source


class Walk:
    """What lies below a folder. Folders come before links to folders: a link never stands for what it shows.

    Attributes:
        images: (path below the folder, path); `archives`: tar and parquet files.
        folders: paths below the folder of all that are looked into.
        faults: folder -> what is wrong with it.
        notes: lines on links that lead nowhere new.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[tuple[str, Source]] = []
        self.archives: list[Path] = []
        self.folders: list[str] = []
        self.faults: dict[str, str] = {}
        self.notes: list[str] = []
        self.left_out = LeftOut()
        self._seen: set[str] = set()
        links = [root]
        for start in links:  # grows on the way
            links += self._walk(start)

    def _walk(self, start: Path) -> list[Path]:
        """Look into a folder and those below it; gives the links to folders that were met."""
        links: list[Path] = []
        for folder, subfolders, names in os.walk(start, onerror=self._unlisted):
            real, here = os.path.realpath(folder), Path(folder)
            if real in self._seen:  # a link back to a folder above would be followed for ever
                if here == start:
                    self.notes.append(f"{self._below(here)}: a link to a folder that is read already")
                subfolders.clear()
                continue
            self._seen.add(real)
            self._count_copies(here, subfolders)
            kept = sorted(name for name in subfolders if name[0] != "." and not holds_copies(name))
            links += [here / name for name in kept if (here / name).is_symlink()]
            subfolders[:] = [name for name in kept if not (here / name).is_symlink()]
            self._take(here, names, empty=not names and not kept)
        return links

    def _below(self, folder: Path) -> str:
        return "" if folder == self.root else folder.relative_to(self.root).as_posix()

    def _unlisted(self, error: OSError) -> None:
        self.faults[self._below(Path(error.filename))] = f"the folder cannot be listed: {error.strerror}"

    def _count_copies(self, here: Path, subfolders: list[str]) -> None:
        for folder in filter(holds_copies, subfolders):
            images = sum(is_image(name) for _, _, names in os.walk(here / folder) for name in names)
            if images:
                self.left_out.copies[folder] += images

    def _take(self, here: Path, names: list[str], empty: bool) -> None:
        below = self._below(here)
        self.folders.append(below)
        if WNID.fullmatch(here.name) and empty:
            self.faults[below] = "the class folder is empty"
        prefix = f"{below}/" if below else ""
        for name in names:
            if is_image(name):
                self.images.append((prefix + name, here / name))
            elif name.endswith((".tar", ".parquet")) and name[0] != ".":
                self.archives.append(here / name)
            else:
                self.left_out.add(name)
