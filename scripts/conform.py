"""Who computes what: maps and scores of one name by camkit and by other packages; writes results/conform/.

    make conform
    python scripts/conform.py --only maps --model tf_efficientnet_lite0 --method gradcam++

What is measured takes the place of its earlier rows; the page is made of all that is there.

All see the same images, weights and layer, and the predicted class under the logit. Maps are compared after
one post-processing (ReLU, min-max, bilinear resize to the image, min-max). The packages are those of
`pip install -e '.[demo,conform]'`; one that is not installed is left out, and said.
"""

from __future__ import annotations

import gc
import os
import platform
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from conform_checks import CHECKS, LITE, VIT, Score, scores, traces
from conform_maps import COSTLY, PEERS, PREFIXES, VARIANTS, difference, saliency_of, trace_of
from tabulate import tabulate
from torch import Tensor

from camkit.api import Prepared, load_model
from camkit.data.items import sample_items
from camkit.data.sources import parts_of
from camkit.errors import CamkitError
from camkit.network.trace import Trace
from camkit.runs.describe import processor

HERE = Path(__file__).parent
WEIGHTS = {LITE: "pretrained", VIT: "random"}
# Layers of all methods, and of those that take a pass per channel: 1280 channels would take an hour.
LAYERS = {LITE: ("conv", "prepool"), VIT: ("conv",)}
COSTLY_LAYERS = {LITE: ("blocks[4]",), VIT: ("conv",)}
PACKAGES = ("camkit", "grad-cam", "torchcam", "captum", "quantus", "xplique", "torch", "timm", "numpy")
ABSENT = {"xplique": " (2.0.2 asks for TensorFlow ≤ 2.20, torch ≤ 2.10 and SciPy ≤ 1.15.3)"}
SAME = 0.005  # maps that differ by no more are the same: resizing by another library leaves this much
APART = 0.001  # average drops that differ by less are in no order
MAP_COLUMNS = [
    "model", "layer", "method", "package", "class", "images", "largest", "median", "left", "camkit_drop",
    "drop", "said",
]  # fmt: skip

Facts = dict[tuple[str, str], dict[str, str]]  # by method and package, see conform_facts.toml


def photos(model: Prepared, limit: int) -> Tensor:
    preprocess = model.loaded.preprocess
    crops = [
        preprocess.pixels(photo.read_bytes())
        for item in sample_items()[:limit]
        for photo in parts_of(item.source)
    ]
    return preprocess.normalise(torch.stack(crops))


def compared(
    name: str,
    model: Prepared,
    images: Tensor,
    methods: Sequence[str],
    costly: int,
    facts: dict[tuple[str, str], Any],
) -> Iterator[dict[str, Any]]:
    """A row per layer, method and package."""
    for of_costly, layers in ((False, LAYERS[name]), (True, COSTLY_LAYERS[name])):
        chosen = [one for one in methods if (one in COSTLY) == of_costly]
        for layer in layers if chosen else ():
            trace = trace_of(model, images[:costly] if of_costly else images, layer, "logit")
            for method in chosen:
                click.echo(f"{name} {layer} {method}", err=True)
                ours = saliency_of(method, trace)
                for package, explainer in PEERS[method].items():
                    row = dict(zip(MAP_COLUMNS, (name, layer, method, package, explainer), strict=False))
                    yield _row(row, trace, ours, facts.get((method, package), {}))


def _row(row: dict[str, Any], trace: Trace, ours: Tensor | str, fact: dict[str, str]) -> dict[str, Any]:
    row |= {"images": len(trace.images)}
    if isinstance(ours, str):
        return row | {"said": f"camkit: {ours}"}
    try:
        theirs = saliency_of(f"{PREFIXES[row['package']]}:{row['class']}", trace)
    except CamkitError as error:
        theirs = str(error)
    if isinstance(theirs, str):
        return row | {"said": theirs}
    apart = difference(ours, theirs)
    row |= {"largest": apart.max().item(), "median": apart.median().item()}
    if "variant" in fact:
        variant = VARIANTS[fact["variant"]](trace, row["method"], theirs)
        row["left"] = difference(variant, theirs).max().item()
    gc.collect()  # the packages leave graphs in circles
    return row | {"camkit_drop": _drop(trace, ours), "drop": _drop(trace, theirs)}


def _drop(trace: Trace, saliency: Tensor) -> float:
    """Mean average drop, max(0, p0 - p1) / p0."""
    before = trace.network.probability(trace.logits, trace.target)
    after = trace.network.score(trace.images * saliency[:, None], trace.target)
    return ((before - after).clamp(min=0) / before).mean().item()


def rankings(maps: pd.DataFrame) -> pd.DataFrame:
    """Per model, layer and package: pairs of methods that the other's maps rank the other way round."""
    rows = []
    measured = maps[maps["drop"].notna()]
    for (model, layer, package), some in measured.groupby(["model", "layer", "package"], sort=False):
        pairs = list(combinations(zip(some["method"], some["camkit_drop"], some["drop"], strict=True), 2))
        turned = [
            f"{first}/{second}"
            for (first, *a), (second, *b) in pairs
            if (a[0] - b[0]) * (a[1] - b[1]) < 0 and min(abs(a[0] - b[0]), abs(a[1] - b[1])) > APART
        ]
        if pairs:
            rows.append((model, layer, package, len(some), len(turned), len(pairs), ", ".join(turned)))
    return pd.DataFrame(rows, columns=["model", "layer", "package", "methods", "turned", "pairs", "which"])


def _number(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def page(maps: pd.DataFrame, scored: pd.DataFrame, claims: pd.DataFrame, facts: Facts) -> str:
    """The Markdown page."""
    cells = []
    for row in maps.itertuples():
        name = (row.model, row.layer, row.method, row.package, row.images)
        if not pd.isna(row.said):
            cells.append((*name, "", "", "", row.said))
            continue
        fact = facts.get((row.method, row.package), {}) if row.largest > SAME else {}
        said = f"{fact.get('paper', '')} {fact.get('found', '')}".strip()
        left = "" if pd.isna(row.left) or not fact else f"{row.left:.3f}"
        cells.append((*name, f"{row.largest:.3f}", f"{row.median:.3f}", left, said))
    heading = ("model", "layer", "method", "package", "images", "largest", "median", "left", "paper; found")
    absent = ", ".join(name for name in PEERS if name not in set(maps["method"]))
    missing = [f"\nNot measured here: {absent}."] if absent else []
    turned = [tuple(row) for row in rankings(maps).itertuples(index=False)]
    values = [
        (one.name, one.package, one.theirs_is, one.images, f"{one.ours:.4f}", f"{one.theirs:.4f}", one.found)
        for one in scored.itertuples(index=False)
    ]
    checks = [tuple(row)[1:] for row in claims.itertuples(index=False)]
    lines = [
        "# Who computes what\n",
        "Made by `make conform`. Maps of one name by camkit and by another package, on the sample photos, "
        "of the predicted class under the logit: Lite0 with ImageNet's weights, the ViT with seeded random "
        "ones. Both sides get ReLU, min-max, a bilinear resize to the image, min-max. *Largest* and "
        f"*median*: of the images' largest |S − S′|, in [0, 1]; up to {SAME} is what another library's "
        "resize leaves. *Left*: the largest difference when camkit's map is made by the formula that was "
        "found. `maps.csv`, `scores.csv` and `claims.csv` hold the numbers.\n",
        "## Maps\n", _table(cells, heading), *missing,
        "\n## Rankings\n",
        "Pairs of methods that average drop ranks the other way round on the other package's maps, where "
        f"both sides differ by more than {APART}.\n",
        _table(turned, ("model", "layer", "package", "methods", "turned", "of", "which")),
        "\n## Scores\n",
        "Means over the sample photos, GradCAM of the probability on Lite0 at `prepool`, N = 8 steps. "
        "torchcam's maps are its own, the other packages are given camkit's. Occlusion with captum's and "
        "ROAD with grad-cam's are compared in the tests: both do just what one tells them.\n",
        _table(values, ("score", "package", "its name", "images", "camkit", "it", "found")),
        "\n## What was heard\n", _table(checks, ("claim", "paper", "images", "measured", "verdict")),
        "\n## Versions and machine\n", _machine(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[tuple], heading: Sequence[str]) -> str:
    safe = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return tabulate(safe, heading, tablefmt="github", disable_numparse=True)


def _machine() -> str:
    load = os.getloadavg()[0]
    found = [
        f"- {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"- load (one minute) at the end: {load:.2f}",
        f"- {platform.system()} {platform.release()}, Python {platform.python_version()}",
    ]
    for package in PACKAGES:
        try:
            found.append(f"- {package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"- {package}: not installed, so not compared{ABSENT.get(package, '')}")
    return "\n".join(found)


def put(path: Path, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A CSV with these rows in the place of the earlier ones that have the same keys."""
    if path.exists():
        old = pd.read_csv(path)
        new = set(rows[keys].itertuples(index=False, name=None))
        kept = [row not in new for row in old[keys].itertuples(index=False, name=None)]
        rows = pd.concat([frame for frame in (old[kept], rows) if len(frame)])
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False, float_format="%.5g", lineterminator="\n")
    return pd.read_csv(path)


SECTIONS = ("maps", "scores", "claims")
KEYS = {"maps": ["model", "layer", "method", "package"], "scores": ["name", "package"], "claims": ["id"]}
COLUMNS = {
    "maps": MAP_COLUMNS,
    "scores": [field.name for field in fields(Score)],
    "claims": ["id", "claim", "paper", "images", "measured", "verdict"],
}


@click.command()
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="Sections.  [default: all]")
@click.option("--model", type=click.Choice([LITE, VIT]), multiple=True, help="Of maps.  [default: both]")
@click.option("--method", default=",".join(PEERS), help="Of maps.  [default: all that two have]")
@click.option("--limit", default=6, show_default=True, type=click.IntRange(1, 6), help="Sample photos.")
@click.option("--costly", default=1, show_default=True, type=click.IntRange(1, 6), help="Of these methods.")
@click.option("--out", default=Path("results/conform"), show_default=True, type=click.Path(path_type=Path))
def main(
    only: tuple[str, ...], model: tuple[str, ...], method: str, limit: int, costly: int, out: Path
) -> None:
    """Set camkit's maps and scores beside those of other packages."""
    warnings.simplefilter("ignore")
    known = tomllib.loads((HERE / "conform_facts.toml").read_text(encoding="utf-8"))
    facts = {(one["method"], one["package"]): one for one in known["map"]}
    chosen = list(model or WEIGHTS) if only == ("maps",) else list(WEIGHTS)
    models = {name: load_model(name, weights=WEIGHTS[name]) for name in chosen}
    images = {name: photos(one, limit) for name, one in models.items()}
    found: dict[str, list[Any]] = {section: [] for section in SECTIONS}
    for section in only or SECTIONS:
        if section == "maps":
            for name in model or WEIGHTS:
                methods = method.split(",")
                found[section] += compared(name, models[name], images[name], methods, costly, facts)
        elif section == "scores":
            found[section] = list(
                scores(trace_of(models[LITE], photos(models[LITE], 6), "prepool", "softmax"))
            )
        else:
            given = traces(models[LITE], models[VIT], images[LITE], images[VIT])
            found[section] = [measured(one, given) for one in known["suspected"]]
    tables = {
        section: put(out / f"{section}.csv", pd.DataFrame(rows, columns=COLUMNS[section]), KEYS[section])
        for section, rows in found.items()
    }
    text = page(tables["maps"], tables["scores"], tables["claims"], facts)
    (out / "README.md").write_text(text, encoding="utf-8")


def measured(one: dict[str, str], given: Sequence[Trace]) -> tuple[object, ...]:
    """A row of claims.csv."""
    click.echo(one["id"], err=True)
    numbers = {key: _number(value) for key, value in CHECKS[one["id"]](*given).items()}
    said = one["found"].format(**numbers)
    return one["id"], one["claim"], one["paper"], len(given[0].images), said, one["verdict"]


if __name__ == "__main__":
    main()
