"""`camkit score --maps`: scores of maps that another program made, beside camkit's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from camkit.config import RunConfig
from camkit.data.given import GivenMaps, Summary
from camkit.entries import METHODS, METRICS, Method
from camkit.errors import Say, UsageError
from camkit.methods.saliency import to_saliency
from camkit.metrics import Subject
from camkit.network.numerics import numerics
from camkit.network.passes import Network
from camkit.network.prepare import Prepared, prepare
from camkit.results.cells import Cell
from camkit.results.folder import GIVEN, file_name, read_run, run_folders, write_run
from camkit.results.lock import hold
from camkit.results.merge import refresh_summary
from camkit.results.model_run import ModelRun
from camkit.runs.bench import what_failed
from camkit.runs.cells import check_located
from camkit.runs.guard import compute_scores
from camkit.runs.job import open_run
from camkit.runs.rescore import expect_no_explanation, score_saved
from camkit.runs.selection import Selection, select
from camkit.share import Share

METRICS_OF_MAPS = ("average_drop", "deletion", "insertion")
NAME = re.compile(r"[^\s,/:~+]+")


def score_maps(maps: Path, name: str, config: RunConfig, say: Say) -> pd.DataFrame:
    """Score maps from elsewhere as a method of a results folder.

    They stand beside camkit's own methods under every layer and utility that the folder has of the model; in
    a folder without results, under `conv` and `rest`. Maps with as many positions as the layer are treated as
    a method's; all others become saliency maps by the same steps.

    Args:
        maps: see :class:`camkit.data.given.GivenMaps`.
        name: of the method.
        config: one model; what else decides numbers, as in the folder's own runs; the metrics.

    Returns:
        The folder's summary.

    Raises:
        UsageError: the name is taken, a metric explains again, a map cannot be read, or the folder
            holds results of another protocol.
        CamkitError: as :func:`camkit.runs.bench.bench`.
    """
    selected = select(config, say)
    config = replace(selected.config, method=(name,))
    expect_no_explanation(config.metrics)
    if len(selected.models) > 1:
        raise UsageError(f"--model {config.model[0]}: maps from elsewhere are of one model; name it")
    _check_name(config, name)
    given = GivenMaps(maps, [item.id for item in selected.items])
    summary = given.summary()
    for line in _said(given, summary, len(selected.items)):
        say(line)
    try:
        with hold(config.out / file_name(selected.models[0])):
            failures = _score(given, summary, replace(selected, config=config), say)
    except UsageError:  # refused: the folder stays as it is
        raise
    except (Exception, KeyboardInterrupt):
        if run_folders(config.out):
            refresh_summary(config.out)
        raise
    table = refresh_summary(config.out)
    if failures:
        raise what_failed([], failures, 1, config.out)
    return table


def _score(given: GivenMaps, summary: Summary, selected: Selection, say: Say) -> list[str]:
    """Make the rows, for who holds the model's folder; plugin errors, a line each."""
    config, data = selected.config, selected.data
    ((model,), (name,)) = selected.models, config.method
    places = _places(config.out, model)
    config = replace(config, layer=tuple(dict.fromkeys(layer for layer, _ in places)))
    with numerics(config.tf32, config.deterministic) as numeric_record:
        prepared = prepare(model, config.layer, data.items, config, say)
        cells = [_cell(prepared, layer, utility, name, summary) for layer, utility in places]
        items = [item for item in selected.items if item.id in given]
        run = open_run(prepared, config, data, items, Share(), say, given=cells)
        record = {"maps": given.path.name, "sha256": summary.sha256, "negative": summary.negative}
        _enter(run, name, record)
        return score_saved(run, config, {name: given}, prepared, numeric_record, say)


def _check_name(config: RunConfig, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: expected a name without spaces and , / : ~ +")
    if METHODS.knows(name) or name in METHODS.groups:
        raise UsageError(f"--name {name}: this is a method of camkit's or of a plugin; choose another name")
    for folder in run_folders(config.out):
        run = read_run(folder)
        if name in run["methods"] and name not in run.get(GIVEN, {}):
            raise UsageError(f"--name {name}: {folder} holds a method of this name; choose another one")


def _said(given: GivenMaps, summary: Summary, images: int) -> list[str]:
    """Lines on what was found."""
    sizes = sorted(summary.sizes)
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3]) + ", …" * (len(sizes) > 3)
    if summary.negative:
        sign = f"signed: {summary.negative} have negative values, which count as 0 in the saliency map"
    else:
        sign = "not signed: none has a negative value"
    lines = [f"{given.path}: maps of {len(given)} of {images} images, {shown}; {sign}"]
    if given.others:
        others = ", ".join(given.others[:3]) + ", …" * (len(given.others) > 3)
        lines.append(f"{given.path}: {len(given.others)} maps are of no image here: {others}")
    return lines


def _places(out: Path, model: str) -> list[tuple[str, str]]:
    """The layers and utilities of a model in a results folder."""
    protocols = [read_run(folder)["protocol"] for folder in run_folders(out)]
    found = [(one["layer"], one["utility"]) for one in protocols if one["model"] == model]
    return list(dict.fromkeys(found)) or [("conv", "rest")]


def _cell(prepared: Prepared, layer: str, utility: str, name: str, summary: Summary) -> Cell:
    path = prepared.paths[layer]
    on_grid = summary.sizes == {prepared.network.grids.get(path)}
    return Cell(layer, path, utility, Method(name, _elsewhere, name, (), "maps from elsewhere", not on_grid))


def _elsewhere(*_: Any, **__: Any) -> Any:
    raise UsageError("maps from elsewhere cannot be made here")


def _enter(run: ModelRun, name: str, record: Mapping[str, Any]) -> None:
    """Enter in run.json where the maps come from.

    Raises:
        UsageError: rows of this name are those of other maps.
    """
    for folder in run.protocols:
        there = read_run(folder)
        known = there.get(GIVEN, {})
        if name in known and known[name]["sha256"] != record["sha256"]:
            raise UsageError(
                f"--name {name}: {folder} holds scores of other maps by this name; choose another one"
            )
        write_run(folder, there | {GIVEN: {**known, name: dict(record)}})


def scores_of_maps(
    network: Network, images: Tensor, maps: Sequence[Tensor], target: Tensor, config: RunConfig
) -> dict[str, Tensor]:
    """Scores of maps of one batch, by column, each (B,).

    Args:
        images: normalised, (B, C, H, W).
        maps: one (h, w) per image, of any sizes.
        target: the classes that they explain, (B,).
        config: the metrics, and what decides their numbers.

    Raises:
        UsageError: a metric explains again or sees the layer, or a map is none.
    """
    for name in config.metrics:
        if METRICS[name].sees_layer:
            raise UsageError(f"{name} depends on a layer, which is not named here: use camkit score --maps")
    expect_no_explanation(config.metrics)
    check_located(config)
    size = (images.shape[2], images.shape[3])
    like = [one.to(images.device, torch.float32) for one in maps]
    logits = network.logits(images).clone()
    same = len({one.shape for one in like}) == 1
    subject = Subject(
        images=images,
        target=target,
        logits=logits,
        probability=network.probability(logits, target),
        score=lambda changed: network.score(changed, target),
        logit=lambda changed: network.logit(changed, target),
        options=config,
        saliency=torch.cat([to_saliency(one[None], size) for one in like]),
        maps=torch.stack(like) if same else None,
        regions=None,
        image_ids=[str(place) for place in range(len(images))],
        seed=config.seed,
        layer_grid=None,
        explain_again=_elsewhere,
        explain_behind=_elsewhere,
        explain_as=_elsewhere,
        _find_trace=_elsewhere,
    )
    found: dict[str, Tensor] = {"probability": subject.probability}
    for name in config.metrics:
        scores = compute_scores(METRICS[name], subject)
        found |= {column: scores[column] for column in METRICS[name].columns}
    return found
