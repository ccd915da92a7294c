"""`camkit explain`: a few photos, the chosen methods, one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camkit.config import RunConfig
from camkit.data import ClassList, Item, class_name, find_images, sample_items
from camkit.data.classes import FOLDERS
from camkit.data.find import class_list
from camkit.errors import CamkitError, Say, UsageError
from camkit.metrics.subject import blur
from camkit.network.numerics import numerics
from camkit.network.prepare import Prepared, prepare
from camkit.network.targets import find_target
from camkit.plugins import load_plugins
from camkit.report.figures import Explained
from camkit.report.scores import title_of
from camkit.results.cells import CellFailure, CellScores, Predictions, Result
from camkit.runs.cells import cells_of_model, find_models
from camkit.runs.loop import Loop, first_batch_size
from camkit.runs.selection import check_names, check_regions, own_classes, with_target

# Of one folder: a picture with more rows could not be looked at.
MOST_OF_A_FOLDER = 50


def photo_items(names: Sequence[Path], say: Say) -> list[Item]:
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


def _classes_of(config: RunConfig) -> ClassList:
    """What the model's outputs stand for.

    Raises:
        UsageError: the list is no file.
    """
    if config.classes == FOLDERS:
        raise UsageError("--classes folders: photos are in no class folders; name a file of class names")
    return class_list(config.classes, own_classes(config))


@numerics(tf32=False, deterministic=False)
def explain_images(
    names: Sequence[Path], config: RunConfig, say: Say, metrics: Sequence[str] = (), most: int | None = None
) -> tuple[list[Explained], list[str]]:
    """Photos, classes and saliency maps of one model's cells; and plugin errors, one line each.

    Args:
        config: one model, layer and utility; any methods.
        say: takes each line that the user should see.
        metrics: groups of scores of every map.
        most: maps, where there is a limit.

    Raises:
        UsageError: a photo, or a name in `config`, does not exist; or there would be too many maps.
        CamkitError: no photo could be read, the weights cannot be had, or the model cannot have a method.
    """
    load_plugins(config.plugin)
    (model,) = find_models(config.model)
    check_names(config.method, config.utility, metrics)
    check_regions(config, say)
    classes = _classes_of(config)
    config = with_target(config, classes)
    if find_target(config.target).needs_labels:
        raise UsageError(f"--target {config.target}: photos have no labels; name a class")
    photos = photo_items(names, say)
    prepared = prepare(model, config.layer, photos, config, say)
    cells = dict.fromkeys(cells_of_model(prepared, config, say), metrics)
    if most is not None and len(photos) * len(cells) > most:
        raise UsageError(
            f"{len(photos) * len(cells)} maps, at most {most} can be shown so: take fewer photos or methods"
        )
    batch_size = first_batch_size(config, prepared.network.device, len(photos))
    loop = Loop(prepared, replace(config, workers=0), batch_size, kept="")
    rows: list[Explained] = []
    failures: list[str] = []
    with loop.failures_named():
        for batch, _, results in loop.run([(photos, cells)]):
            for item, reason in batch.errors:
                say(f"{item.source}: {reason}")
            made = list(results)
            if batch.pixels is not None:
                rows += _explained(batch.pixels, made, prepared, classes)
            failures += [
                f"{one.reason} ({', '.join(item.id for item in one.items)})"
                for one in made
                if isinstance(one, CellFailure)
            ]
    if not rows:
        raise CamkitError("none of the photos could be read")
    return rows, failures


def _explained(
    pixels: Tensor, made: Sequence[Result], prepared: Prepared, classes: ClassList
) -> list[Explained]:
    """The rows of a figure for one batch, uint8 (B, 3, H, W)."""
    preprocess = prepared.loaded.preprocess
    images = preprocess.normalise(pixels)
    shown = [pixels.expand(-1, 3, -1, -1), *map(preprocess.rgb, (torch.zeros_like(images), blur(images)))]
    saliency: list[dict] = [{} for _ in pixels]
    scores: list[dict] = [{} for _ in pixels]
    curves: list[dict] = [{} for _ in pixels]
    titles: list[str] = []

    def shown_as(index: int, probability: float) -> str:
        return f"{class_name(index, prepared.classes, classes)}, {100 * probability:.1f} %"

    predicted: tuple[int, ...] = ()
    for result in made:
        if isinstance(result, Predictions):
            predicted = result.predicted
            titles = list(map(shown_as, predicted, result.probability))
        elif isinstance(result, CellScores):
            name = result.cell.method.name
            if len(prepared.paths) > 1:
                name = f"{title_of(name)}, {result.cell.layer}"
            for place, target in enumerate(result.target):
                if target != predicted[place] and "\n" not in titles[place]:
                    explained = shown_as(target, result.scores["probability"][place])
                    titles[place] += f"\nexplained: {explained}"
                saliency[place][name] = result.saliency[place].cpu().numpy()
                scores[place][name] = {column: values[place] for column, values in result.scores.items()}
                curves[place][name] = {
                    kind: points[place].cpu().numpy() for kind, points in result.curves.items()
                }
    rows = []
    for place, title in enumerate(titles):
        photo, blank, blurred = (_picture(one[place]) for one in shown)
        rows.append(Explained(photo, blank, blurred, title, saliency[place], scores[place], curves[place]))
    return rows


def _picture(pixels: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of (3, H, W) in [0, 255] as bytes, in [0, 1] as fractions."""
    if pixels.is_floating_point():
        pixels = (255 * pixels.clamp(0, 1)).round().byte()
    return pixels.permute(1, 2, 0).numpy()
