"""The columns of a parquet file: which holds the images, which the labels. One of several is not guessed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from camkit.data.labels import Reading
from camkit.errors import CamkitError, UsageError

LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "wnid", "synset")
# Values of a column that are looked at: the first images may be damaged.
TRIED = 8


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are.

    Attributes:
        path: of the file names, None where the images have none.
        classes: the data set's list of class names, empty where the file has none.
        unclear: why none of the columns is taken for the labels.
        notes: lines for the user.
    """

    image: str
    path: str | None
    label: str | None
    classes: tuple[str, ...]
    unclear: str = ""
    notes: tuple[str, ...] = ()


def find_columns(path: Path, file: Any, reading: Reading) -> Columns:
    """By the user's word, the features that HF's library keeps in the file, and what is in them.

    Args:
        file: a ParquetFile with rows.

    Raises:
        UsageError: several columns hold images, or a column that was named is not there or holds none.
        CamkitError: no column holds images.
    """
    schema = file.schema_arrow
    features = _features(schema)
    kinds = {name: f.get("_type", "") for name, f in features.items() if isinstance(f, dict)}
    image = _image_column(path, file, kinds, reading.image_column)
    inner = _fields(schema.field(image))
    label, others = _label_column(path, schema.names, kinds, reading.label_column)
    classes = features[label].get("names") if label and kinds.get(label) == "ClassLabel" else None
    columns = Columns(image, f"{image}.path" if "path" in inner else None, label, tuple(classes or ()))
    if not others:
        return columns
    several = ", ".join(others)
    if label is None:
        return replace(columns, unclear=f"{several} could all be labels: name one with --label-column")
    note = f"the column {label!r} gives the labels, not {several} (see --label-column)"
    return replace(columns, notes=(note,))


def _features(schema: Any) -> dict[str, Any]:
    """What HF's library wrote down of the columns; empty where it wrote nothing."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def _fields(field: Any) -> list[str]:
    """The names within a column of structs; empty for others."""
    import pyarrow

    if not pyarrow.types.is_struct(field.type):
        return []
    return [field.type[place].name for place in range(field.type.num_fields)]


def _holds_bytes(field: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return types.is_binary(field.type) or types.is_large_binary(field.type) or "bytes" in _fields(field)


def _image_column(path: Path, file: Any, kinds: dict[str, str], named: str | None) -> str:
    schema = file.schema_arrow
    binary = [field.name for field in schema if _holds_bytes(field)]
    if named is not None:
        if named not in schema.names:
            raise UsageError(f"--image-column {named}: {path} has the columns {', '.join(schema.names)}")
        if named not in binary:
            raise UsageError(
                f"--image-column {named}: it holds {schema.field(named).type}, no image files; columns that "
                f"may hold some: {', '.join(binary) or 'none'}"
            )
        return named
    images = [name for name in binary if kinds.get(name) == "Image" or _holds_images(file, name)]
    if not images:
        hint = f"; --image-column says which of {', '.join(binary)} holds them" if binary else ""
        raise CamkitError(f"{path} has no column of images; its columns: {', '.join(schema.names)}{hint}")
    if len(images) > 1:
        raise UsageError(
            f"{path} has images in several columns, {', '.join(images)}: name one (--image-column)"
        )
    return images[0]


def _holds_images(file: Any, name: str) -> bool:
    """Whether one of the first values is an image, by its content."""
    batch = next(file.iter_batches(batch_size=TRIED, row_groups=[0], columns=[name], use_threads=False))
    values = [one.get("bytes") if isinstance(one, dict) else one for one in batch[name].to_pylist()]
    return any(map(_is_image, values))


def _is_image(value: Any) -> bool:
    try:
        with Image.open(io.BytesIO(value)):
            return True
    except Exception:  # PIL's decoders raise nearly anything on what is no image
        return False


def _label_column(
    path: Path, names: Sequence[str], kinds: dict[str, str], named: str | None
) -> tuple[str | None, list[str]]:
    """The column of labels, None where there is none or it is not clear; and the others that could be it.

    What HF's library declares to be labels stands above what is merely called so.
    """
    if named is not None:
        if named not in names:
            raise UsageError(f"--label-column {named}: {path} has the columns {', '.join(names)}")
        return named, []
    declared = [name for name in names if kinds.get(name) == "ClassLabel"]
    called = [name for name in LABEL_COLUMNS if name in names and name not in declared]
    found = declared or called
    if len(found) == 1:
        return found[0], [name for name in called if name != found[0]]
    return None, found
