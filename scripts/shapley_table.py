"""Measure how near CAM maps come to the Shapley values of a layer: the tables in results/shapley.

    python scripts/shapley_table.py run sample                          # the sample photos
    python scripts/shapley_table.py run imagenet --data DIR             # photos of a folder
    python scripts/shapley_table.py table                               # tables.md, from the CSVs

`run` writes results/shapley/NAME.csv, one row an image and cell; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from camkit.benchmark import bench
from camkit.config import RunConfig
from camkit.results import file_name, read_run, run_folders

HERE = Path("results/shapley")
RUNS = Path("results/local/shapley")
MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
UTILITIES = ("rest", "log-softmax", "softmax", "logit")
VALUES = ("hirescam", "shapleycam-h", "aumann-1", "aumann-2", "aumann-3", "shapley")
OTHERS = ("gradcam", "shapleycam", "aumann-2-gap", "aumann-2-e", "controls")
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
        "utility": ("rest",),
        "method": VALUES[:-1],
        "metrics": ("shapley",),
        "budget": 32,
    },
    "mixing-utilities": {
        "model": MODELS[:1],
        "layer": ("blocks.5",),
        "utility": UTILITIES[1:],
        "method": VALUES[:-1],
        "metrics": ("shapley",),
        "budget": 32,
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
        "metrics": ("shapley", "adcc", "single_deletion"),
    },
    "curves": {
        "model": MODELS[:1],
        "layer": ("prepool", "conv"),
        "method": (*VALUES, *OTHERS),
        "metrics": ("deletion", "insertion"),
        "steps": 28,
    },
}
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
    """Run the parts over the images of --data and gather their rows in results/shapley/NAME.csv."""
    for one in part or PARTS:
        out = RUNS / name / one
        bench(RunConfig(data=data, limit=limit, batch_size=batch_size, out=out, **PARTS[one]), say=click.echo)
    rows = [_rows(RUNS / name / one, one) for one in PARTS if (RUNS / name / one).exists()]
    HERE.mkdir(parents=True, exist_ok=True)
    pd.concat(rows).to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g", lineterminator="\n")


def _rows(out: Path, part: str) -> pd.DataFrame:
    """All rows below a results folder, one an image and cell."""
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


def interval(values: pd.Series, digits: int = 3) -> str:
    """Mean with the 95 % interval of a bootstrap over images (percentiles, 2,000 resamples)."""
    values = values.dropna()
    if values.empty:
        return ""
    mean = f"{values.mean():.{digits}f}"
    if len(values) < 2 or values.nunique() == 1:
        return mean
    seed = np.random.default_rng(0)
    found = bootstrap((values.to_numpy(),), np.mean, n_resamples=2000, method="percentile", rng=seed)
    low, high = found.confidence_interval
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def table(rows: pd.DataFrame, columns: Sequence[str], score: str) -> pd.DataFrame:
    """Methods down, cells across, means with intervals of one score."""
    methods = list(dict.fromkeys(rows["method"]))
    cells = rows.groupby([*columns, "method"], sort=False)[score].agg(interval).unstack(list(columns))
    cells.columns = [" · ".join(np.atleast_1d(c)) for c in cells.columns]
    return cells.loc[methods]


@main.command("table")
def tables() -> None:
    """Write results/shapley/tables.md from the CSVs that stand there."""
    text = []
    for path in sorted(HERE.glob("*.csv")):
        if path.stem.startswith("search"):
            continue
        rows = pd.read_csv(path, dtype={"image": str})
        for part, here in rows.groupby("part", sort=False):
            text.append(f"\n## {path.stem}, {part}\n")
            scores = [c for c in here.columns[len(KEYS) :] if here[c].notna().any()]
            for name, of_model in here.groupby("model", sort=False):
                model = f"{name} ({of_model['image'].nunique()} images)"
                if part in ("scores", "curves"):
                    for layer, of_layer in of_model.groupby("layer", sort=False):
                        wide = pd.concat(
                            [table(of_layer, ["utility"], c).set_axis([c], axis=1) for c in scores], axis=1
                        )
                        text.append(f"\n{model}, {layer}\n\n{wide.to_markdown()}\n")
                    continue
                for score in ("shapley_error", "shapley_error_scaled", "saliency_distance", "nonadditivity"):
                    of_score = of_model
                    if score == "nonadditivity":
                        of_score = of_model[of_model["method"] == "hirescam"]
                    wide = table(of_score, ["layer", "utility"], score)
                    text.append(f"\n{model}, {score}\n\n{wide.to_markdown()}\n")
    (HERE / "tables.md").write_text("".join(text).lstrip())
    click.echo(str(HERE / "tables.md"))


if __name__ == "__main__":
    main()
