"""Top-1 of a model on a data set, beside the published figure: what a wrong label mapping cannot pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from camkit.config import RunConfig
from camkit.console import Bar
from camkit.data import DataSet
from camkit.data.batches import affordable_workers, batches
from camkit.errors import CamkitError, UsageError
from camkit.network.numerics import numerics
from camkit.network.prepare import prepare

# With fewer images, less than half of the published accuracy may be bad luck.
ENOUGH = 20


@dataclass(frozen=True)
class Accuracy:
    """Top-1 of a model.

    Attributes:
        labelled: images that were read and have a label.
        top1_percent: share of hits.
        top1_low, top1_high: its 95 % interval (Wilson).
        published_percent: top-1 of the pretrained weights; None where the paper gives none.
        verdict: what the two say of the labels.
    """

    model: str
    labelled: int
    top1_percent: float
    top1_low: float
    top1_high: float
    published_percent: float | None
    verdict: str


@numerics(tf32=False, deterministic=False)
def measure_top1(
    model: str, data: DataSet, config: RunConfig, batch_size: int, say: Callable[[str], None]
) -> Accuracy:
    """Classify all labelled images.

    Raises:
        UsageError: there are no labels, or the model has other classes.
        CamkitError: weights cannot be had, or no labelled image could be read.
    """
    items = [item for item in data.items if item.label is not None]
    if not items:
        raise UsageError("--model measures top-1, and these images have no labels (--labels FILE gives some)")
    prepared = prepare(model, (), data.items, config, say)
    preprocess, network = prepared.loaded.preprocess, prepared.network
    affordable_workers(preprocess, batch_size, len(items), config.workers, say)
    hits = images = 0
    with Bar(len(items), model) as bar:
        for batch in batches(items, preprocess, batch_size, config.workers):
            bar.update(len(batch.items) + len(batch.errors))
            if batch.pixels is None:
                continue
            logits = network.logits(preprocess.normalise(batch.pixels.to(network.device)))
            if logits.shape[1] != len(data.classes):
                listed = f"{data.classes.title} {len(data.classes)}"
                raise UsageError(f"{model} has {logits.shape[1]} classes, {listed} (--classes)")
            truth = torch.tensor([item.label for item in batch.items], device=logits.device)
            hits += int((logits.argmax(dim=1) == truth).sum())
            images += len(batch.items)
    if not images:
        raise CamkitError("none of the labelled images could be read")
    interval = binomtest(hits, images).proportion_ci(method="wilson")
    top1, low, high = (round(100 * share, 2) for share in (hits / images, interval.low, interval.high))
    published = prepared.loaded.row.top1 if config.weights == "pretrained" else None
    return Accuracy(model, images, top1, low, high, published, verdict(top1, images, published))


def verdict(top1: float, images: int, published: float | None) -> str:
    """What a measured and a published top-1, in percent, say of the labels."""
    if published is None:
        return "no published figure to compare with"
    if images < ENOUGH:
        return f"fewer than {ENOUGH} images are too few to tell"
    if top1 < published / 2:
        return "less than half of the published figure: labels are mapped wrongly, or the weights are wrong"
    return "the labels fit the model"
