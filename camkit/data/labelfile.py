"""`--labels FILE`: labels in a table of the user's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from camkit.data.classes import number_of
from camkit.data.labels import Labels, Reading
from camkit.data.names import file_of
from camkit.data.numbers import why_not_indices
from camkit.data.texts import read_table
from camkit.errors import UsageError


def from_file(path: Path, names: Sequence[str], reading: Reading) -> Labels:
    """By a CSV file `image,label`: the image's id or file name; an index, a wnid or a class name.

    All of its rows decide whether its numbers are the class list's indices.

    Raises:
        UsageError: the file cannot be read, names no image of the data, two labels for one image, a label
            that is no class or the name of two, numbers that are not the class list's indices, or a file
            name that several images have.
    """
    rows = read_table(path, ("image", "label"))
    bare = _why_not_indices([row["label"] for row in rows], reading)
    find = _Finder(names)
    known: dict[str, int] = {}
    strangers = 0
    for number, row in enumerate(rows, start=2):
        matches = find(row["image"])
        strangers += not matches
        if len(matches) > 1:
            raise UsageError(
                f"{path}, row {number}: {len(matches)} images are called {row['image']!r}: give the path, as "
                f"{matches[0]!r}"
            )
        if not matches or not row["label"].strip():
            continue
        try:
            label = reading.classes.index_of(row["label"])
        except UsageError as error:
            looks = f"; {bare}" if bare else ""
            raise UsageError(f"{path}, row {number}: {error}{looks}") from error
        if known.setdefault(matches[0], label) != label:
            raise UsageError(f"{path}, row {number}: {row['image']!r} has another label further up")
    if not known:
        raise UsageError(f"{path} names none of the images; theirs are like {names[0]!r}")
    if bare:
        raise UsageError(f"{path}: {bare}")
    notes = (f"{path.name}: {strangers} rows name images that are not there",) if strangers else ()
    missing = {name: f"{path.name} gives it no label" for name in names if name not in known}
    return Labels(known, path.name, missing, notes)


def _why_not_indices(labels: Sequence[str], reading: Reading) -> str | None:
    """Why numbers are not indices; None where they are. A wnid or a name among them names the list."""
    numbers, named = [], reading.named
    for label in filter(None, map(str.strip, labels)):
        number = number_of(label)
        if number is None:
            named = named or bool(reading.classes.indices_named(label))
        elif number >= 0:
            numbers.append(number)
    return why_not_indices(numbers, reading.classes, named)


class _Finder:
    """Images by their ids, their file names, or either without spaces around it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.ids = set(names)
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.stripped: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self.by_name[file_of(name)].append(name)
            for one in {name.strip(), file_of(name).strip()}:
                self.stripped[one].append(name)

    def __call__(self, image: str) -> list[str]:
        if image in self.ids:
            return [image]
        return self.by_name.get(image) or self.stripped.get(image.strip(), [])
