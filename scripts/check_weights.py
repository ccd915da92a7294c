"""Check the pretrained weights: each model's file loads, and its top-1 beside the paper's figure.

Weights of another tag, another mean or deviation, or an input that is transformed in another way, cost points
here and would move every score without a sign. Run it once on a machine with a network; files that are not in
the libraries' caches yet are downloaded:

    python scripts/check_weights.py --data /data/imagenet/val
    python scripts/check_weights.py --data small --model resnet50,swin_t

Cost: one network pass per image and model. The paper's figures are over ImageNet's 50,000 validation images;
for fewer, `camkit data sample` takes some of each class, and the interval says how far the figure carries.
"""

from __future__ import annotations

import sys

import click
from tabulate import tabulate

from camkit.config import RunConfig
from camkit.data import find_images
from camkit.errors import CamkitError
from camkit.network.models import ROWS, find_row
from camkit.network.weights import published_file
from camkit.runs.accuracy import measure_top1
from camkit.runs.cells import find_models

BATCH_SIZE = 32
HEADINGS = ("model", "file", "images", "top-1 %", "95 % interval", "paper %", "")
# Points that decoders and resizers of other versions move the figure of 50,000 images.
ROUNDING = 0.2


@click.command()
@click.option("--data", required=True, help="Labelled images, in any layout that `camkit bench` reads.")
@click.option("--model", help="Names, as `resnet50,swin_t`.  [default: the twelve and the lites]")
@click.option("--device", default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True)
def main(data: str, model: str | None, device: str, workers: int) -> None:
    """Measure top-1 of pretrained weights on labelled images and set it beside the paper's figure.

    Exit code 1 where weights cannot be had, or the paper's figure lies outside the interval.
    """
    table: list[list[object]] = []
    failures = 0
    try:
        names = find_models(model.split(",") if model else ROWS)
        images = find_images(data, seed=0)
    except CamkitError as error:
        sys.exit(f"error: {error}")

    def say(line: str) -> None:
        click.echo(line, err=True)

    for name in names:
        config = RunConfig(model=(name,), device=device, workers=workers)
        try:
            found = measure_top1(name, images, config, BATCH_SIZE, say)
        except CamkitError as error:  # the other models can still be checked
            say(f"{name}: {error}")
            failures += 1
            continue
        interval = f"{found.top1_low:.2f} to {found.top1_high:.2f}"
        paper, said = found.published_percent, ""
        if paper is not None:
            agrees = found.top1_low - ROUNDING <= paper <= found.top1_high + ROUNDING
            said = "agrees" if agrees else "OFF"
            failures += not agrees
        figures = [
            found.labelled,
            f"{found.top1_percent:.2f}",
            interval,
            "" if paper is None else f"{paper:.2f}",
        ]
        table.append([name, published_file(find_row(name)), *figures, said])
    sides = ("left", "left", *["right"] * 4, "left")
    click.echo(tabulate(table, HEADINGS, disable_numparse=True, colalign=sides))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
