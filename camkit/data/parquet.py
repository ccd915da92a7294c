"""Hugging Face's parquet files: a column of images, a column of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from camkit.data.archives import safe_name
from camkit.data.classes import number_of
from camkit.data.columns import Columns, find_columns
from camkit.data.contents import Entries
from camkit.data.labels import Labels, Reading, from_texts, used
from camkit.data.sources import ParquetRow
from camkit.errors import CamkitError, UsageError

# To read one image is to read its row group: a hundred images in HF's older files, 100 MB in newer ones.
LARGE_GROUP = 2**26
MAX_GROUP = 2**32


def list_parquet(root: Path, files: Sequence[Path], reading: Reading) -> tuple[Entries, Labels]:
    """The images of parquet files and their labels.

    Raises:
        UsageError: it is not clear which column holds the images, or one that was named is not there.
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
                if not file.metadata.num_rows:
                    continue
                first, columns = columns, find_columns(path, file, reading)
                if first not in (None, columns):
                    raise CamkitError(f"{path} has other columns or classes than the files before it")
                _check_groups(path, file, notes)
                place = path.name if path == root else path.relative_to(root).as_posix()
                rows += _rows(path, place, file, columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise CamkitError(f"{path} cannot be read as a parquet file: {error}") from error
    if columns is None:
        raise CamkitError(f"{root}: the parquet files have no rows")
    names = _names(rows)
    entries = tuple((name, source) for name, (_, _, source, _) in zip(names, rows, strict=True))
    values = [label for *_, label in rows]
    return entries, _labels(names, values, columns, reading, notes)


def _check_groups(path: Path, file: Any, notes: list[str]) -> None:
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
    names: Sequence[str], values: Sequence[Any], columns: Columns, reading: Reading, notes: Sequence[str]
) -> Labels:
    notes = (*notes, *columns.notes)
    if columns.label is None:
        return Labels(notes=notes, refused=columns.unclear)
    texts = [_text(value) for value in values]
    pairs = zip(names, texts, strict=True)
    origin = f"the column {columns.label!r}"
    labels = _by_list(pairs, columns, reading) if columns.classes else from_texts(pairs, origin, reading)
    return replace(labels, notes=(*notes, *labels.notes))


def _text(value: Any) -> str | None:
    """A label as text; None where there is none: Hugging Face's data sets have -1 there, pandas NaN."""
    if value is None or value == -1 or value != value:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _by_list(pairs: Iterable[tuple[str, str | None]], columns: Columns, reading: Reading) -> Labels:
    """Labels of (image, number in the file's own list of classes) pairs."""
    origin = f"the column {columns.label!r} and its list of classes"
    try:
        indices = reading.classes.indices_of(columns.classes)
    except UsageError as error:
        return Labels(refused=f"{origin}: {error}")
    known, missing, strange = {}, {}, ""
    for name, text in pairs:
        number = None if text is None else number_of(text)
        if text is None:
            missing[name] = "it comes without a label"
        elif number is not None and 0 <= number < len(indices):
            known[name] = indices[number]
        else:
            missing[name] = f"label {text!r} is no place in its list of {len(indices)} classes"
            strange = strange or missing[name]
    return used(known, origin, missing, strange)
