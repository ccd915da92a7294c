"""Check the pretrained weights: top-1 accuracy on labelled images beside the paper's figure.

Weights of another tag, or another mean and deviation, cost points here and would move every score without a
sign. Run by hand, it needs the network for weights that are not on this machine yet:

    python scripts/check_weights.py --data /data/imagenet/val
    python scripts/check_weights.py --data /data/imagenet/val --model resnet50,swin_t --limit 1000

Cost: one network pass an image and model. The paper's figures are over ImageNet's 50,000 validation images;
on fewer, expect a difference of about the standard error (column ±, in points).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import click
from tabulate import tabulate
from tqdm import tqdm

from camkit.data import Item, find_images
from camkit.errors import CamkitError
from camkit.models import ROWS, load_model
from camkit.pixels import batches
from camkit.prepare import find_device, find_models
from camkit.tracing import Network


def count_hits(name: str, items: Sequence[Item], preprocess: str, batch_size: int, device: str) -> list[bool]:
    """For each image that can be read, whether the model's first guess is its label.

    Raises:
        CamkitError: the weights cannot be had.
    """
    loaded = load_model(name, preprocess=preprocess)
    network = Network(loaded.model, find_device(device))
    hits: list[bool] = []
    with tqdm(total=len(items), desc=name, unit="img") as bar:
        for batch in batches(items, loaded.preprocess, batch_size, workers=2):
            bar.update(len(batch.items) + len(batch.errors))
            if batch.pixels is None:
                continue
            logits = network.logits(loaded.preprocess.normalise(batch.pixels.to(network.device)))
            guesses = logits.argmax(dim=1).tolist()
            hits += [guess == item.label for guess, item in zip(guesses, batch.items, strict=True)]
    return hits


@click.command()
@click.option("--data", required=True, help="Folder of images in class folders named by WordNet id.")
@click.option("--model", help="Names, as `resnet50,swin_t`.  [default: the twelve and the lites]")
@click.option("--limit", type=click.IntRange(min=1), help="The first N images of the seeded order.")
@click.option("--preprocess", type=click.Choice(["paper", "native"]), default="paper", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(
    data: str, model: str | None, limit: int | None, preprocess: str, batch_size: int, device: str
) -> None:
    """Measure top-1 of pretrained weights on labelled images and set it beside the paper's figure."""
    failed = False
    table = []
    try:
        names = find_models(model.split(",") if model else ROWS)
        items = [item for item in find_images(data, seed=0).items if item.label is not None][:limit]
        if not items:
            raise CamkitError(f"{data}: no labelled images (class folders like n01440764, or file names)")
    except CamkitError as error:
        sys.exit(f"error: {error}")
    for name in names:
        try:
            hits = count_hits(name, items, preprocess, batch_size, device)
        except CamkitError as error:  # one model's weights missing: the others can still be checked
            click.echo(f"{name}: {error}", err=True)
            failed = True
            continue
        if not hits:
            sys.exit("error: none of the images could be read")
        share = sum(hits) / len(hits)
        error_points = 100 * math.sqrt(share * (1 - share) / len(hits))
        paper = ROWS[name].top1 if name in ROWS else None
        difference = "" if paper is None else f"{100 * share - paper:+.2f}"
        table.append([name, len(hits), f"{100 * share:.2f}", f"{error_points:.2f}", paper or "", difference])
    headings = ["model", "images", "top-1 %", "±", "paper %", "difference"]
    click.echo(tabulate(table, headings, disable_numparse=True, colalign=("left", *["right"] * 5)))
    sys.exit(failed)


if __name__ == "__main__":
    main()
