"""Mosaics of confidently classified photos: whose map shows the photo that it explains?

The Grid Pointing Game (2104.00032, 2205.10435): photos of different classes are set side by side, the class
of each is explained, and the saliency should lie in its tile. Which photos may be set together belongs to the
model; which are tried does not, so that models can be compared on the mosaics that qualify for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from camkit.config import RunConfig
from camkit.console import Bar
from camkit.data import DataSet, Item
from camkit.data.regions import Tile
from camkit.errors import CamkitError, RunError, Say
from camkit.network.loading import load_preprocess
from camkit.network.prepare import Prepared
from camkit.network.view import View
from camkit.results.files import write_first
from camkit.results.mosaics import COLUMNS, MOSAICS, mosaic_of, read_mosaics
from camkit.results.table import Row, number, render
from camkit.runs.loop import errors_allowed, load_batches

# A photo's probability of each other class in its mosaic is below this.
OTHERS = 0.001
# Rounds of candidates: in each one every photo is tried once.
ROUNDS = 4000
BATCH = 32


@dataclass(frozen=True)
class Known:
    """What a model says of photos, (N,) and (N, K), in the order of their names."""

    items: Sequence[Item]
    target: np.ndarray
    probability: np.ndarray
    all_probabilities: np.ndarray
    confident: np.ndarray


def mosaic_items(
    prepared: Prepared, config: RunConfig, data: DataSet, folder: Path, say: Say, keep: bool = True
) -> list[Item]:
    """The images of a run over mosaics: each mosaic once for each of its tiles.

    Args:
        data: the photos.
        folder: OUT/<model>, where the choice is kept; what is kept there stands.
        keep: write it there, where it is not yet.

    Raises:
        CamkitError: no photos of this model can be set together, or the choice is of other photos.
    """
    path = folder / MOSAICS
    chosen = read_mosaics(folder)
    if not chosen:
        chosen = _choose(prepared, config, data, say)
        if keep:
            folder.mkdir(parents=True, exist_ok=True)
            write_first(path, render(COLUMNS, [row for tiles in chosen.values() for row in tiles]))
            chosen = read_mosaics(folder)
    if config.limit is not None and len(chosen) < config.limit:
        model = prepared.loaded.row.name
        say(f"{model}: {len(chosen)} mosaics, the photos give no more (--limit {config.limit})")
    try:
        return list(_items(dict(list(chosen.items())[: config.limit]), config, data))
    except (KeyError, ValueError) as error:
        raise CamkitError(
            f"{path} is of other photos or options ({error}): move it away, or use another --out"
        ) from error


def _items(chosen: Mapping[str, Sequence[Row]], config: RunConfig, data: DataSet) -> Iterator[Item]:
    """The tiles of the chosen mosaics.

    Raises:
        KeyError, ValueError: see :func:`camkit.results.mosaics.mosaic_of`.
    """
    photos = {item.id: item.source for item in data.items}
    for name, tiles in chosen.items():
        mosaic = mosaic_of(tiles, photos, config.mosaic)
        for place, row in enumerate(tiles):
            tile = Tile(config.mosaic, place)
            yield Item(f"mosaic/{name}#{place + 1}", mosaic, None, name, int(row["target"]), tile)


def _choose(prepared: Prepared, config: RunConfig, data: DataSet, say: Say) -> dict[str, list[Row]]:
    """All mosaics that qualify, in the form of :func:`camkit.results.mosaics.read_mosaics`."""
    known = classify(prepared, config, data, say)
    mosaics = choose(known, config.mosaic**2, config.seed)
    if not mosaics:
        tiles, confident = config.mosaic**2, known.target[known.confident].tolist()
        raise CamkitError(
            f"no mosaic of {config.mosaic}x{config.mosaic}, which takes {tiles} photos of different classes: "
            f"of {len(known.items)} photos {len(confident)} are classified (rightly, where they have labels) "
            f"with a probability of {config.confidence:g} or more, into {len(set(confident))} classes, and "
            "no group that was tried qualifies: more photos, or a lower --confidence"
        )
    return {
        f"{candidate:05d}": [
            {
                "mosaic": f"{candidate:05d}",
                "place": str(place),
                "image": known.items[photo].id,
                "target": str(known.target[photo]),
                "probability": number(known.probability[photo]),
            }
            for place, photo in enumerate(photos)
        ]
        for candidate, photos in mosaics
    }


def classify(prepared: Prepared, config: RunConfig, data: DataSet, say: Say) -> Known:
    """What the model says of each photo by itself: one pass per batch.

    A photo is confident where its class has the probability `--confidence` and is its label, if it has one.

    Raises:
        RunError: a photo cannot be read (`--on-error stop`).
        CamkitError: more than `--max-errors` cannot, or none can.
    """
    loaded = prepared.loaded
    alone = replace(
        load_preprocess(loaded.row, loaded.model, config.preprocess, View.of(config)),
        orient=loaded.preprocess.orient,
    )
    view = replace(prepared, loaded=replace(loaded, preprocess=alone))
    photos = sorted(data.items, key=lambda item: item.id)
    items: list[Item] = []
    probabilities = []
    errors: list[tuple[Item, str]] = []
    with Bar(len(photos), f"{loaded.row.name}, photos") as bar:
        for batch in load_batches(view, config, photos, BATCH):
            bar.update(len(batch.items) + len(batch.errors))
            errors += batch.errors
            if batch.pixels is not None:
                images = alone.normalise(batch.pixels.to(prepared.network.device))
                logits = prepared.network.logits(images)
                probabilities.append(prepared.network.activation.probability(logits).cpu().numpy())
                items += batch.items
    if errors:
        first, reason = errors[0]
        said = f"{len(errors)} of {len(photos)} photos cannot be read, the first {first.id}: {reason}"
        if config.on_error == "stop":
            raise RunError(f"{said} (--on-error stop)")
        allowed, share = errors_allowed(config, len(photos))
        if len(errors) > allowed:
            raise CamkitError(f"{said}; more than --max-errors {100 * share:g}%")
        say(said)
    if not items:
        raise CamkitError(f"none of the {len(photos)} photos could be read")
    everything = np.concatenate(probabilities)
    target = everything.argmax(axis=1)
    probability = everything[np.arange(len(items)), target]
    right = np.array([item.label in (None, int(best)) for item, best in zip(items, target, strict=True)])
    return Known(items, target, probability, everything, right & (probability >= config.confidence))


def choose(known: Known, tiles: int, seed: int) -> list[tuple[int, tuple[int, ...]]]:
    """Candidates that qualify: (number, indices of the photos in raster order).

    Their photos are confident and of different classes, none of them sees another's class, and no photo
    stands twice in a place.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    used = np.zeros((tiles, len(known.items)), dtype=bool)  # (place, photo)
    for first, groups in candidates(len(known.items), tiles, seed):
        for place in np.flatnonzero(known.confident[groups].all(axis=1)):
            photos = groups[place]
            if used[range(tiles), photos].any():
                continue
            others = known.all_probabilities[np.ix_(photos, known.target[photos])]  # (tiles, tiles)
            if (others[~np.eye(tiles, dtype=bool)] < OTHERS).all():
                found.append((first + int(place), tuple(map(int, photos))))
                used[range(tiles), photos] = True
    return found


def candidates(photos: int, tiles: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Numbered groups (N, tiles) of photos, whatever the model: in each round every photo stands in one.

    Yields the number of a round's first group, and the groups.
    """
    count = photos // tiles
    for turn in range(ROUNDS):
        order = np.random.default_rng([seed, turn]).permutation(photos)
        yield turn * count, order[: count * tiles].reshape(count, tiles)
