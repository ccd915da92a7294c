"""`camkit data`: what a data set holds, and a small part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    READING,
    Command,
    Option,
    batch_size_option,
    config_option,
    config_options,
    debug_option,
    format_option,
)
from camkit.console import say
from camkit.results.table import csv_line

# Above this, a terminal shows the first ones and how many more there are; CSV and JSON have them all.
SHOWN = 100


@click.group()
def data() -> None:
    """Look at a data set before a benchmark: layout, labels, faults; or take a small part of it.

    \b
    Example:
      camkit data check /data/imagenet/val --model resnet50
    """


@data.command(cls=Command)
@click.argument("path")
@config_options(*READING)
@click.option(
    "--model",
    metavar="NAME",
    cls=Option,
    group="What to run",
    help="Measure this model's top-1: catches a wrong label mapping.",
)
@config_options("activation", "weights", "preprocess", "size", "mean", "std", "plugin", "device")
@batch_size_option
@config_option("workers")
@format_option
@debug_option
def check(path: str, style: str, **options: Any) -> None:
    """Read every image of a data set and say what was found.

    The layout, images per class, where the labels come from; unreadable files with the reason, duplicates,
    images without a label; whether it is ImageNet's complete validation set; its fingerprint.

    \b
    Examples:
      camkit data check /data/imagenet/val
      camkit data check ILSVRC2012_img_val.tar --model resnet50 --format json
    """
    from camkit.data.names import printable
    from camkit.runs.check import check_data

    report = check_data(path, say=say, **options)
    if style == "json":
        _print_json(report.as_dict())
    elif style == "csv":
        _print_csv(("section", "name", "value"), report.rows())
    else:
        from tabulate import tabulate

        facts = [(name.replace("_", " "), _shown(value)) for name, value in report.facts.items()]
        click.echo(tabulate(facts, tablefmt="plain", disable_numparse=True))
        faults = [[printable(fault.image), fault.kind, fault.reason] for fault in report.faults]
        if faults:
            click.echo("\n" + tabulate(faults[:SHOWN], ["image", "fault", "reason"], disable_numparse=True))
        if len(faults) > SHOWN:
            click.echo(f"and {len(faults) - SHOWN} more: --format csv lists them all")


@data.command(cls=Command)
@click.argument("path")
@click.option(
    "--per-class",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    cls=Option,
    group="Data",
    help="Images of each class.",
)
@config_option("out", "-o", required=True, default=None, show_default=False, help="A new or empty folder.")
@config_options(*READING)
@config_option("seed", help="Of the choice.")
@click.option(
    "--copy",
    is_flag=True,
    cls=Option,
    group="Output",
    help="Copy files instead of linking; archives are always copied.",
)
@format_option
@debug_option
def sample(path: str, per_class: int, out: Path, seed: int, copy: bool, style: str, **options: Any) -> None:
    """Take N images of each class into a folder, as links or copies, for smoke runs.

    DIR holds folders named by wnids, or by class names where the class list has no wnids; images without a
    label keep the folder that they are in.

    \b
    Example:
      camkit data sample /data/imagenet/val --per-class 1 -o small
    """
    from camkit.data import find_images
    from camkit.data.subset import take

    found = find_images(path, seed, **options)
    for note in found.notes:
        say(note)
    rows = take(found, per_class, out, seed, copy=copy, say=say)
    if style == "json":
        _print_json([dict(zip(("image", "file", "label"), row, strict=True)) for row in rows])
    elif style == "csv":
        _print_csv(("image", "file", "label"), rows)
    else:
        classes = len({label for *_, label in rows if label is not None})
        click.echo(f"{out}: {len(rows)} images" + (f", {classes} classes" if classes else ""))


def _shown(value: object) -> str:
    """A fact, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    import json

    # Names that are no valid UTF-8 are written as escapes.
    click.echo(json.dumps(value, indent=2))


def _print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = "".join(csv_line(row) for row in (columns, *rows))
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)
