"""Hugging Face's parquet files: a column of images, a column of labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camkit.data.archives import safe_name
from camkit.data.classes import class_list, own_numbering
from camkit.data.contents import Entries
from camkit.data.labels import NONE, Labels, from_texts, renumbered
from camkit.data.sources import ParquetRow
from camkit.errors import CamkitError, UsageError

LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "wnid", "synset")
# To read one image is to read its row group: a hundred images in HF's older files, 100 MB in newer ones.
LARGE_GROUP = 2**26
MAX_GROUP = 2**32


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are.

    Attributes:
        path: of the file names, None where the images have none.
        classes: the data set's list of class names, empty where the file has none.
    """

    image: str
    path: str | None
    label: str | None
    classes: tuple[str, ...]


def list_parquet(root: Path, files: Sequence[Path], named: bool) -> tuple[Entries, Labels]:
    """The images of parquet files and their labels.

    Args:
        named: the user named the layout; whole numbers without a list of classes are then ImageNet's indices.

    Raises:
        CamkitError: pyarrow is absent, or a file cannot be read or has no images.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CamkitError('parquet files are read with pyarrow: pip install "camkit[parquet]"') from error
    rows: list[tuple[str, str, ParquetRow, Any]] = []  # (name in the row, place, source, label)
    notes: list[str] = []
    columns = None
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                first, columns = columns, _columns(path, file)
                if first not in (None, columns):
                    raise CamkitError(f"{path} has other columns or classes than the files before it")
                _check_groups(path, file, columns, notes)
                place = path.name if path == root else path.relative_to(root).as_posix()
                rows += _rows(path, place, file, columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise CamkitError(f"{path} cannot be read as a parquet file: {error}") from error
    names = _names(rows)
    entries = tuple((name, source) for name, (_, _, source, _) in zip(names, rows, strict=True))
    values = [label for *_, label in rows]
    assert columns is not None  # there is at least one file
    return entries, _labels(names, values, columns, named, notes)


def _columns(path: Path, file: Any) -> Columns:
    """By the features that HF's library keeps in the file, else by type and name."""
    import pyarrow

    schema = file.schema_arrow
    features = _features(schema)
    kinds = {name: f.get("_type") for name, f in features.items() if isinstance(f, dict)}
    is_struct = {f.name: pyarrow.types.is_struct(f.type) for f in schema}
    holds_images = [
        f.name
        for f in schema
        if kinds.get(f.name) == "Image"
        or (is_struct[f.name] and any(f.type[i].name == "bytes" for i in range(f.type.num_fields)))
        or pyarrow.types.is_binary(f.type)
        or pyarrow.types.is_large_binary(f.type)
    ]
    if not holds_images:
        raise CamkitError(f"{path} has no column of images; its columns: {', '.join(schema.names)}")
    image = holds_images[0]
    inner = [f.name for f in schema.field(image).type] if is_struct[image] else []
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    labels += [name for name in LABEL_COLUMNS if name in schema.names]
    label = labels[0] if labels else None
    classes = features.get(label, {}).get("names") if label and label in kinds else None
    return Columns(image, f"{image}.path" if "path" in inner else None, label, tuple(classes or ()))


def _features(schema: Any) -> dict[str, Any]:
    """What HF's library wrote down of the columns; empty where it wrote nothing."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def _check_groups(path: Path, file: Any, columns: Columns, notes: list[str]) -> None:
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if group.total_byte_size > MAX_GROUP:
            raise CamkitError(f"{path} is refused: row group {number} claims {group.total_byte_size} bytes")
        slow = (
            "row groups are large, and every image costs reading its group: camkit data sample unpacks them"
        )
        if group.total_byte_size > LARGE_GROUP and slow not in notes:
            notes.append(slow)


def _rows(path: Path, place: str, file: Any, columns: Columns) -> Iterator[tuple[str, str, ParquetRow, Any]]:
    wanted = [name for name in (columns.path, columns.label) if name]
    number = 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, wanted)
        count = file.metadata.row_group(group).num_rows
        structs = table[columns.image].to_pylist() if columns.path else []
        paths = [(struct or {}).get("path") for struct in structs]
        labels = table[columns.label].to_pylist() if columns.label else []
        for row in range(count):
            source = ParquetRow(path, group, row, columns.image)
            yield (
                (paths[row] if paths else None) or "",
                f"{place}/{number:06d}",
                source,
                labels[row] if labels else None,
            )
            number += 1


def _names(rows: Sequence[tuple[str, str, ParquetRow, Any]]) -> list[str]:
    """The file names in the rows where each row has its own, else file and row number."""
    names = [name for name, *_ in rows]
    try:
        if all(names) and Counter(names).most_common(1)[0][1] == 1:
            return [safe_name(name) for name in names]
    except CamkitError:
        pass  # a name that leads outside is no id: the row number is one
    return [place for _, place, *_ in rows]


def _labels(
    names: Sequence[str], values: Sequence[Any], columns: Columns, named: bool, notes: Sequence[str]
) -> Labels:
    origin = f"the column {columns.label!r}"
    if columns.label is None:
        return Labels(notes=tuple(notes))
    texts = [None if value is None or value == -1 else str(value) for value in values]
    if columns.classes:
        try:
            indices = class_list(columns.classes)
        except UsageError as error:
            return Labels(notes=(*notes, f"{origin} and its list of classes are not used: {error}"))
        places = {str(place): str(index) for place, index in enumerate(indices)}
        texts = [None if text is None else places.get(text, text) for text in texts]
        origin += " and its list of classes"
    labels = from_texts(zip(names, texts, strict=True), origin)
    numbers = all(text is None or text.isdigit() for text in texts)
    if numbers and not columns.classes and not named and own_numbering(labels.by_id.values()):
        labels = NONE
        notes = (*notes, renumbered(origin, "parquet"))
    return Labels(labels.by_id, labels.origin, labels.missing, (*notes, *labels.notes))
