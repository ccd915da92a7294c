"""Top-1 of a model on a data set, beside the published figure: what a wrong label mapping cannot pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from camkit.config import RunConfig
from camkit.console import Bar
from camkit.data import ClassList, DataSet
from camkit.data.batches import affordable_workers, batches
from camkit.data.classes import outputs_named
from camkit.errors import CamkitError, Say, UsageError
from camkit.network.numerics import numerics
from camkit.network.prepare import prepare

# With fewer images, less than half of the published accuracy may be bad luck.
ENOUGH = 20
# A top-1 that chance alone reaches so often, or more, is no sign of a trained network.
BY_CHANCE = 0.01
SUSPICIOUS = "suspicious:"
CAUSES = (
    "usual causes: labels shifted by one, numbers in another order, weights of another model, "
    "pixels normalised otherwise (--preprocess native, --mean, --std)"
)


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
def measure_top1(model: str, data: DataSet, config: RunConfig, batch_size: int, say: Say) -> Accuracy:
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
    if prepared.classes != len(data.classes):
        listed = f"{data.classes.title} {len(data.classes)}"
        raise UsageError(f"{model} has {outputs_named(prepared.classes)}, {listed} (--classes)")
    affordable_workers(preprocess, batch_size, len(items), config.workers, say)
    labels: list[int] = []
    predicted: list[int] = []
    with Bar(len(items), model) as bar:
        for batch in batches(items, preprocess, batch_size, config.workers):
            bar.update(len(batch.items) + len(batch.errors))
            if batch.pixels is None:
                continue
            logits = network.logits(preprocess.normalise(batch.pixels.to(network.device)))
            predicted += logits.argmax(dim=1).tolist()
            labels += [item.label for item in batch.items if item.label is not None]
    if not labels:
        raise CamkitError("none of the labelled images could be read")
    hits, images = _hits(labels, predicted), len(labels)
    interval = binomtest(hits, images).proportion_ci(method="wilson")
    top1, low, high = (round(100 * share, 2) for share in (hits / images, interval.low, interval.high))
    published = prepared.loaded.row.top1 if config.weights == "pretrained" else None
    found = verdict(top1, images, published, prepared.classes)
    other = _other_numbering(labels, predicted, data.classes)
    if other:
        found = f"{SUSPICIOUS} {other}"
    elif found.startswith(SUSPICIOUS):
        found += f"; {CAUSES}"
    return Accuracy(model, images, top1, low, high, published, found)


def _hits(labels: Sequence[int | None], predicted: Sequence[int]) -> int:
    return sum(label == found for label, found in zip(labels, predicted, strict=True))


def _other_numbering(labels: Sequence[int], predicted: Sequence[int], classes: ClassList) -> str:
    """What top-1 would be with labels of another usual numbering; "" where that is not clearly better."""
    count = len(classes)
    by_text = sorted(range(count), key=str)
    by_name = sorted(range(count), key=lambda index: classes.names[index])
    numberings: dict[str, list[int | None]] = {
        "labels − 1": [label - 1 for label in labels],
        "labels + 1": [label + 1 for label in labels],
        "the numbers sorted as text (0, 1, 10, 11, …)": [by_text.index(label) for label in labels],
        "the classes sorted by name": [by_name.index(label) for label in labels],
    }
    hits = {words: _hits(numbers, predicted) for words, numbers in numberings.items()}
    words = max(hits, key=lambda one: hits[one])
    there = binomtest(_hits(labels, predicted), len(labels)).proportion_ci(method="wilson")
    if binomtest(hits[words], len(labels)).proportion_ci(method="wilson").low <= there.high:
        return ""
    return f"with {words} top-1 would be {100 * hits[words] / len(labels):.0f} %"


def verdict(top1: float, images: int, published: float | None, classes: int) -> str:
    """What a measured and a published top-1, in percent, say of the labels.

    Args:
        classes: how many the model tells apart.
    """
    if images < ENOUGH:
        return f"fewer than {ENOUGH} images are too few to tell"
    if published is not None and top1 < published / 2:
        return f"{SUSPICIOUS} less than half of the published figure"
    hits = round(top1 * images / 100)
    if binomtest(hits, images, 1 / classes, alternative="greater").pvalue > BY_CHANCE:
        return f"{SUSPICIOUS} no better than chance ({100 / classes:.2g} %)"
    return "no published figure to compare with" if published is None else "the labels fit the model"
