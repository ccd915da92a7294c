"""Class sensitivity: is the map of another class another map?

A correlation near 1 with the map of a random other class is a fault: the method does not know what it
explains. All
else is no ranking: classes that look alike share evidence (2211.12486).
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.entries import Column, metric
from camkit.metrics.adcc import pearson
from camkit.metrics.subject import Subject
from camkit.network.seeding import generator

TEXT = "Correlation of the map with that of {}: near 1, the method does not know what it explains."


@metric(
    "class_sensitivity",
    columns={
        "class_runner_up": Column(
            "neither", "Runner-up", TEXT.format("the next likely class"), optional=True
        ),
        "class_random": Column("neither", "Random class", TEXT.format("a random other class"), optional=True),
        "class_least": Column(
            "neither", "Least likely", TEXT.format("the least likely class"), optional=True
        ),
    },
    sees_layer=True,
    source="correlation of signed maps between classes; on its reading: 2211.12486",
)
def class_sensitivity(subject: Subject) -> dict[str, Tensor]:
    """Pearson correlation of signed maps, before ReLU; saliency maps where a method gives these.

    No pass but for methods that see no layer: one gradient per class. NaN where a map is constant.
    """
    logits = subject.logits
    target = subject.target
    ranked = logits.scatter(1, target[:, None], -torch.inf).argsort(dim=1, descending=True)
    drawn = [
        int(
            torch.randint(
                logits.shape[1] - 1, (1,), generator=generator(subject.seed, image, "another class")
            )
        )
        for image in subject.image_ids
    ]
    random = torch.tensor(drawn, device=target.device)
    random = random + (random >= target)  # none is the target
    others = {"class_runner_up": ranked[:, 0], "class_random": random, "class_least": ranked[:, -2]}
    maps = subject.saliency if subject.maps is None else subject.maps
    return {name: pearson(maps, subject.explain_class(classes)[0]) for name, classes in others.items()}
