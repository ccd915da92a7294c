"""Where the class is in each image, from other people's files: boxes in CSV or XML, masks in PNG files."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from camkit.data.items import DataSet, Item
from camkit.data.regions import Boxes, MaskFile, Region
from camkit.errors import UsageError

BOX = ("x1", "y1", "x2", "y2")
KAGGLE = ("ImageId", "PredictionString")


def with_regions(data: DataSet, path: Path) -> DataSet:
    """A data set whose images know where their class is.

    Args:
        path: a CSV file `image,x1,y1,x2,y2` (a row per box) or Kaggle's `LOC_val_solution.csv`; or a folder
            of ILSVRC's XML files or of PNG masks, named as the images are.

    Raises:
        UsageError: it holds nothing of that kind, or names none of the images.
    """
    if path.is_file():
        found, notes = _from_csv(path)
    elif path.is_dir():
        found, notes = _from_folder(path)
    else:
        raise UsageError(f"--regions {path}: no such file or folder")
    matched = {item.id: region for item in data.items if (region := _match(item, found)) is not None}
    if not matched:
        example = next(iter(found), None)
        raise UsageError(
            f"--regions {path} names none of the images"
            + (f": it has {example!r}, they are like {data.items[0].id!r}" if example else "")
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


def _match(item: Item, found: Mapping[str, Region]) -> Region | None:
    """By the image's id, its file name, or either without the ending."""
    name = PurePosixPath(item.id)
    keys = (item.id, str(name.with_suffix("")), name.name, name.stem)
    return next((found[key] for key in keys if key in found), None)


def _from_csv(path: Path) -> tuple[dict[str, Region], list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, restval="")
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise UsageError(f"--regions {path}: {error}") from error
    if {*KAGGLE} <= {*columns}:
        return _boxes(
            path,
            ((line, row["ImageId"], box) for line, row in rows for box in _kaggle(row["PredictionString"])),
        )
    if {"image", *BOX} <= {*columns}:
        return _boxes(path, ((line, row["image"], [row[side] for side in BOX]) for line, row in rows))
    raise UsageError(
        f"--regions {path}: expected the columns image,{','.join(BOX)} or {','.join(KAGGLE)}; it has "
        f"{','.join(columns) or 'none'}"
    )


def _kaggle(text: str) -> list[list[str]]:
    """`n01440764 1 2 3 4 n01440764 …` -> the boxes."""
    words = text.split()
    return [words[start + 1 : start + 5] for start in range(0, len(words), 5)]


def _boxes(path: Path, rows: Iterable[tuple[int, str, Sequence[str]]]) -> tuple[dict[str, Region], list[str]]:
    """Boxes by image, and what cannot be read.

    Args:
        rows: line in the file, image, and the four sides as text.
    """
    boxes: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    broken: list[str] = []
    for line, image, sides in rows:
        try:
            x1, y1, x2, y2 = map(float, sides)
        except ValueError:
            broken.append(f"of {image!r} in line {line} ({','.join(sides)})")
            continue
        boxes[image].append((x1, y1, x2, y2))
    notes = (
        [f"{path.name}: boxes that cannot be read: {len(broken)}, the first {broken[0]}"] if broken else []
    )
    return {image: Boxes(tuple(found)) for image, found in boxes.items()}, notes


def _from_folder(path: Path) -> tuple[dict[str, Region], list[str]]:
    found: dict[str, Region] = {}
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
        if key in found:
            found.setdefault(key.rpartition("/")[2], found[key])
    if not found and not broken:
        raise UsageError(f"--regions {path}: no .xml and no .png files there")
    notes = (
        [f"{path.name}: files that cannot be read: {len(broken)}, the first {broken[0]}"] if broken else []
    )
    return found, notes


def _read_xml(file: Path) -> Boxes:
    """ILSVRC's annotation (PASCAL VOC's form): boxes, and the size of the photo they were drawn on."""
    root = ElementTree.parse(file).getroot()

    def numbers(element: ElementTree.Element, names: Sequence[str]) -> list[float]:
        texts = [element.findtext(name) for name in names]
        if None in texts:
            raise ValueError(f"no {', '.join(names)} in <{element.tag}>")
        return [float(text) for text in texts if text is not None]

    boxes = [numbers(box, ("xmin", "ymin", "xmax", "ymax")) for box in root.iter("bndbox")]
    if not boxes:
        raise ValueError("no <bndbox>")
    size = root.find("size")
    width, height = (0.0, 0.0) if size is None else numbers(size, ("width", "height"))
    drawn_on = (int(width), int(height)) if width and height else None
    return Boxes(tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes), drawn_on)
