"""The values that this machine makes of some images of a recorded folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from camkit.config import RunConfig
from camkit.data import Item
from camkit.errors import CamkitError
from camkit.network.prepare import Prepared
from camkit.results.cells import Cell, CellFailure, CellScores, Predictions
from camkit.results.columns import ROW
from camkit.results.table import Row
from camkit.runs.agreement import Values, tolerance_of
from camkit.runs.loop import Loop, OutOfMemory


@dataclass
class Recomputed:
    """What this machine makes of the picked images of one folder.

    Attributes:
        scores: method -> image -> column -> value, label and target among the columns.
        predictions: image -> column -> value.
        unread: image -> why it could not be read.
        failures: (method, image) -> the plugin error.
    """

    scores: dict[str, dict[str, Values]] = field(default_factory=dict)
    predictions: dict[str, Values] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def why_not(self, method: str, image: str) -> str:
        """Why there are no values."""
        if image in self.unread:
            return self.unread[image]
        return self.failures.get((method, image), "has no such row when it is recomputed")


def recompute(
    prepared: Prepared,
    config: RunConfig,
    groups: Mapping[tuple[Item, ...], Mapping[Cell, list[str]]],
    predictions: Mapping[str, Row],
) -> Recomputed:
    """Scores of images, those with the same cells together.

    Args:
        groups: images -> the metric groups of each of their cells.
        predictions: what the run recorded; a class of it stays where another one is as near.
    """
    size = int(config.batch_size)
    loop = Loop(prepared, config, size, kept="Nothing was changed.")
    made = Recomputed()
    try:
        with loop.failures_named():
            for batch, _, results in loop.run(list(groups.items()), _classes(predictions, prepared.classes)):
                made.unread |= {item.id: reason for item, reason in batch.errors}
                for result in results:
                    if isinstance(result, Predictions):
                        made.predictions |= _predictions(result, tolerance_of(config))
                    elif isinstance(result, CellScores):
                        made.scores.setdefault(result.cell.method.name, {}).update(_scores(result))
                    else:
                        made.failures |= _failures(result)
    except OutOfMemory as error:
        raise CamkitError(f"out of memory at --batch-size {size}: try a smaller one") from error
    return made


def _classes(predictions: Mapping[str, Row], classes: int) -> dict[str, int]:
    """Image -> the class that the run recorded, where it is one that the model has."""
    texts = {image: row.get("predicted", "") for image, row in predictions.items()}
    known = {image: int(text) for image, text in texts.items() if text.isdecimal()}
    return {image: number for image, number in known.items() if number < classes}


def _predictions(result: Predictions, tolerance: float) -> dict[str, Values]:
    """What should be recorded of each image: the class that is, where it is as probable as the first."""
    made: dict[str, Values] = {}
    for place, item in enumerate(result.items):
        probability = result.probability_here[place]
        tie = abs(result.probability[place] - probability) <= tolerance
        predicted = (result.predicted if tie else result.here)[place]
        made[item.id] = {"label": _label(item), "predicted": predicted, "probability": probability}
    return made


def _scores(result: CellScores) -> dict[str, Values]:
    return {
        item.id: {
            "label": _label(item),
            **{name: float(one.of(result, place)) for name, one in ROW.items() if one.is_number},
            **{name: values[place] for name, values in result.scores.items()},
        }
        for place, item in enumerate(result.items)
    }


def _failures(result: CellFailure) -> dict[tuple[str, str], str]:
    return {(result.cell.method.name, item.id): result.reason for item in result.items}


def _label(item: Item) -> float:
    return math.nan if item.label is None else item.label
