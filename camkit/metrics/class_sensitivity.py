"""Class sensitivity: is the map of another class another map?

A correlation near 1 with the map of a random other class is a fault: the method does not know what it
explains. All else is no ranking: classes that look alike share evidence (2211.12486).
"""

from __future__ import annotations

from torch import Tensor

from camkit.entries import CORRELATION, Column, metric
from camkit.metrics.adcc import pearson
from camkit.metrics.subject import Subject

OTHERS = {
    "class_runner_up": ("Runner-up", "the next likely class"),
    "class_random": ("Random class", "a random other class"),
    "class_least": ("Least likely", "the least likely class"),
}


@metric(
    "class_sensitivity",
    columns={
        name: Column(
            "neither",
            heading,
            f"Correlation of the map with that of {other}: near 1, it does not know what it explains.",
            optional=True,
            bounds=CORRELATION,
        )
        for name, (heading, other) in OTHERS.items()
    },
    sees_layer=True,
    explains_again=True,
    passes="0; 3 gradients for all methods",
    source="correlation of signed maps between classes; on its reading: 2211.12486",
)
def class_sensitivity(subject: Subject) -> dict[str, Tensor]:
    """Pearson correlation of signed maps, before ReLU; of saliency maps where a method gives these.

    Three gradients, which methods share, and what each method does with them. NaN where a map is constant.
    """
    maps = subject.saliency if subject.maps is None else subject.maps
    others = zip(OTHERS, subject.other_classes, strict=True)
    return {name: pearson(maps, subject.explain_as(name, target=classes)[0]) for name, classes in others}
