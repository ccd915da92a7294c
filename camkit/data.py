"""Where the images lie and what they are labelled."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo

from camkit.errors import CamkitError, UsageError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
SAMPLE = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
WNID_FILE = re.compile(r"_(n\d{8})\.\w+$")


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        id: path relative to the data root with `/`: the `image` column of every CSV.
        label: ImageNet class index, or None where it is not known.
        group: what the images are spread over (the label, else the folder).
    """

    id: str
    path: Path
    label: int | None
    group: str


@dataclass(frozen=True)
class DataSet:
    """All images of a run's data, in the order in which `--limit` takes them."""

    name: str
    items: tuple[Item, ...]
    fingerprint: str


@cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo()


@cache
def wnid_to_index() -> dict[str, int]:
    """WordNet id -> ImageNet class index (0 to 999)."""
    return {wnid: index for index, wnid in enumerate(_imagenet().label_names())}


def class_name(index: int, classes: int) -> str:
    """The first name of an ImageNet class, or `class 7` for models with other than 1,000 classes."""
    if classes != len(wnid_to_index()):
        return f"class {index}"
    return _imagenet().index_to_description(index).split(",")[0]


def _label(relative: Path) -> int | None:
    """The class that a wnid folder or a file name ending in `_n01751748.JPEG` names."""
    suffix = WNID_FILE.search(relative.name)
    for wnid in (relative.parent.name, suffix.group(1) if suffix else ""):
        if wnid in wnid_to_index():
            return wnid_to_index()[wnid]
    return None


def sample_root() -> Path:
    """The folder of scikit-image's photos.

    Raises:
        CamkitError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise CamkitError(
            "the sample photos come with scikit-image: pip install scikit-image, or name --data PATH"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _image_files(root: Path) -> list[Path]:
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS)
    )


def _spread(items: Sequence[Item], seed: int) -> tuple[Item, ...]:
    """A fixed, seeded order that goes round the groups, one image each, before it takes a second."""

    def key(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogateescape")).digest()

    groups: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: key(item.id)):
        groups[item.group].append(item)
    turns = [
        (turn, key(group), item) for group, members in groups.items() for turn, item in enumerate(members)
    ]
    return tuple(item for *_, item in sorted(turns, key=lambda turn: turn[:2]))


def _fingerprint(items: Sequence[Item]) -> str:
    """sha256 over every image's id, label and size in bytes: what is cheap to read and hard to share."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        try:
            size = item.path.stat().st_size
        except OSError:
            size = -1
        label = "" if item.label is None else item.label
        digest.update(f"{item.id}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sample_items() -> list[Item]:
    """The sample photos.

    Raises:
        CamkitError: they are not installed.
    """
    return _items(sample_root(), [sample_root() / name for name in SAMPLE])


def _items(root: Path, files: Sequence[Path]) -> list[Item]:
    items = []
    for path in files:
        relative = path.relative_to(root)
        label = _label(relative)
        group = relative.parent.as_posix() if label is None else str(label)
        items.append(Item(relative.as_posix(), path, label, group))
    return items


def find_images(data: str, seed: int) -> DataSet:
    """The images of a folder (searched through its subfolders) or, for `sample`, the sample photos.

    Raises:
        UsageError: the folder does not exist or holds no image.
        CamkitError: the sample photos are not installed.
    """
    if data == "sample":
        items = sample_items()
    else:
        root = Path(data).expanduser()
        if not root.is_dir():
            raise UsageError(f"--data {data}: no such folder")
        items = _items(root, _image_files(root))
        if not items:
            raise UsageError(
                f"--data {data}: no images found (looked for {' '.join(EXTENSIONS)} in all subfolders)"
            )
    name = "sample" if data == "sample" else Path(data).expanduser().resolve().name
    return DataSet(name, _spread(items, seed), _fingerprint(items))
