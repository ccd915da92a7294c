"""`camkit explain`: a few photos, the chosen methods, one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camkit.benchmark import first_batch_size, make_evaluation
from camkit.config import RunConfig
from camkit.data import Item, class_name, find_images, sample_items
from camkit.errors import CamkitError, UsageError
from camkit.evaluate import Cell, CellFailure, CellScores, Predictions
from camkit.metrics.subject import blur
from camkit.pixels import batches
from camkit.plugins import load_plugins
from camkit.prepare import Say, find_methods, find_models, find_utilities, numerics, prepare
from camkit.report.figures import Explained

# Of one folder: a picture with more rows could not be looked at.
MOST_OF_A_FOLDER = 50


def find_photos(names: Sequence[Path], say: Say) -> list[Item]:
    """Photos by their paths, of folders those in them; `sample` stands for the sample photos.

    Raises:
        UsageError: a file does not exist, or a folder holds no photo.
    """
    items: list[Item] = []
    for path in names:
        if path == Path("sample"):
            items += sample_items()
        elif path.is_file():
            items.append(Item(path.name, path, label=None, group=""))
        elif path.is_dir():
            found = sorted(find_images(str(path), seed=0, layout="photos").items, key=lambda item: item.id)
            if len(found) > MOST_OF_A_FOLDER:
                say(f"{path}: the first {MOST_OF_A_FOLDER} of {len(found)} photos")
            items += found[:MOST_OF_A_FOLDER]
        else:
            raise UsageError(f"{path}: no such file or folder")
    return items


@numerics(tf32=False, deterministic=False)
def explain_images(
    names: Sequence[Path], config: RunConfig, say: Say, metrics: Sequence[str] = (), most: int | None = None
) -> tuple[list[Explained], list[str]]:
    """Photos, classes and saliency maps of one model's cells; and what plugins did wrong, a line each.

    Args:
        config: one model, layer and utility; any methods.
        say: takes each line that the user should see.
        metrics: groups of scores of every map.
        most: maps, where there is a limit.

    Raises:
        UsageError: a photo, or a name in `config`, does not exist; or there would be too many maps.
        CamkitError: no photo could be read, or the weights cannot be had.
    """
    load_plugins(config.plugin)
    (model,) = find_models(config.model)
    methods = find_methods(config.method)
    (utility,) = find_utilities(config.utility)
    photos = find_photos(names, say)
    if most is not None and len(photos) * len(methods) > most:
        raise UsageError(
            f"{len(photos) * len(methods)} maps, at most {most} can be shown so: take fewer photos or methods"
        )
    prepared = prepare(model, config.layer, photos, config, say)
    ((layer, path),) = prepared.paths.items()
    cells = {Cell(layer, path, utility, method): metrics for method in methods}
    batch_size = first_batch_size(config, prepared.network.device, len(photos))
    preprocess = prepared.loaded.preprocess
    evaluation = make_evaluation(prepared, config, batch_size)
    rows: list[Explained] = []
    failures: list[str] = []
    for batch in batches(photos, preprocess, batch_size, workers=0):
        for item, reason in batch.errors:
            say(f"{item.source}: {reason}")
        saliency: list[dict] = [{} for _ in batch.items]
        scores: list[dict] = [{} for _ in batch.items]
        curves: list[dict] = [{} for _ in batch.items]
        titles: list[str] = []
        for result in evaluation.run(batch, cells):
            if isinstance(result, Predictions):
                titles = [
                    f"{class_name(index, result.classes)}, {100 * probability:.1f} %"
                    for index, probability in zip(result.predicted, result.probability, strict=True)
                ]
            elif isinstance(result, CellFailure):
                failures.append(f"{result.reason} ({', '.join(item.id for item in result.items)})")
            elif isinstance(result, CellScores):
                for maps, one in zip(saliency, result.saliency.cpu().numpy(), strict=True):
                    maps[result.cell.method.name] = one
                for column, values in result.scores.items():
                    for row, value in zip(scores, values, strict=True):
                        row.setdefault(result.cell.method.name, {})[column] = value
                for name, points in result.curves.items():
                    for one, curve in zip(curves, points.cpu().numpy(), strict=True):
                        one.setdefault(result.cell.method.name, {})[name] = curve
        if batch.pixels is None:
            continue
        images = preprocess.normalise(batch.pixels)
        shown = [batch.pixels, *map(preprocess.denormalise, (torch.zeros_like(images), blur(images)))]
        for place, title in enumerate(titles):
            photo, blank, blurred = (_picture(pixels[place]) for pixels in shown)
            rows.append(
                Explained(photo, blank, blurred, title, saliency[place], scores[place], curves[place])
            )
    if not rows:
        raise CamkitError("none of the photos could be read")
    return rows, failures


def _picture(pixels: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of (3, H, W) in [0, 255] as bytes, in [0, 1] as fractions."""
    if pixels.is_floating_point():
        pixels = (255 * pixels.clamp(0, 1)).round().byte()
    return pixels.permute(1, 2, 0).numpy()
