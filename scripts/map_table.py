"""Ranking, test and figure of scripts/map_search.py, from the CSVs in results/shapley/map_search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from map_candidates import LAYERS, PAPER, ROUGH, Candidate, named
from matplotlib.figure import Figure

from camkit.entries import Column
from camkit.report.statistics import Differences, estimates, holm

HERE = Path("results/shapley/map_search")
BACKWARD = "(backward pass through the whole network)"
SHARP = ("srg", "insertion_auc")
ENERGY_OF, NOT_INFERIOR = "gradcam", 0.02
NULL = 1e-6  # of null_share: rounding
LEVEL = 0.05
CANDIDATE, CONTROL, REFERENCE = "candidate", "control", "reference"
COLOURS = {CANDIDATE: "#0b57a4", CONTROL: "#8a929b", REFERENCE: "#c2571a"}


class Scores:
    """One score of several maps on the same images; higher is better.

    Args:
        rows: one per image and map. Images for which one of the maps has no score are left out; of mosaics
            the tiles are averaged first.
    """

    def __init__(self, rows: pd.DataFrame, score: str) -> None:
        wide = rows.pivot(index="image", columns="map", values=score).dropna(axis=1, how="all").dropna()
        wide = wide.groupby(wide.index.str.split("#").str[0]).mean()
        self.images, self.maps = len(wide), list(wide.columns)
        self._found = estimates(wide.to_numpy()[..., None], {score: Column("higher")})

    def mean(self, name: str) -> float:
        """NaN where the map has no such score."""
        return float(self._found.value[self.maps.index(name), 0]) if name in self.maps else np.nan

    @property
    def best(self) -> str:
        """The best of the paper's ten."""
        return max((name for name in PAPER if name in self.maps), key=self.mean)

    def against(self, name: str, other: str) -> Differences:
        """The paired difference of two maps, (1, 1)."""
        first, second = (self._found.only(self.maps.index(one)) for one in (name, other))
        return first - second

    def t(self, name: str, other: str, plus: float = 0.0) -> float:
        """The t statistic of the paired difference plus a constant; NaN where the map has no such score."""
        if name not in self.maps:
            return np.nan
        found = self.against(name, other)
        return float(((found.value + plus) / found.spread.error)[0, 0])


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(HERE / f"{name}.csv", dtype={"image": str})


def grids(rows: pd.DataFrame) -> list[str]:
    """The columns of single deletion."""
    return [column for column in rows if column.startswith("single_deletion_")]


def obeys(null: pd.DataFrame, candidate: Candidate) -> bool:
    """Whether every summand passes the null axiom in every photo of one model."""
    here = null[(null["of"] == candidate.of) & (null["absent"] == candidate.absent)]
    layers = here.groupby("layer")["null_share"].max()
    return all(layers.get(layer, np.inf) <= NULL for layer in LAYERS[: candidate.layers])


def kind_of(name: str) -> str:
    if name in PAPER:
        return REFERENCE
    return CANDIDATE if named(name) else CONTROL


def ranking() -> pd.DataFrame:
    """One row per map of `choose`, by the rule of scripts/map_search.py, the best first."""
    photos, mosaics, null = read("choose_photos"), read("choose_mosaics"), read("choose_null")
    price = read("choose_price").set_index("map")["passes"]
    yardsticks = {name: Scores(photos, name) for name in (*SHARP, *grids(photos))}
    others = {name: Scores(photos, name) for name in ("deletion_auc", "average_drop", "roughness")}
    energy = Scores(mosaics, "energy")
    rows = []
    for name in photos["map"].unique():
        row = {"map": name, "kind": kind_of(name), "why": "", "passes": price.get(name, np.nan)}
        row |= {score: found.mean(name) for score, found in (yardsticks | others).items()}
        row["energy"] = energy.mean(name)
        candidate = named(name)
        if candidate:
            margins = {f"t_{score}": found.t(name, found.best) for score, found in yardsticks.items()}
            margins["t_energy"] = energy.t(name, ENERGY_OF, NOT_INFERIOR)
            row |= margins | {
                "weakest": min(margins, key=margins.__getitem__),
                "margin": min(margins.values()),
            }
            if name not in energy.maps:
                row |= {"why": "no energy", "weakest": "", "margin": np.nan}
            elif not obeys(null, candidate):
                row["why"] = "fails the null axiom"
        rows.append(row)
    table = pd.DataFrame(rows)
    return _with_choice(table, price[BACKWARD])


def _with_choice(table: pd.DataFrame, budget: float) -> pd.DataFrame:
    fits = (table["kind"] == CANDIDATE) & (table["why"] == "")
    table["in_budget"] = table["passes"] <= budget
    table = table.assign(fits=fits).sort_values(["fits", "margin"], ascending=False, kind="stable")
    chosen = pd.Series("", index=table.index)
    for words, members in (
        ("at any price", table["fits"]),
        ("in budget", table["fits"] & table["in_budget"]),
    ):
        if members.any():
            first = members.idxmax()
            chosen[first] = ", ".join(filter(None, (chosen[first], words)))
    return table.drop(columns="fits").assign(chosen=chosen)


def chosen() -> list[str]:
    """The candidates that are tested."""
    table = read("ranking").fillna({"chosen": ""})
    return list(table.loc[table["chosen"] != "", "map"])


def verdicts() -> pd.DataFrame:
    """One row per model, chosen candidate and threshold of scripts/map_search.py."""
    photos, mosaics, null = (read(f"confirm_{part}") for part in ("photos", "mosaics", "null"))
    rows: list[dict[str, object]] = []
    for model in photos["model"].unique():
        on_photos, on_mosaics = (frame[frame["model"] == model] for frame in (photos, mosaics))
        energy = Scores(on_mosaics, "energy")
        for name in chosen():
            for score in (*SHARP, *grids(photos)):
                found = Scores(on_photos, score)
                for other in (found.best, f"{ROUGH}{name}") if score in SHARP else (found.best,):
                    rows.append(_row(model, name, score, other, found))
            rows.append(_row(model, name, "energy", ENERGY_OF, energy))
            candidate = named(name)
            assert candidate is not None
            axiom = obeys(null[null["model"] == model], candidate)
            rows.append({"model": model, "map": name, "score": "null axiom", "passed": axiom})
    table = pd.DataFrame(rows)
    sharp, drops = table["score"].isin(SHARP), table["score"].str.startswith("single_deletion")
    table.loc[sharp, "p_holm"] = holm(table.loc[sharp, "p"].to_numpy(float))
    table.loc[sharp, "passed"] = (table["difference"] > 0) & (table["p_holm"] < LEVEL)
    table.loc[drops, "passed"] = table["low"] > 0
    table.loc[table["score"] == "energy", "passed"] = table["low"] > -NOT_INFERIOR
    return table.drop(columns="p")


def _row(model: str, name: str, score: str, other: str, found: Scores) -> dict[str, object]:
    difference = found.against(name, other)
    low, high = (float(end[0, 0]) for end in difference.interval)
    return {
        "model": model, "map": name, "score": score, "against": other, "images": found.images,
        "difference": float(difference.value[0, 0]), "low": low, "high": high,
        "p": float(difference.p_value[0, 0]),
    }  # fmt: skip


def front(table: pd.DataFrame, across: str = "energy", up: str = "srg") -> list[str]:
    """The maps that no other map equals or beats on both scores, best `across` first."""
    known = table.dropna(subset=[across, up]).sort_values([across, up], ascending=False, kind="stable")
    highest = known[up].cummax().shift(fill_value=-np.inf)
    return list(known.loc[known[up] > highest, "map"])


def front_figure(table: pd.DataFrame) -> Figure:
    """Mosaic energy against SRG of all maps; those of the front are joined and numbered."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for kind, colour in COLOURS.items():
        here = table[table["kind"] == kind]
        axes.scatter(here["energy"], here["srg"], s=18, color=colour, label=kind)
    best = table.set_index("map").loc[front(table)]
    axes.plot(best["energy"], best["srg"], color="black", linewidth=0.8, zorder=0)
    for number, place in enumerate(best[["energy", "srg"]].to_numpy(), start=1):
        axes.annotate(str(number), place, fontsize=8, xytext=(4, 4), textcoords="offset points")
    names = "\n".join(f"{number}  {name}" for number, name in enumerate(best.index, start=1))
    axes.text(0.98, 0.02, names, ha="right", va="bottom", fontsize=8, transform=axes.transAxes)
    axes.set_xlabel("mosaic energy")
    axes.set_ylabel("SRG")
    axes.legend(frameon=False)
    return figure


def _section(title: str, table: pd.DataFrame) -> str:
    shown = table.astype(object).where(table.notna(), "")
    return f"**{title}**\n\n{shown.to_markdown(index=False, floatfmt='.3f')}\n"


def _means(photos: pd.DataFrame, mosaics: pd.DataFrame) -> pd.DataFrame:
    scores = [column for column in photos if column not in ("model", "image", "map")]
    means = {score: photos.groupby("map", sort=False)[score].mean() for score in scores}
    return pd.DataFrame({**means, "energy": mosaics.groupby("map")["energy"].mean()}).loc[
        list(photos["map"].unique())
    ].reset_index()  # fmt: skip


def _sections() -> Iterator[str]:
    yield "<!-- Made by `python scripts/map_search.py table`. -->\n"
    table = ranking()
    photos = read("choose_photos")["image"].nunique()
    mosaics = read("choose_mosaics")["image"].str.split("#").str[0].nunique()
    yield _section(f"choose: {photos} photos, {mosaics} mosaics", table)
    named_front = table.set_index("map").loc[front(table)].reset_index()
    yield _section(
        "choose: energy against SRG, the Pareto front", named_front[["map", "passes", "energy", "srg"]]
    )
    if not all((HERE / f"confirm_{part}.csv").exists() for part in ("photos", "mosaics", "null")):
        return
    photos_of, mosaics_of = read("confirm_photos"), read("confirm_mosaics")
    for model in photos_of["model"].unique():
        here, there = (frame[frame["model"] == model] for frame in (photos_of, mosaics_of))
        count = there["image"].str.split("#").str[0].nunique()
        yield _section(
            f"confirm: {model}, {here['image'].nunique()} photos, {count} mosaics", _means(here, there)
        )
    found = verdicts()
    yield _section("confirm: the thresholds", found)
    winners = found.groupby("map", sort=False)["passed"].all()
    names = [str(name) for name in winners.index[winners]]
    yield f"Passes every threshold on every model: {', '.join(names) or 'none'}.\n"


def write_tables() -> list[Path]:
    """table.md and front.png."""
    text, picture = HERE / "table.md", HERE / "front.png"
    text.write_text("\n".join(_sections()))
    with mpl.rc_context({"font.size": 9}):
        front_figure(ranking()).savefig(picture, dpi=150, metadata={"Software": None})
    return [text, picture]
