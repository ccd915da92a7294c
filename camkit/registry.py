"""Name -> thing: what can be named, and the error for an unknown name."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from camkit.errors import UsageError

T = TypeVar("T", bound="Named")

MAIN = "__main__"
# Stands for all names of one kind, whatever is registered.
ALL = "all"


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's docstring."""
    function = getattr(function, "func", function)  # of a partial, what it is made from
    return (function.__doc__ or "").strip().split("\n")[0]


def source_of(function: Callable[..., Any]) -> str:
    """Where a registered function comes from: "" for camkit's own, else its file's path or its module's name.

    The main module is `__main__`: a notebook's cells run again, and register their things again.
    """
    function = getattr(function, "func", function)  # of a partial, what it is made from
    name = getattr(function, "__module__", None) or "an unnamed module"
    if name.partition(".")[0] == "camkit":
        return ""
    file = getattr(sys.modules.get(name), "__file__", None)
    return name if name == MAIN or not file else str(Path(file).resolve())


def unknown_name(kind: str, name: str, known: Iterable[str], also: str = "") -> UsageError:
    """The error for a name that does not exist: what was asked, the nearest, the list; then `also`."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    if kind.endswith("y"):
        plural = f"{kind.removesuffix('y')}ies"
    else:
        plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return UsageError(f"unknown {kind} {name!r}.{nearest}\n{plural}: {', '.join(names)}{also}")


class Named(Protocol):
    """What a registry holds.

    Attributes:
        source_file: where it is registered, see :func:`source_of`.
    """

    @property
    def name(self) -> str: ...

    @property
    def source_file(self) -> str: ...


def groups_of(entry: Named) -> tuple[str, ...]:
    """The groups that an entry belongs to; only methods have any."""
    return getattr(entry, "groups", ())


def origin_of(entry: Named) -> str:
    """The plugin that an entry comes from, for people; "" for camkit's own."""
    path = Path(entry.source_file)
    return path.name if path.is_absolute() else entry.source_file


class Registry(Mapping[str, T]):
    """A dict from name to entry whose failed look-up is a :class:`UsageError` with the nearest name.

    Members of a family (`aumann-5`) are found by name; only those that are listed are in the dict.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._families: dict[str, tuple[re.Pattern[str], Callable[..., T]]] = {}
        self._members: dict[str, T] = {}

    def add(self, entry: T) -> None:
        """Register `entry`; a name can be taken once only.

        Raises:
            ValueError: the name is taken, cannot be written in a list of names, or is that of a family's
                member or of a group; or a group of the entry is the name of another one.
        """
        name, this = entry.name, f"{self.kind} {entry.name!r}"
        if not name or re.search(r"[\s,]", name):
            raise ValueError(f"{this}: a name has no spaces and no commas")
        known = self._entries.get(name)
        if known is not None and not known.source_file == entry.source_file == MAIN:
            where = f", in {known.source_file}" if known.source_file else ""
            raise ValueError(f"{this} exists already{where}")
        self._check_families(entry)
        if name in self.groups or name in groups_of(entry):
            raise ValueError(f"{this} is the name of a group")
        taken = [group for group in groups_of(entry) if group in self._entries]
        if taken:
            raise ValueError(f"{this}: its group {taken[0]!r} is the name of a {self.kind}")
        self._entries[name] = entry

    def _check_families(self, entry: T) -> None:
        for form, (pattern, _) in self._families.items():
            if entry.source_file and pattern.fullmatch(entry.name):
                raise ValueError(f"{self.kind} {entry.name!r} is one of camkit's own: {form}")

    def forget(self, file: str) -> None:
        """Drop what a file has registered: it is about to be loaded again."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.source_file != file}
        self._members = {name: entry for name, entry in self._members.items() if entry.source_file != file}
        self._families = {form: one for form, one in self._families.items() if source_of(one[1]) != file}

    @property
    def groups(self) -> set[str]:
        """Names that stand for several entries."""
        return {ALL, *(group for entry in self._entries.values() for group in groups_of(entry))}

    def add_family(self, form: str, pattern: str, find: Callable[..., T]) -> None:
        """Register entries whose names have a parameter: they are made when they are asked for.

        Args:
            form: how such a name is written, for people (`aumann-N`).
            pattern: regular expression of the whole name.
            find: takes the name and the pattern's groups, gives the entry.
        """
        self._families[form] = re.compile(pattern), find
        self._members = {name: one for name, one in self._members.items() if not re.fullmatch(pattern, name)}
        for entry in self._entries.values():
            self._check_families(entry)

    @property
    def forms(self) -> dict[str, str]:
        """How the names of the families are written, and one line on each."""
        return {form: first_line(find) for form, (_, find) in self._families.items()}

    def knows(self, name: str) -> bool:
        """Whether a name is registered, or has the form of a family's names."""
        return name in self._entries or any(one.fullmatch(name) for one, _ in self._families.values())

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        for pattern, find in self._families.values():
            match = pattern.fullmatch(name)
            if match:
                if name not in self._members:
                    self._members[name] = find(name, *match.groups())
                return self._members[name]
        also = f"; and {', '.join(self.forms)}" if self._families else ""
        raise unknown_name(self.kind, name, self._entries, also)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
