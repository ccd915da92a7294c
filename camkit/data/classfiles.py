"""Class lists in files: a name per line, JSON, or CSV."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camkit.data.classes import FOLDERS, IMAGENET, WNID, ClassList, number_of
from camkit.data.texts import read_table, read_text
from camkit.errors import UsageError

# A class: its name, and its wnid where there is one.
Entry = tuple[str, str]


def read_class_file(path: Path) -> ClassList:
    """The class list of a file, by its ending.

    `.json`: `{index: name}`, `{index: [wnid, name]}`, `{name: index}` or a list of names; `.csv` and `.tsv`:
    the columns `index`, `name` and, if wanted, `wnid`; any other: a name per line, or a wnid and a name.

    Raises:
        UsageError: it is not there, is no such list, leaves an index or a name out, or has a wnid twice.
    """
    if not path.exists():
        words = f"{IMAGENET}, {FOLDERS} or a file of class names"
        raise UsageError(f"--classes {path}: expected {words}; there is no such file")
    ending = path.suffix.lower()
    if ending == ".json":
        entries = _from_json(path)
    elif ending in (".csv", ".tsv"):
        rows = read_table(path, ("index", "name"), optional=("wnid",))
        indexed = [(row["index"], (row["name"].strip(), row["wnid"].strip())) for row in rows]
        entries = _in_order(path, indexed)
    else:
        entries = _from_lines(path)
    return _checked(path, entries)


def _from_lines(path: Path) -> list[Entry]:
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    # As in `synset_words.txt`; in a list of nothing but wnids they are the names too.
    if lines and all(WNID.fullmatch(line[:9]) and not line[9:10].strip() for line in lines):
        return [(line[9:].strip() or line[:9], line[:9]) for line in lines]
    return [(line, "") for line in lines]


def _from_json(path: Path) -> list[Entry]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"--classes {path}: no JSON file: {error}") from error
    if isinstance(found, Mapping):
        if found and all(_is_whole(value) for value in found.values()):
            return _in_order(path, [(str(index), (name, "")) for name, index in found.items()])
        return _in_order(path, [(index, _entry(path, value)) for index, value in found.items()])
    if isinstance(found, list):
        return [_entry(path, value) for value in found]
    raise UsageError(f"--classes {path}: expected {{index: name}} or a list of names")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _entry(path: Path, value: Any) -> Entry:
    """A class as it stands in JSON."""
    if isinstance(value, str):
        return value.strip(), ""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        wnid, name = value
        if WNID.fullmatch(wnid):
            return name.strip(), wnid
    raise UsageError(f"--classes {path}: expected a class's name, or [wnid, name]; found {json.dumps(value)}")


def _in_order(path: Path, entries: Sequence[tuple[str, Entry]]) -> list[Entry]:
    """Classes by their indices, each of which has to be there once."""
    indices = []
    for text, (name, _) in entries:
        index = number_of(text)
        if index is None:
            raise UsageError(f"--classes {path}: the index of {name!r} is {text!r}, no whole number")
        indices.append(index)
    twice = [index for index, count in Counter(indices).items() if count > 1]
    if twice:
        raise UsageError(f"--classes {path}: two classes have the index {twice[0]}")
    absent = sorted(set(range(len(indices))) - set(indices))
    if absent:
        from_one = min(indices) == 1 and max(indices) == len(indices)
        hint = "; they are counted from 1, and camkit's begin at 0" if from_one else ""
        raise UsageError(f"--classes {path}: no class has the index {absent[0]}{hint}")
    in_order = sorted(zip(indices, (entry for _, entry in entries), strict=True))
    return [entry for _, entry in in_order]


def _checked(path: Path, entries: Sequence[Entry]) -> ClassList:
    if not entries:
        raise UsageError(f"--classes {path}: there is no class in it")
    for index, (name, wnid) in enumerate(entries):
        if not name:
            raise UsageError(f"--classes {path}: class {index} has no name (an empty line?)")
        if wnid and not WNID.fullmatch(wnid):
            raise UsageError(f"--classes {path}: class {index}, {name!r}: {wnid!r} is no wnid, as n01440764")
    names, wnids = zip(*entries, strict=True)
    if any(wnids):
        if not all(wnids):
            raise UsageError(f"--classes {path}: class {wnids.index('')} has no wnid, and others have one")
        (wnid, times), *_ = Counter(wnids).most_common(1)
        if times > 1:
            raise UsageError(f"--classes {path}: two classes have the wnid {wnid}")
    name = path.name if path.name not in (IMAGENET, FOLDERS) else f"./{path.name}"
    return ClassList(name, names, wnids if any(wnids) else ())
