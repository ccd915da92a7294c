"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from camkit.config import CHOICES, DEFAULT_BUDGET, LEAST


def say(line: str) -> None:
    """A line for the user that is no result."""
    click.echo(line, err=True)


def _split(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """`-x a,b -x c` -> (a, b, c), each once."""
    names = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def names_option(*flags: str, **settings: Any) -> Callable:
    """An option that takes several names: repeated, or in a comma list."""
    return click.option(*flags, multiple=True, callback=_split, metavar="NAME[,NAME…]", **settings)


def _data_or_default(_: click.Context, __: click.Parameter, value: str | None) -> str:
    return value or os.environ.get("CAMKIT_DATA") or "sample"


def data_option(text: str) -> Callable:
    """Where the images are; a config file wins over the environment."""
    return click.option(
        "--data",
        callback=_data_or_default,
        metavar="PATH|sample",
        help=f"{text}  [default: $CAMKIT_DATA, else the sample photos]",
    )


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["camkit.debug"] = value


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
layout_option = click.option(
    "--layout",
    metavar="NAME",
    help="wnid, imagenet-v2, flat, photos, parquet, webdataset or tar.  [default: found by looking]",
)
labels_option = click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV file `image,label`; a label is a 0-based index, a wnid or a class name.",
)
format_option = click.option(
    "--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
weights_option = click.option(
    "--weights",
    default="pretrained",
    show_default=True,
    metavar="pretrained|random|FILE",
    help="Weights: the published ones, seeded random ones, or a .pth, .pt or .safetensors file.",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where the network runs.",
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images in a pass."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=lambda: min(8, (os.cpu_count() or 1) - 1),
    show_default="cores less one, at most 8",
    help="Processes that decode images; 0: none beside the main one.",
)
plugin_option = click.option(
    "--plugin",
    multiple=True,
    callback=_split,
    metavar="FILE",
    help="Python file that registers methods, metrics or models of your own (docs/extend.md).",
)


def explanation_options(command: Callable) -> Callable:
    """What bench and explain have in common, in the order of the help text."""
    options: list[Callable] = [
        names_option(
            "--method",
            default=["shapleycam"],
            show_default=True,
            help="CAM methods, or groups: paper (the ten), controls (the five), aumann, all.",
        ),
        weights_option,
        click.option(
            "--preprocess",
            type=click.Choice(CHOICES["preprocess"]),
            default="paper",
            show_default=True,
            help="paper: resize to 256, crop 224, bilinear; native: the weights' own transform.",
        ),
        device_option,
        click.option(
            "--budget",
            type=click.IntRange(min=LEAST["budget"]),
            default=DEFAULT_BUDGET,
            show_default=True,
            help="Permutations from which Shapley values are estimated.",
        ),
        click.option(
            "--absent",
            type=click.Choice(CHOICES["absent"]),
            default="zero",
            show_default=True,
            help="Activation of an absent position: of Shapley values and of aumann-N.",
        ),
        click.option(
            "--seed", default=0, show_default=True, help="Of the images' order and all that is random."
        ),
        plugin_option,
        debug_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command
