"""What a file is by its name: an image, something else, or a copy that a system keeps of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from camkit.data.names import file_of, folders_of

EXTENSIONS = (
    ".jpeg", ".jpg", ".jfif", ".png", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".gif", ".ppm", ".pgm"
)  # fmt: skip
# Folders in which systems keep small copies of photos, or what was deleted; in lower case.
COPIES = (
    "@eadir", ".@__thumb", ".thumbnails", ".thumbs", "thumbnails", "thumbs", "__macosx", "@recycle",
    "#recycle", "$recycle.bin", "lost+found",
)  # fmt: skip
# Endings of files that nobody misses among the images.
NO_PHOTOS = (
    ".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".toml", ".ini", ".md", ".rst", ".html", ".log",
    ".mat", ".py", ".sh", ".db", ".cls", ".tar", ".parquet",
)  # fmt: skip
# Endings, and folders, that a line names.
MOST = 8


def is_image(name: str) -> bool:
    """By its ending; what begins with a dot is hidden (macOS leaves `._photo.jpg` beside `photo.jpg`)."""
    return name.lower().endswith(EXTENSIONS) and not file_of(name).startswith(".")


def holds_copies(folder: str) -> bool:
    """Whether a folder of this name holds copies of photos that lie elsewhere."""
    return folder.lower() in COPIES


@dataclass
class LeftOut:
    """Files that are not taken for images of the data set, counted.

    Attributes:
        endings: files by endings that are not read.
        copies: images by the name of the folder of copies that they lie in.
    """

    endings: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)

    def add(self, name: str) -> None:
        """Count a file that is no image, by its name."""
        ending = PurePosixPath(name).suffix.lower()
        if not file_of(name).startswith(".") and ending not in NO_PHOTOS:
            self.endings[ending or "without an ending"] += 1

    def passes_over(self, name: str) -> bool:
        """Whether an image in an archive lies in a hidden folder or in one of copies, which is counted."""
        folders = folders_of(name)
        copies = next((folder for folder in folders if holds_copies(folder)), None)
        if copies:
            self.copies[copies] += 1
        return copies is not None or any(folder.startswith(".") for folder in folders)

    def notes(self) -> list[str]:
        """Lines for the user."""
        lines = []
        if self.copies:
            lines.append(f"passed over, in folders of copies: {_counts(self.copies)}")
        if self.endings:
            read = " ".join(EXTENSIONS)
            lines.append(f"not read, by their endings: {_counts(self.endings)} (read are {read})")
        return lines


def together(parts: Iterable[LeftOut]) -> LeftOut:
    """The counts of several archives."""
    found = LeftOut()
    for part in parts:
        found.endings += part.endings
        found.copies += part.copies
    return found


def _counts(counter: Counter[str]) -> str:
    """`3 .heic, 1 .jpe`, the most first."""
    ordered = sorted(counter.items(), key=lambda one: (-one[1], one[0]))
    others = f" and {len(ordered) - MOST} others" if len(ordered) > MOST else ""
    return ", ".join(f"{number} {name}" for name, number in ordered[:MOST]) + others
