"""A map that wins on yardsticks that are not camkit's own: the search, and its test.

    python scripts/map_search.py choose --data CHOICE --limit 40 --mosaics 12     # Lite0
    python scripts/map_search.py confirm --data DIR --limit 80 --mosaics 24       # Lite0, Lite1 and Lite2
    python scripts/map_search.py table

CHOICE and DIR have no photo in common. `choose` runs the parts `price`, `null`, `photos` and `mosaics`, and
`confirm` the last three for each model; `--part` takes some of them. The CSVs in results/shapley/map_search
grow batch by batch, and a part that was stopped goes on.

A candidate (scripts/map_candidates.py) is a sum over layers of one method's maps. The rule of the choice and
the thresholds of the test were written before either was run.

Choice. On each yardstick (SRG, insertion, single deletion) a candidate has the paired t statistic of its
difference to the best of the paper's ten methods at `conv`; on mosaic energy that of its difference to
GradCAM plus 0.02, over mosaics. Its margin is the smallest of these. Candidates with a summand that fails the
null axiom are left out, as are those without an energy. Two are chosen: the largest margin at any price, and
the largest among maps that cost no more operations than one backward pass through the whole network.

Test. A chosen candidate wins if on each model

1. SRG and insertion (into the blurred image) are better than those of the best of the paper's ten, which is
   the one with the highest mean over these photos, and than those of its control, HiResCAM plus noise of the
   same roughness. Paired tests at 5 %, with Holm's correction over these comparisons of all models and chosen
   candidates.
2. Single deletion is better than that of the best of the ten on the grids 4, 7, 8 and 14: the 95 % interval
   of each paired difference lies above 0. All have to, so nothing is corrected.
3. Mosaic energy is not inferior to GradCAM's: the 95 % interval of the difference, paired by mosaic, lies
   above -0.02.
4. Each summand passes the null axiom: `null_share` is at most 1e-6 in every photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import map_table
import pandas as pd
import torch
from map_candidates import (
    CANDIDATES,
    CONTROLS,
    EDGES,
    LAYERS,
    PAPER,
    ROUGH,
    Maps,
    named,
    price,
    price_of_backward,
)
from map_table import BACKWARD, chosen, ranking, write_tables
from torch import Tensor

import camkit.network.utilities  # noqa: F401  (fills the registry)
from camkit.config import MOSAIC, RunConfig
from camkit.data import Item, data_of
from camkit.data.batches import Batch, batches
from camkit.entries import METRICS, UTILITIES
from camkit.metrics import Subject
from camkit.network.prepare import Prepared, prepare
from camkit.network.trace import Trace
from camkit.results.folder import file_name, read_run, run_folders
from camkit.results.table import Table
from camkit.runs.bench import bench
from camkit.runs.mosaics import mosaic_items

RUNS = Path("results/local/map_search")
MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
SAMPLE = 7  # of 224 steps, of each curve
GRIDS, FEW_GRIDS = (4, 7, 8, 14), (4, 7)  # of the test, and of the choice: a pass per patch
NULL_PHOTOS = 4
BATCH = 4  # photos, or the tiles of a mosaic
ALL_LAYERS = ("+".join(LAYERS),)  # as one name
OF_PHOTOS = ("srg", "deletion", "insertion", "average_drop", "shape")
KEPT = ("srg", "insertion_auc", "deletion_auc", "average_drop", "complexity", "roughness")
IN_MOSAICS = ("energy", "energy_certified", "pointing", "roughness")
# Energies of these are not measured: many gradients at the size of a mosaic, for maps that are there to show
# what quadrature does.
NOT_IN_MOSAICS = ("aumann-32", "aumann-8@")


def options(data: str, limit: int | None = None, **more: Any) -> RunConfig:
    return RunConfig(data=data, limit=limit, sample=SAMPLE, **more)


def opened(model: str, config: RunConfig) -> tuple[Prepared, list[Item]]:
    """A model with the layers that are summed, and its images: photos, or the tiles of mosaics."""
    data = data_of(config)
    prepared = prepare(model, config.layer, data.items, config, say=click.echo)
    if not config.of_mosaics:
        return prepared, list(data.items[: config.limit])
    return prepared, mosaic_items(prepared, config, data, config.out / file_name(model), click.echo)


def traced(prepared: Prepared, config: RunConfig, batch: Batch) -> Trace:
    """The trace of all layers that are summed; the classes are the items' own, else the predicted ones."""
    assert batch.pixels is not None
    preprocess, network = prepared.loaded.preprocess, prepared.network
    images = preprocess.normalise(batch.pixels)
    (path,) = prepared.paths.values()
    passed = network.trace(images, path.split("+"))
    own = torch.tensor([-1 if item.target is None else item.target for item in batch.items])
    target = own.where(own >= 0, passed.logits.detach().argmax(dim=1))
    return Trace(
        images, [item.id for item in batch.items], partial(preprocess.rgb, images), target, config.seed, 0,
        network, batch.regions, config, UTILITIES["rest"].function, path, passed,
    )  # fmt: skip


def subject_of(trace: Trace, config: RunConfig) -> Subject:
    """A batch without maps yet: :func:`dataclasses.replace` gives it those of each method in turn."""

    def absent(*_: Any, **__: Any) -> Any:
        raise AssertionError("none of these scores explains again")

    return Subject(
        images=trace.images, target=trace.target, logits=trace.logits,
        probability=trace.network.probability(trace.logits, trace.target), score=trace.score,
        logit=trace.logit, options=config, saliency=torch.zeros(()), maps=None, regions=trace.regions,
        image_ids=trace.image_ids, seed=config.seed, layer_grid=None, explain_again=absent,
        explain_behind=absent, explain_as=absent, _find_trace=absent,
    )  # fmt: skip


def of_photos(subject: Subject, drops: Mapping[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The scores (B,) of one method's maps.

    Args:
        drops: grid -> what single deletion makes once for all methods.
    """
    found: dict[str, Tensor] = {}
    for name in OF_PHOTOS:
        found |= METRICS[name].function(subject)
    scores = {name: found[name] for name in KEPT}
    for grid, made in drops.items():
        on_grid = replace(subject, options=replace(subject.options, grid=grid), _made=made)
        scores[f"single_deletion_{grid}"] = METRICS["single_deletion"].function(on_grid)["single_deletion"]
    return scores


def of_mosaics(subject: Subject) -> dict[str, Tensor]:
    found = METRICS["localisation"].function(subject) | METRICS["shape"].function(subject)
    return {name: found[name] for name in IN_MOSAICS}


@dataclass(frozen=True)
class Study:
    """One of the two phases.

    Attributes:
        data: a folder of photos; `limit`, `mosaics`: how many of them, and of mosaics of them, are taken.
        names: of the maps, see :meth:`map_candidates.Maps.make`.
        grids: of single deletion, patches along a side.
    """

    phase: str
    data: str
    limit: int
    mosaics: int
    names: Sequence[str]
    grids: Sequence[int]

    def run(self, part: str, model: str) -> None:
        """One part of one model."""
        map_table.HERE.mkdir(parents=True, exist_ok=True)
        path = map_table.HERE / f"{self.phase}_{part}.csv"
        if part == "null":
            null(path, model, self.data, self.names)
        elif part == "price":
            prices(path, model, self.data, self.names)
        elif part == "photos":
            config = options(self.data, self.limit, model=(model,), layer=ALL_LAYERS)
            measure(path, model, config, self.names, self.grids)
        else:
            names = [name for name in self.names if not any(one in name for one in NOT_IN_MOSAICS)]
            source, out = f"{MOSAIC}{self.data}", RUNS / self.phase
            measure(
                path, model, options(source, self.mosaics, model=(model,), layer=ALL_LAYERS, out=out), names
            )


def measure(
    path: Path, model: str, config: RunConfig, names: Sequence[str], grids: Sequence[int] = ()
) -> None:
    """Append the rows of the images and maps that are not there."""
    prepared, items = opened(model, config)
    scores = IN_MOSAICS if config.of_mosaics else (*KEPT, *(f"single_deletion_{grid}" for grid in grids))
    table = Table(path, ["model", "image", "map", *scores], keys=("model", "image", "map"))
    missing = [item for item in items if not all(table.has((model, item.id, name)) for name in names)]
    with click.progressbar(length=len(missing), label=f"{model}, {path.stem}") as bar:
        for batch in batches(missing, prepared.loaded.preprocess, BATCH, 0):
            if batch.pixels is not None:
                with torch.no_grad():
                    table.append(_rows(model, traced(prepared, config, batch), config, names, grids))
            bar.update(len(batch.items) + len(batch.errors))


def _rows(
    model: str, trace: Trace, config: RunConfig, names: Sequence[str], grids: Sequence[int]
) -> Iterator[dict[str, str]]:
    maps, batch = Maps(trace), subject_of(trace, config)
    drops: dict[int, dict[str, Tensor]] = {grid: {} for grid in grids}
    for name in names:
        signed, saliency = maps.make(name)
        subject = replace(batch, saliency=saliency, maps=signed, _of_maps={})
        found = of_mosaics(subject) if config.of_mosaics else of_photos(subject, drops)
        columns = {score: values.tolist() for score, values in found.items()}
        for place, image in enumerate(trace.image_ids):
            texts = {score: f"{values[place]:.6g}".replace("nan", "") for score, values in columns.items()}
            yield {"model": model, "image": image, "map": name, **texts}


def null(path: Path, model: str, data: str, names: Sequence[str]) -> None:
    """Whether the summands of the candidates among `names` pass the null axiom."""
    candidates = [found for found in map(named, names) if found]
    for absent in dict.fromkeys(one.absent for one in candidates):
        summands = tuple(dict.fromkeys(one.of for one in candidates if one.absent == absent))
        out = RUNS / path.stem / absent
        config = options(
            data, NULL_PHOTOS, model=(model,), layer=LAYERS, method=summands, metrics=("null",),
            absent=absent, out=out, batch_size=BATCH,
        )  # fmt: skip
        bench(config, say=click.echo)
    rows = []
    for absent in sorted(path.name for path in (RUNS / path.stem).iterdir()):
        for folder in run_folders(RUNS / path.stem / absent):
            record = read_run(folder)
            for method in record["methods"]:
                frame = pd.read_csv(folder / f"{file_name(method)}.csv", dtype={"image": str})
                cell = {key: record["protocol"][key] for key in ("model", "layer")}
                rows.append(frame[["image", "null_share"]].assign(**cell, absent=absent, of=method))
    pd.concat(rows).to_csv(path, index=False, float_format="%.5g", lineterminator="\n")


def prices(path: Path, model: str, data: str, names: Sequence[str]) -> None:
    """What each map costs beyond the pass that all share, in passes."""
    config = options(data, 1, model=(model,), layer=ALL_LAYERS)
    prepared, items = opened(model, config)
    (batch,) = batches(items, prepared.loaded.preprocess, 1, 0)
    rows = [(BACKWARD, price_of_backward(traced(prepared, config, batch)))]
    rows += [(name, price(traced(prepared, config, batch), name)) for name in names]
    pd.DataFrame(rows, columns=["map", "passes"]).to_csv(
        path, index=False, float_format="%.4g", lineterminator="\n"
    )


@click.group()
def main() -> None:
    """A map that wins on yardsticks that are not camkit's own: the search, and its test."""


def _shared(parts: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--mosaics", default=12, show_default=True, help="Mosaics of 2 x 2 photos."),
            click.option("--limit", default=40, show_default=True, help="Photos."),
            click.option("--part", type=click.Choice(parts), multiple=True, help="Only these parts."),
            click.option("--data", required=True, help="A folder of photos."),
        ):
            function = option(function)
        return function

    return decorate


CHOICE = ("price", "null", "photos", "mosaics")
TEST = ("null", "photos", "mosaics")


@main.command()
@_shared(CHOICE)
def choose(data: str, part: Sequence[str], limit: int, mosaics: int) -> None:
    """Score all candidates on Lite0, and rank them."""
    names = [*PAPER, *CONTROLS, *CANDIDATES]
    study = Study("choose", data, limit, mosaics, names, FEW_GRIDS)
    for one in part or CHOICE:
        study.run(one, MODELS[0])
    if all((map_table.HERE / f"choose_{one}.csv").exists() for one in CHOICE):
        ranking().to_csv(
            map_table.HERE / "ranking.csv", index=False, float_format="%.5g", lineterminator="\n"
        )
        click.echo(f"chosen: {', '.join(chosen())}")


@main.command()
@click.option("--model", type=click.Choice(MODELS), multiple=True, default=MODELS)
@_shared(TEST)
def confirm(model: Sequence[str], data: str, part: Sequence[str], limit: int, mosaics: int) -> None:
    """Score the chosen candidates, their controls and the paper's ten on other photos."""
    names = [*PAPER, EDGES]
    for candidate in map(named, chosen()):
        assert candidate is not None
        names += [candidate.name, f"{ROUGH}{candidate.name}", candidate.fusion_alone.name]
    study = Study("confirm", data, limit, mosaics, list(dict.fromkeys(names)), GRIDS)
    for each in model:
        for one in part or TEST:
            study.run(one, each)


@main.command("table")
def tables() -> None:
    """Write table.md and front.png from the CSVs that stand there."""
    for path in write_tables():
        click.echo(str(path))


if __name__ == "__main__":
    main()
