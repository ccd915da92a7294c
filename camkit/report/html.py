"""The report as one HTML file that needs no network: tables, figures, a gallery, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps

from camkit.report.analysis import Analysis
from camkit.report.curves import mean_curves
from camkit.report.figures import COLOUR_MAPS
from camkit.report.gallery import Photo, Selection, explained, photo_of, small_map
from camkit.report.grid import Grid
from camkit.report.scores import title_of
from camkit.report.study import Block
from camkit.report.tables import COST_LEGEND, cost_grid

DIGITS = 5  # of fractions in the page's data


def page(
    analyses: Sequence[Analysis],
    grids: Sequence[Grid],
    legend: Sequence[str],
    selections: Sequence[Selection],
    photos: Mapping[Photo, str],
    grades: Sequence[Grid] = (),
    grade_legend: Sequence[str] = (),
) -> str:
    """The page's HTML.

    Args:
        selections: the images to show, one entry per block, or none at all.
        photos: data URIs; without one, an image has its maps only.
    """
    study = [analysis.block for analysis in analyses]
    numbers = {photo: number for number, photo in enumerate(photos)}
    galleries = [_gallery(one, numbers) for one in selections]
    blocks = [
        _block(analysis, galleries[place] if galleries else None) for place, analysis in enumerate(analyses)
    ]
    data = {
        "blocks": blocks,
        "photos": list(photos.values()),
        "colours": [{"name": name, "rgb": _colours(name)} for name in COLOUR_MAPS],
    }
    scores = {score.name: score for block in study for score in block.scores}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_part("page.html.j2")).render(
        title="camkit report: " + ", ".join(dict.fromkeys(block.model for block in study)),
        summary=_summary(study),
        grids=grids,
        legend=legend,
        grades=grades,
        grade_legend=grade_legend,
        costs=[grid for block in study if (grid := cost_grid(block))],
        cost_legend=COST_LEGEND,
        scores=list(scores.values()),
        provenance=[_provenance(block) for block in study],
        has_ends=any(cell.hint for grid in grids for group in grid.groups for row in group for cell in row),
        has_curves=any(block["curves"] for block in blocks),
        has_gallery=any(gallery["images"] for gallery in galleries),
        has_photos=bool(photos),
        css=Markup(_part("page.css")),
        js=Markup(_part("page.js")),
        # In a script element only `<` could end it.
        data=Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
    )


@cache
def _part(name: str) -> str:
    return (files("camkit.report") / "page" / name).read_text(encoding="utf-8")


def shown(name: str) -> str:
    """A file name that may be no valid UTF-8, as text that is."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _summary(study: Sequence[Block]) -> str:
    models = len({block.model for block in study})
    methods = len({name for block in study for name in block.methods})
    images = sorted({len(block.images) for block in study})
    count = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    plural = {True: "", False: "s"}
    return (
        f"{methods} CAM method{plural[methods == 1]} on {models} model{plural[models == 1]}, {count} images; "
        f"target class: {', '.join(sorted({str(b.protocol.get('target_rule')) for b in study}))}."
    )


def _numbers(values: np.ndarray) -> list:
    """Rounded, with None for NaN: JSON has none."""
    nested = np.round(values.astype(np.float64), DIGITS)
    return np.where(np.isnan(nested), None, nested).tolist()  # type: ignore[call-overload]


def _block(analysis: Analysis, gallery: dict[str, Any] | None) -> dict[str, Any]:
    block = analysis.block
    low, high = analysis.intervals
    return {
        "name": block.name,
        "methods": [
            {"name": name, "title": title_of(name), "control": bool(control)}
            for name, control in zip(block.methods, block.controls, strict=True)
        ],
        "scores": [{"name": s.name, "short": s.short, "heading": s.heading} for s in block.scores],
        "value": _numbers(analysis.own.value),
        "low": _numbers(low),
        "high": _numbers(high),
        "curves": {
            kind: {
                method: {"mean": _numbers(one.mean), "half": _numbers(one.half)}
                for method, one in lines.items()
            }
            for kind, lines in mean_curves(block).items()
        },
        "gallery": gallery,
    }


def _gallery(selection: Selection, photos: Mapping[Photo, int]) -> dict[str, Any]:
    """Scores, maps and the numbers of the photos of the chosen images."""
    block = selection.block
    images = {}
    for place in selection.images:
        images[place] = {
            "id": shown(block.images[place]),
            "text": explained(block, place),
            "photo": photos.get(photo_of(block, block.images[place])),
            "scores": _numbers(block.values[place]),
            "maps": {
                method: small_map(maps[place]) for method, maps in selection.maps.items() if place in maps
            },
        }
    shapes = {method: next(iter(maps.values())).shape for method, maps in selection.maps.items() if maps}
    return {"basis": selection.basis, "lists": selection.lists, "shapes": shapes, "images": images}


def _provenance(block: Block) -> dict[str, Any]:
    def words(value: object) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {entry}" for name, entry in value.items() if entry is not None)
        return str(value)

    def pairs(entries: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            (name.replace("_", " "), words(value)) for name, value in entries.items() if value is not None
        ]

    return {
        "name": block.name,
        "protocol": pairs(block.protocol),
        "segments": [pairs(segment) for segment in block.segments],
    }


def _colours(name: str) -> str:
    """A colour map as 256 x 6 hexadecimal digits."""
    rgb = np.round(255 * colormaps[name](np.arange(256))[:, :3]).astype(int)
    return "".join(f"{r:02x}{g:02x}{b:02x}" for r, g, b in rgb)
