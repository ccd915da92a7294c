"""Measure how near CAM maps come to the Shapley values of a layer: the tables in results/shapley.

    python scripts/shapley_table.py run sample                          # the sample photos
    python scripts/shapley_table.py run imagenet --data DIR --part values --limit 500
    python scripts/shapley_table.py table                               # tables.md, from the CSVs

`run` writes results/shapley/NAME.csv.gz, one row per image and cell; a run that was stopped goes on, and rows
of parts that are not run stay. Tables of scripts/shapley_search.py's results (search*.csv.gz) are made too.
Errors are roots of mean squares, see docs/definitions.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from shapley_search import write

from camkit.config import RunConfig
from camkit.entries import Column, all_columns
from camkit.metrics.shapley_value import RootMean
from camkit.report.statistics import estimates
from camkit.results.folder import file_name, read_run, run_folders
from camkit.runs.bench import bench

HERE = Path("results/shapley")
RUNS = Path("results/local/shapley")
MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
LAYERS = ("prepool", "conv", "blocks.5")
UTILITIES = ("rest", "log-softmax", "softmax", "logit")
VALUES = ("hirescam", "shapleycam-h", "aumann-1", "aumann-2", "aumann-3", "shapley")
OTHERS = ("gradcam", "shapleycam", "aumann-2-gap", "flat", "centre", "randomcam")
# Part -> what is run. Where the rest of the network mixes positions, a coalition costs a pass through it.
PARTS: dict[str, dict[str, Any]] = {
    "values": {
        "model": MODELS,
        "layer": ("prepool", "conv"),
        "utility": UTILITIES,
        "method": VALUES,
        "metrics": ("shapley",),
    },
    "mixing": {
        "model": MODELS,
        "layer": ("blocks.5",),
        "utility": UTILITIES,
        "method": VALUES[:-1],
        "metrics": ("shapley",),
        "budget": 32,
    },
    # The yardstick of many orders, for what the others cannot tell from 0.
    "sharp": {
        "model": MODELS[:1],
        "layer": ("conv",),
        "utility": UTILITIES[:3],
        "method": ("hirescam", "aumann-2", "shapley"),
        "metrics": ("shapley",),
        "budget": 12800,
    },
    "absent-mean": {
        "model": MODELS[:1],
        "layer": ("prepool", "conv"),
        "method": VALUES,
        "metrics": ("shapley",),
        "absent": "mean",
    },
    "absent-blur": {
        "model": MODELS[:1],
        "layer": ("prepool", "conv"),
        "method": VALUES,
        "metrics": ("shapley",),
        "absent": "blur",
    },
    "scores": {
        "model": MODELS[:1],
        "layer": ("prepool", "conv"),
        "method": (*VALUES, *OTHERS),
        "metrics": ("adcc", "single_deletion"),
    },
    "scores-mixing": {
        "model": MODELS[:1],
        "layer": ("blocks.5",),
        "method": (*VALUES[:-1], *OTHERS),
        "metrics": ("adcc", "single_deletion", "deletion", "insertion"),
        "steps": 14,
    },
    "curves": {
        "model": MODELS[:1],
        "layer": ("prepool", "conv"),
        "method": (*VALUES, *OTHERS),
        "metrics": ("deletion", "insertion"),
        "steps": 14,
    },
}
YARDSTICK = ("nonadditivity", "shapley_noise")
KEYS = ["part", "model", "layer", "utility", "method", "image"]


@click.group()
def main() -> None:
    """The tables in results/shapley."""


@main.command()
@click.argument("name")
@click.option("--data", default="sample", show_default=True)
@click.option("--limit", type=int, help="Images; None: all.")
@click.option("--part", type=click.Choice(list(PARTS)), multiple=True, help="Only these parts.")
@click.option("--batch-size", default=10, show_default=True)
def run(name: str, data: str, limit: int | None, part: Sequence[str], batch_size: int) -> None:
    """Run the parts over the images of --data, and put their rows into results/shapley/NAME.csv.gz."""
    path = HERE / f"{name}.csv.gz"
    for one in part or PARTS:
        out = RUNS / name / one
        bench(RunConfig(data=data, limit=limit, batch_size=batch_size, out=out, **PARTS[one]), say=click.echo)
        rows = _rows(out, one)
        if path.exists():
            there = pd.read_csv(path, dtype={"image": str})
            rows = pd.concat([there[there["part"] != one], rows])
        write(rows.sort_values("part", key=lambda parts: parts.map(list(PARTS).index), kind="stable"), path)


def _rows(out: Path, part: str) -> pd.DataFrame:
    """All rows below a results folder, one per image and cell."""
    frames = []
    for folder in run_folders(out):
        record = read_run(folder)
        protocol = record["protocol"]
        for method in record["methods"]:
            frame = pd.read_csv(folder / f"{file_name(method)}.csv", dtype={"image": str})
            cell = {key: protocol[key] for key in ("model", "layer", "utility")}
            frames.append(frame.assign(part=part, method=method, **cell))
    rows = pd.concat(frames)
    scores = [c for c in rows if c not in (*KEYS, "label", "target", "probability") and rows[c].notna().any()]
    return rows[[*KEYS, *scores]]


def intervals(rows: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Methods down, scores across: figures with 95 % intervals, each the function of means that it is."""
    methods = sorted(rows["method"].unique(), key=(*VALUES, *OTHERS).index)
    declared = all_columns()
    own = [mean for mean in (declared[score].mean for score in scores) if mean]
    needed = list(dict.fromkeys([*scores, *(part for mean in own for part in mean.parts)]))
    wide = rows.pivot(index="image", columns="method", values=needed)
    values = np.stack([wide[score][methods].to_numpy(float) for score in needed], axis=2)
    found = estimates(values, {score: declared[score] for score in needed})
    noisy = [isinstance(declared[score].mean, RootMean) for score in needed]
    texts = np.vectorize(_interval, otypes=[object])(found.value, *found.interval, noisy)
    return pd.DataFrame(texts, index=pd.Index(methods, name="method"), columns=needed)[list(scores)]


def _interval(figure: float, low: float, high: float, noisy: bool) -> str:
    if np.isnan(figure):
        return ""
    if noisy and figure == 0 and np.isnan(low):  # after the noise is subtracted the mean is not positive
        return "within noise"
    return f"{figure:.4f}" if np.isnan(low) else f"{figure:.4f} [{low:.4f}, {high:.4f}]"


def across_cells(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Methods down, cells (layer and utility) across: one score."""
    cells = sorted(set(zip(rows["layer"], rows["utility"], strict=True)), key=_place)
    of_cell = {
        cell: rows[(rows["layer"] == cell[0]) & (rows["utility"] == cell[1])].dropna(subset=[score])
        for cell in cells
    }
    columns = {
        f"{layer}, {utility}": intervals(here, [score])[score]
        for (layer, utility), here in of_cell.items()
        if len(here)
    }
    table = pd.DataFrame(columns)
    return table.loc[sorted(table.index, key=(*VALUES, *OTHERS).index)].fillna("")


def _place(cell: tuple[str, str]) -> tuple[int, int]:
    return LAYERS.index(cell[0]), UTILITIES.index(cell[1])


def part_tables(name: str, part: str, rows: pd.DataFrame) -> Iterator[str]:
    """The tables of one part, in Markdown, each with a line that says what it is."""
    found = [column for column in rows.columns[len(KEYS) :] if rows[column].notna().any()]
    for model, of_model in rows.groupby("model", sort=False):
        title = f"{name}, {part}: {model}, {of_model['image'].nunique()} photos"
        if "shapley_error" in found and "coherency" not in found:
            for score in ("shapley_error", "shapley_error_scaled", "saliency_distance"):
                yield f"**{title}, `{score}`**\n\n{across_cells(of_model, score).to_markdown()}\n"
            game = of_model[of_model["method"] == "hirescam"]  # it is the same beside every method
            table = pd.concat([across_cells(game, score).set_axis([score]) for score in YARDSTICK])
            yield f"**{title}, the game and the yardstick**\n\n{table.to_markdown()}\n"
        else:
            for layer, of_layer in of_model.groupby("layer", sort=False):
                yield f"**{title}, {layer}**\n\n{intervals(of_layer, found).to_markdown()}\n"


def overview(name: str, rows: pd.DataFrame, utility: str) -> Iterator[str]:
    """Methods down, layers and models across: the error of the best multiple of each map."""
    errors = rows[(rows["utility"] == utility) & rows["part"].isin(("values", "mixing"))]
    columns = {}
    for layer in LAYERS:
        for model, here in errors[errors["layer"] == layer].groupby("model"):
            (found,) = across_cells(here, "shapley_error_scaled").to_dict("series").values()
            columns[f"{layer}, {str(model).rpartition('_')[2]}"] = found.str.partition(" [")[0]
    if columns:
        table = pd.DataFrame(columns).reindex(VALUES).fillna("")
        yield f"**{name}: `shapley_error_scaled` under {utility}**\n\n{table.to_markdown()}\n"


def search_table(name: str, path: Path) -> str:
    """Candidates down, layers across."""
    rows = pd.read_csv(path, dtype={"image": str, "passes": str}).fillna({"passes": ""})
    scores = {
        "square": Column("lower"),
        "error": Column("lower", mean=RootMean("square"), bounds=(0, np.inf)),
    }
    columns = {}
    for layer, here in rows.groupby("layer", sort=False):
        wide = here.pivot(index="image", columns="map", values="square")[list(here["map"].unique())]
        found = estimates(np.repeat(wide.to_numpy()[..., None], 2, axis=2), scores)
        low, high = found.interval
        columns[layer] = pd.Series(
            [_interval(*ends, True) for ends in zip(found.value[:, 1], low[:, 1], high[:, 1], strict=True)],
            index=wide.columns,
        )
    table = pd.DataFrame(columns)
    table.insert(0, "passes", rows.drop_duplicates("map").set_index("map")["passes"])
    return f"**{name}: {rows['image'].nunique()} images, relative error**\n\n{table.to_markdown()}\n"


@main.command("table")
def tables() -> None:
    """Write results/shapley/tables.md from the CSVs that stand there."""
    text = [f"<!-- Made by `python {Path(__file__).parent.name}/{Path(__file__).name} table`. -->\n"]
    for path in sorted(HERE.glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        if name.startswith("search"):
            text.append(search_table(name, path))
            continue
        rows = pd.read_csv(path, dtype={"image": str})
        for utility in UTILITIES[:3]:
            text += overview(name, rows, utility)
        for part in PARTS:
            here = rows[rows["part"] == part]
            text += part_tables(name, part, here) if len(here) else []
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / "tables.md").write_text("\n".join(text))
    click.echo(str(HERE / "tables.md"))


if __name__ == "__main__":
    main()
