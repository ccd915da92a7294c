"""Options as fields of dataclasses: what the command line says of each, and the check of their values."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from camkit.errors import UsageError

RUN, DATA, SCORES, HOW, OUTPUT = GROUPS = ("What to run", "Data", "Scores", "How it runs", "Output")
# Kind of an option -> what its value has to be, and how an error calls that.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "names": (tuple, "a sequence of names"),
    "files": (tuple, "a sequence of files"),
    "text": (str, "text"),
    "choice": (str, "text"),
    "count": (int, "a whole number"),
    "batch size": ((int, str), "a whole number or 'auto'"),
    "flag": (bool, "True or False"),
    "file": (Path, "a path"),
    "folder": (Path, "a path"),
    "share": ((int, float), "a number from 0 to 1"),
}


def option(
    default: Any,
    text: str,
    group: str,
    *,
    kind: str = "text",
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    least: int | None = None,
    decides: str = "",
    shown: str | None = None,
) -> Any:
    """A field of :class:`Options`, and with it an option of the command line.

    Args:
        text: the help text; `shown`: the default as the help text shows it, where the value does not say it.
        group: the heading it stands under, one of :data:`GROUPS`.
        kind: `names`, `text`, `choice`, `count`, `flag`, `file`, `folder`, `files`, `batch size` or `share`.
        choices: what it can be; `least`: the least that it can be.
        decides: its name in a run's protocol, where another value gives other numbers.
    """
    metadata = {
        "text": text, "group": group, "kind": kind, "metavar": metavar, "choices": choices, "least": least,
        "decides": decides, "shown": shown,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Options that belong together; each field is an :func:`option`.

    Raises:
        UsageError: an option is of another type, none of its choices, or less than it can be.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            _check(one, getattr(self, one.name))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options, in the order of the command line."""
        return tuple(one.name for one in fields(cls))


def _check(one: Field, value: Any) -> None:
    meta, flag = one.metadata, f"--{one.name.replace('_', '-')}"
    expected, words = TYPES[meta["kind"]]
    wrong = isinstance(value, bool) and meta["kind"] != "flag"
    if value is not one.default and (wrong or not isinstance(value, expected)):
        raise UsageError(f"{flag} {value!r}: expected {words}")
    for part in value if isinstance(value, tuple) else (value,):
        if meta["kind"] == "share" and part is not None and not 0 <= part <= 1:
            raise UsageError(f"{flag} {value}: expected {words}")
        if meta["choices"] and part not in meta["choices"]:
            raise UsageError(f"{flag} {part}: expected one of {', '.join(meta['choices'])}")
    if meta["least"] is not None and isinstance(value, int) and value < meta["least"]:
        raise UsageError(f"{flag} {value}: expected {meta['least']} or more")
