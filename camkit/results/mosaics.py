"""mosaics.csv: which photos of a model stand together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from camkit.data.sources import Mosaic, Source
from camkit.results.table import Row, merge_rows

MOSAICS = "mosaics.csv"
COLUMNS = ("mosaic", "place", "image", "target", "probability")


def read_mosaics(folder: Path) -> dict[str, list[Row]]:
    """Mosaic -> its tiles in raster order, from OUT/<model>; empty without the file."""
    chosen: dict[str, list[Row]] = {}
    for row in merge_rows([folder / MOSAICS], COLUMNS[:2])[1].values():
        chosen.setdefault(row["mosaic"], []).append(row)
    return chosen


def mosaic_of(tiles: Sequence[Row], photos: Mapping[str, Source], side: int) -> Mosaic:
    """The mosaic of `side` x `side` photos.

    Args:
        photos: by their names.

    Raises:
        KeyError: a photo is not there.
        ValueError: there is another number of tiles.
    """
    if len(tiles) != side**2:
        raise ValueError(f"mosaic {tiles[0]['mosaic']} has {len(tiles)} tiles")
    return Mosaic(tuple(photos[row["image"]] for row in tiles), side)  # type: ignore[misc]


def mosaics_in(folder: Path, photos: Mapping[str, Source], side: int) -> dict[str, Mosaic]:
    """`mosaic/0007` and the like -> the mosaic, from OUT/<model>; those of other photos are left out."""
    found: dict[str, Mosaic] = {}
    for name, tiles in read_mosaics(folder).items():
        with suppress(KeyError, ValueError):
            found[f"mosaic/{name}"] = mosaic_of(tiles, photos, side)
    return found
