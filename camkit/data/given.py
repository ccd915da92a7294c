"""Maps that another program made: which file, or which part of an array, is an image's."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from camkit.data.names import file_of, stem_of
from camkit.data.texts import read_text
from camkit.errors import UsageError

ENDINGS = (".npy", ".npz", ".png", ".tif", ".tiff")
ARRAYS = (".npy", ".npz")
# In an .npz with one array for all images: its names, and those of the list of images beside it.
MAPS, NAMES = ("maps", "saliency", "cams"), ("images", "names", "ids")
# Modes of Pillow whose pixels are one number each.
GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class Summary:
    """What all maps of a run have in common.

    Attributes:
        sizes: of the maps, (h, w).
        negative: how many have a value below 0.
        sha256: of all of them, with their images' names.
    """

    sizes: frozenset[tuple[int, int]]
    negative: int
    sha256: str


class GivenMaps(Mapping[str, np.ndarray]):
    """Image -> map (h, w), float32, of any resolution, read when it is asked for.

    Args:
        path: a folder with one `.npy`, `.npz`, `.png` or `.tif` per image, named as the image is, with or
            without the image's own ending and folder; or one array (N, h, w) of all images with the list of
            their names: an `.npz` (as `--save-maps` writes it, or with an array per image), or an `.npy`
            with a `.txt` of the same name beside it, a name per line.
        images: ids of the images that a map is wanted of.

    Raises:
        UsageError: there is no such file, none of the maps is an image's, or it is not clear whose one is.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        if not path.exists():
            raise UsageError(f"--maps {path}: no such file or folder")
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}
        self._files: dict[str, Path] = {}
        found = sorted(one for one in path.rglob("*") if _ending(one) in ENDINGS) if path.is_dir() else [path]
        named: Mapping[str, np.ndarray | Path]
        named = {one.relative_to(path).as_posix() if path.is_dir() else path.name: one for one in found}
        self.others = self._match(named, images)
        if not len(self) and len(found) == 1 and _ending(found[0]) in ARRAYS:
            named = _together(found[0])
            self.others = self._match(named, images)
        if not len(self):
            examples = f"maps: {_some(list(named))}; images: {_some(images)}"
            raise UsageError(
                f"--maps {path}: none of its {len(named)} maps is named as an image is ({examples})"
            )

    def _match(self, named: Mapping[str, np.ndarray | Path], images: Sequence[str]) -> list[str]:
        """Find each image's map; names of maps that are no image's."""
        left = dict(named)
        keys: dict[str, list[str]] = defaultdict(list)
        for name, one in named.items():
            for key in {name, _without_ending(name)} if isinstance(one, Path) else {name}:
                keys[key].append(name)
        for form in (str, file_of):  # by the image's id, else by its file's name, if no other has the same
            whole = Counter(map(form, images))
            stems = Counter(stem_of(form(image)) for image in images)
            for image in images:
                own = form(image)
                forms = [own] * (whole[own] == 1) + [stem_of(own)] * (stems[stem_of(own)] == 1)
                names = dict.fromkeys(name for each in forms for name in keys.get(each, ()) if name in left)
                if image in self or not names:
                    continue
                if len(names) > 1:
                    raise UsageError(f"--maps {self.path}: {' and '.join(names)} could both be {image}'s")
                self._take(image, left.pop(next(iter(names))))
        return list(left)

    def _take(self, image: str, one: np.ndarray | Path) -> None:
        if isinstance(one, Path):
            self._files[image] = one
        else:
            self._arrays[image] = one

    def __getitem__(self, image: str) -> np.ndarray:
        if image in self._arrays:
            return _expect_map(self._arrays[image], f"{self.path.name}, {image}")
        return _read(self._files[image])

    def __iter__(self) -> Iterator[str]:
        yield from self._arrays
        yield from self._files

    def __len__(self) -> int:
        return len(self._arrays) + len(self._files)

    def __contains__(self, image: object) -> bool:
        return image in self._arrays or image in self._files

    @property
    def names(self) -> set[str]:
        """The images that have a map."""
        return set(self)

    def read(self, images: object) -> Mapping[str, np.ndarray]:
        """Image -> map of these images: itself."""
        return self

    def summary(self) -> Summary:
        """What all maps have in common: each is read once.

        Raises:
            UsageError: one cannot be read, or is no map.
        """
        digest, sizes, negative = hashlib.sha256(), set(), 0
        for image in sorted(self):
            one = self[image]
            digest.update(f"{image}\0{one.shape}\n".encode("utf-8", "surrogateescape"))
            digest.update(np.ascontiguousarray(one).tobytes())
            sizes.add((one.shape[0], one.shape[1]))
            negative += bool((one < 0).any())
        return Summary(frozenset(sizes), negative, digest.hexdigest())


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _without_ending(name: str) -> str:
    return stem_of(name) if _ending(Path(name)) in ENDINGS else name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + ", …" * (len(names) > 2)


def _together(path: Path) -> dict[str, np.ndarray]:
    """Image -> map of one file for all images."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            raise UsageError(
                f"--maps {path}: it says nothing of names; list them in {beside.name}, one per line"
            )
        return _listed(
            path, loaded, [line.strip() for line in read_text(beside).splitlines() if line.strip()]
        )
    maps = [name for name in MAPS if name in loaded]
    names = [name for name in NAMES if name in loaded]
    if maps and names:
        return _listed(path, loaded[maps[0]], loaded[names[0]].tolist())
    return loaded


def _listed(path: Path, maps: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    if maps.ndim < 3 or len(maps) != len(names):
        raise UsageError(f"--maps {path}: {len(names)} names, and an array {maps.shape}; expected (N, h, w)")
    twice = [name for name, count in zip(*np.unique(names, return_counts=True), strict=True) if count > 1]
    if twice:
        raise UsageError(f"--maps {path}: two maps have the name {twice[0]}")
    return dict(zip(map(str, names), maps, strict=True))


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--maps {path}: no {_ending(path)} file of numbers ({error})") from error


def _read(path: Path) -> np.ndarray:
    """The map in one image's file."""
    if _ending(path) in ARRAYS:
        loaded = _load(path)
        if isinstance(loaded, dict):
            if len(loaded) != 1:
                raise UsageError(
                    f"--maps {path}: {len(loaded)} arrays ({_some(list(loaded))}), expected one map"
                )
            (loaded,) = loaded.values()
        return _expect_map(loaded, str(path))
    try:
        with Image.open(path) as image:
            if image.mode not in GREY:
                raise UsageError(
                    f"--maps {path}: a picture in colours ({image.mode}) is no map: save the numbers, "
                    "before a colour map is laid on them"
                )
            return _expect_map(np.asarray(image), str(path))
    except OSError as error:
        raise UsageError(f"--maps {path}: it cannot be read: {error}") from error


def _expect_map(found: np.ndarray, where: str) -> np.ndarray:
    """(h, w), float32; further axes of one element are left out.

    Raises:
        UsageError: it is none.
    """
    shape = found.shape
    while found.ndim > 2 and 1 in (found.shape[0], found.shape[-1]):
        found = found[0] if found.shape[0] == 1 else found[..., 0]
    if found.ndim != 2 or found.dtype.kind not in "fiub":
        raise UsageError(
            f"--maps {where}: {found.dtype} of the shape {shape}, expected a map (h, w) of numbers"
        )
    return found.astype(np.float32)
