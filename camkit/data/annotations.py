"""Where the class is in each image, from other people's files: boxes in CSV or XML, masks in PNG files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from camkit.data.classes import ClassList
from camkit.data.items import DataSet, Item
from camkit.data.names import file_of, stem_of
from camkit.data.regions import Box, Boxes, MaskFile, Region, Size
from camkit.data.texts import read_table
from camkit.errors import UsageError

SIDES = ("x1", "y1", "x2", "y2")
KAGGLE = ("ImageId", "PredictionString")


@dataclass(frozen=True)
class Drawn:
    """The boxes that a file has of one image, each with the name of its class, "" where it has none."""

    boxes: tuple[tuple[str, Box], ...]
    size: Size | None = None

    def of(self, item: Item, classes: ClassList) -> Boxes | None:
        """The boxes of the image's class; None where all are of other classes.

        An image without a label has all its boxes, and so has one whose boxes' names are of no class in the
        list; beside a name that is, those of unknown names do not count.
        """
        known = {name: classes.indices_named(name) for name, _ in self.boxes}
        boxes = tuple(
            box
            for name, box in self.boxes
            if item.label is None or not any(known.values()) or item.label in known[name]
        )
        return Boxes(boxes, self.size) if boxes else None


Found = Mapping[str, Drawn | MaskFile]  # by the image as the file calls it


def with_regions(data: DataSet, path: Path) -> DataSet:
    """A data set whose images know where their class is.

    Args:
        path: a CSV file `image,x1,y1,x2,y2` (a row per box) or Kaggle's `LOC_val_solution.csv`; or a folder
            of ILSVRC's XML files or of PNG masks, named as the images are.

    Raises:
        UsageError: it holds nothing of that kind, names none of the images, or it is not clear which.
    """
    if path.is_file():
        found, notes = _from_csv(path)
    elif path.is_dir():
        found, notes = _from_folder(path)
    else:
        raise UsageError(f"--regions {path}: no such file or folder")
    there = _match(path, [item.id for item in data.items], found)
    if not there:
        example = next(iter(found), None)
        raise UsageError(
            f"--regions {path} names none of the images"
            + (f": it has {example!r}, they are like {data.items[0].id!r}" if example else "")
        )
    matched: dict[str, Region] = {}
    for item in data.items:
        one = there.get(item.id)
        region = one.of(item, data.classes) if isinstance(one, Drawn) else one
        if region is not None:
            matched[item.id] = region
    others = [name for name in there if name not in matched]
    if others:
        notes.append(
            f"{path.name}: images whose boxes are all of other classes: {len(others)}, as {others[0]}"
        )
    missing = len(data.items) - len(matched)
    notes.append(
        f"regions: of {len(matched)} images, from {path.name}" + (f"; {missing} have none" if missing else "")
    )
    items = tuple(replace(item, region=matched.get(item.id)) for item in data.items)
    known = {image: _known(region) for image, region in matched.items()}
    digest = hashlib.sha256(repr(sorted(known.items())).encode(errors="surrogateescape"))
    return replace(data, items=items, regions=digest.hexdigest(), notes=(*data.notes, *notes))


def _known(region: Region) -> str:
    """What tells one region from another, wherever the files lie: of a mask its name and size in bytes."""
    if not isinstance(region, MaskFile):
        return repr(region)
    try:
        size = region.source.stat().st_size
    except OSError:
        size = -1
    return f"{region.name}, {size}"


def _match(path: Path, images: Sequence[str], found: Found) -> dict[str, Drawn | MaskFile]:
    """By image: first by its path, then by its file name, either with or without the ending.

    What is named by a folder is known by its file name only where no folder is as the images' are.

    Raises:
        UsageError: a name is that of several images, or two are that of one.
    """
    claims: dict[str, str] = {}  # image -> its name in the file
    left = list(found)
    for form in (str, file_of):
        called: dict[str, list[str]] = defaultdict(list)
        for image in images:
            if image not in claims:
                for name in {form(image), stem_of(form(image))}:
                    called[name].append(image)
        for key in left:
            alike = called.get(form(key), [])
            own = [image for image in alike if form(image) == form(key)] or alike
            if len(own) > 1:
                raise UsageError(
                    f"--regions {path}: {len(own)} images are called {key!r}: give the path, as {own[0]!r}"
                )
            for image in own:
                if claims.setdefault(image, key) != key:
                    raise UsageError(
                        f"--regions {path}: {claims[image]!r} and {key!r} could both be {image!r}"
                    )
        taken = set(claims.values())
        of_folders = any("/" in key for key in taken)
        left = [key for key in left if key not in taken and not (of_folders and "/" in key)]
    return {image: found[key] for image, key in claims.items()}


def _from_csv(path: Path) -> tuple[Found, list[str]]:
    try:
        rows = read_table(path, KAGGLE)
    except UsageError:
        rows = read_table(path, ("image", *SIDES))
        return _boxes(path, ((row["image"], "", [row[side] for side in SIDES]) for row in rows))
    return _boxes(
        path,
        ((row["ImageId"], name, box) for row in rows for name, box in _kaggle(row["PredictionString"])),
    )


def _kaggle(text: str) -> list[tuple[str, list[str]]]:
    """`n01440764 1 2 3 4 n01440764 …` -> the boxes, each with its class."""
    words = text.split()
    return [(words[start], words[start + 1 : start + 5]) for start in range(0, len(words), 5)]


def _boxes(path: Path, rows: Iterable[tuple[str, str, Sequence[str]]]) -> tuple[Found, list[str]]:
    """Boxes by image, and what cannot be read: an image has all its boxes or none.

    Args:
        rows: image, name of the class, and the four sides as text.
    """
    boxes: dict[str, list[tuple[str, Box]]] = defaultdict(list)
    broken: dict[str, str] = {}
    for image, name, sides in rows:
        try:
            x1, y1, x2, y2 = map(float, sides)
        except ValueError:
            broken.setdefault(image.strip(), ",".join(sides))
            continue
        boxes[image.strip()].append((name, (x1, y1, x2, y2)))
    notes = []
    if broken:
        image, shown = next(iter(broken.items()))
        notes = [
            f"{path.name}: images with a box that cannot be read, which are left without: {len(broken)}, the "
            f"first {image!r} ({shown})"
        ]
    return {image: Drawn(tuple(found)) for image, found in boxes.items() if image not in broken}, notes


def _from_folder(path: Path) -> tuple[Found, list[str]]:
    found: dict[str, Drawn | MaskFile] = {}
    broken: list[str] = []
    for file in sorted(path.rglob("*")):
        key = file.relative_to(path).with_suffix("").as_posix()
        if file.suffix.lower() == ".png":
            found[key] = MaskFile(file)
        elif file.suffix.lower() == ".xml":
            try:
                found[key] = _read_xml(file)
            except (ElementTree.ParseError, ValueError, OSError) as error:
                broken.append(f"{key}.xml: {error}")
    if not found and not broken:
        raise UsageError(f"--regions {path}: no .xml and no .png files there")
    notes = (
        [f"{path.name}: files that cannot be read: {len(broken)}, the first {broken[0]}"] if broken else []
    )
    return found, notes


def _read_xml(file: Path) -> Drawn:
    """ILSVRC's annotation (PASCAL VOC's form): boxes, and the size of the photo they were drawn on."""
    root = ElementTree.parse(file).getroot()

    def numbers(element: ElementTree.Element, names: Sequence[str]) -> list[float]:
        texts = [element.findtext(name) for name in names]
        if None in texts:
            raise ValueError(f"no {', '.join(names)} in <{element.tag}>")
        return [float(text) for text in texts if text is not None]

    boxes: list[tuple[str, Box]] = []
    for thing in root.iter("object"):
        for box in thing.iter("bndbox"):
            x1, y1, x2, y2 = numbers(box, ("xmin", "ymin", "xmax", "ymax"))
            boxes.append((thing.findtext("name", "").strip(), (x1, y1, x2, y2)))
    if not boxes:
        raise ValueError("no <object> with a <bndbox>")
    size = root.find("size")
    width, height = (0.0, 0.0) if size is None else numbers(size, ("width", "height"))
    return Drawn(tuple(boxes), (int(width), int(height)) if width and height else None)
