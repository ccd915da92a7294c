"""Options of the command line, made from the fields of RunConfig, and help texts in groups."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

from camkit.config import RunConfig
from camkit.option import GROUPS
from camkit.share import available_cores

FIELDS = {one.name: one for one in fields(RunConfig)}


def table_width() -> int | None:
    """Letters in a line of the terminal (COLUMNS wins), for the tables on standard output.

    None where that is no terminal: in a file or a pipe a table stays whole.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Option(click.Option):
    """An option that stands under a heading of the help text."""

    def __init__(self, *args: Any, group: str = "", **settings: Any) -> None:
        self.group = group
        super().__init__(*args, **settings)


class Command(click.Command):
    """A command whose help text shows its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        for title in (*GROUPS, ""):
            if title in groups:
                with formatter.section(title or "Options"):
                    formatter.write_dl(groups[title])


class BatchSize(click.IntRange):
    """A whole number from 1 up, or `auto`."""

    name = "batch size"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


def _split(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """`-x a,b -x c` -> (a, b, c), each once."""
    names = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def _split_files(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """As :func:`_split`, but for files whose names have commas."""
    files = [one for value in values for one in ([value] if Path(value).is_file() else value.split(","))]
    return tuple(dict.fromkeys(file.strip() for file in files if file.strip()))


def _share(_: click.Context, __: click.Parameter, value: str | float | None) -> float | None:
    """`1%` or `0.01` -> 0.01."""
    if value is None:
        return None
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r}: expected a share, as 0.01 or 1%")
    return share


def _data_or_default(_: click.Context, __: click.Parameter, value: str | None) -> str:
    return value or os.environ.get("CAMKIT_DATA") or "sample"


def _workers() -> int:
    return min(8, available_cores() - 1)


# How a data set is to be read, beside where it lies.
READING = ("layout", "labels", "classes", "image_column", "label_column")
# What the command line does with an option beside what its field says.
OWN: dict[str, dict[str, Any]] = {
    "data": {"callback": _data_or_default, "default": None},  # a config file wins over the environment
    "workers": {"default": _workers, "show_default": False},
}


def config_option(name: str, *flags: str, **changes: Any) -> Callable:
    """The option of a field of :class:`RunConfig`.

    Args:
        flags: further names, as `-o`.
        changes: settings of click that this command has in another way.
    """
    one = FIELDS[name]
    meta = one.metadata
    settings: dict[str, Any] = {"help": meta["text"], "group": meta["group"], "metavar": meta["metavar"]}
    if one.default is MISSING:
        settings["required"] = True
    elif one.default is not None and one.default is not False and one.default != ():
        settings |= {"default": one.default, "show_default": not meta["shown"]}
    if meta["shown"]:
        settings["help"] += f"  [default: {meta['shown']}]"
    settings |= _KINDS[meta["kind"]](meta) | OWN.get(name, {}) | changes
    return click.option(f"--{name.replace('_', '-')}", *flags, name, cls=Option, **settings)


def _whole_number(least: int | None) -> click.ParamType:
    return click.INT if least is None else click.IntRange(min=least)


_KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "names": lambda meta: {"multiple": True, "callback": _split, "metavar": "NAME[,NAME…]"},
    "files": lambda meta: {"multiple": True, "callback": _split_files},
    "text": lambda meta: {},
    "choice": lambda meta: {"type": click.Choice(meta["choices"])},
    "count": lambda meta: {"type": _whole_number(meta["least"]), "metavar": "N"},
    "flag": lambda meta: {"is_flag": True},
    "file": lambda meta: {"type": click.Path(path_type=Path)},
    "folder": lambda meta: {"type": click.Path(path_type=Path, file_okay=False)},
    "batch size": lambda meta: {"type": BatchSize()},
    "share": lambda meta: {"callback": _share},
}


def config_options(*names: str) -> Callable:
    """The options of several fields, in this order."""

    def decorate(command: Callable) -> Callable:
        for name in reversed(names):
            command = config_option(name)(command)
        return command

    return decorate


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["camkit.debug"] = value


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    cls=Option,
    group="Output",
    help="Show the traceback of an error.",
)
format_option = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    cls=Option,
    group="Output",
    help="How the result is printed.",
)
# The commands that go on from a run, whose settings they know.
weights_of_run = config_option(
    "weights", metavar="FILE", help="The weights, where they were a file.", show_default=False
)
batch_size_option = config_option(
    "batch_size", type=click.IntRange(min=1), metavar="N", help="Images per pass."
)


def data_of_run(command: Callable) -> Callable:
    """Where the images of a run are."""
    options = [
        config_option("data", help="The images of the run."),
        config_options(*READING, "regions"),
    ]
    for option in reversed(options):
        command = option(command)
    return command
