"""`camkit explain`, and `camkit list` of the names that it and the others take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    Command,
    Option,
    config_option,
    config_options,
    debug_option,
    format_option,
)
from camkit.config import MethodOptions, RunConfig
from camkit.console import say
from camkit.errors import PluginError, UsageError

GIF_STEPS, GIF_MAPS = 28, 24


def _single(name: str, **changes: Any) -> Callable:
    """The option of a field that takes one name here, not several."""
    return config_option(name, multiple=False, callback=None, metavar="NAME", **changes)


@click.command(cls=Command)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", type=click.Path(path_type=Path))
@_single("model", help="One model (camkit list models).")
@config_option("method")
@_single(
    "layer",
    default="conv",
    help="Target layer: conv, prepool, MODULE.PATH, layer3+layer4 (fused); all: the end of each stage.",
)
@_single("utility", default="rest")
@config_options("activation", "target", "weights", "preprocess", "size", "mean", "std", "plugin", "classes")
@click.option("--scores", is_flag=True, cls=Option, group="Scores", help="ADCC and its parts below each map.")
@config_options(*MethodOptions.names(), "seed", "device")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.png",
    cls=Option,
    group="Output",
    help="The picture (.png, .pdf or .svg).",
)
@click.option(
    "--gif",
    type=click.Path(path_type=Path),
    metavar="FILE.gif",
    cls=Option,
    group="Output",
    help=f"Also show deletion and insertion of each map, as a moving picture (at most {GIF_MAPS} maps).",
)
@click.option(
    "--cmap",
    type=click.Choice(["inferno", "viridis", "jet"]),
    default="inferno",
    show_default=True,
    cls=Option,
    group="Output",
    help="Colours of the maps; jet, the field's usual ones, draws edges that are not in a map.",
)
@debug_option
def explain(
    images: tuple[Path, ...],
    out: Path,
    scores: bool,
    gif: Path | None,
    cmap: str,
    model: str,
    layer: str,
    utility: str,
    **options: Any,
) -> None:
    """Draw photos beside the saliency maps of the chosen methods, with class and probability.

    IMAGE is a photo, a folder of photos, or `sample` for the sample photos. Where a plugin's method fails,
    the picture has all others, and the exit code is 1.

    \b
    Example:
      camkit explain cat.jpg --model resnet50 --method gradcam,shapleycam -o cat.png
      camkit explain photos/ --model resnet50 --method paper --scores --cmap jet -o photos.pdf
      camkit explain cat.jpg --model resnet50 --method shapleycam -o cat.png --gif cat.gif
    """
    from camkit.report.figures import saliency_figure, save_changes, save_figure
    from camkit.runs.photos import explain_images

    if gif is not None and gif.suffix.lower() != ".gif":
        raise UsageError(f"--gif {gif}: expected a name that ends in .gif")
    config = RunConfig(model=(model,), layer=(layer,), utility=(utility,), steps=GIF_STEPS, **options)
    metrics = ("adcc",) * scores + ("deletion", "insertion") * (gif is not None)
    rows, failures = explain_images(images, config, say, metrics, most=None if gif is None else GIF_MAPS)
    if failures and not any(row.saliency for row in rows):
        raise PluginError("\n".join(failures))
    save_figure(saliency_figure(rows, cmap, with_scores=scores), out)
    click.echo(str(out))
    if gif is not None:
        save_changes(rows, gif)
        click.echo(str(gif))
    if failures:
        raise PluginError("\n".join(failures))


@click.command("list", cls=Command)
@click.argument("what", type=click.Choice(["models", "methods", "metrics", "utilities", "layers"]))
@click.argument("model", required=False)
@format_option
@config_options("activation", "weights", "preprocess", "size", "plugin")
@debug_option
def list_names(what: str, style: str, model: str | None, plugin: tuple[str, ...], **options: Any) -> None:
    """List what can be named: models, methods, metrics, utilities, or the layers of a MODEL.

    Layers are those that can be explained, with the size of their maps; conv, prepool and the ends of stages
    (--layer all) are marked.

    Of the methods, csv and json also have formulas and sources (docs/methods.md explains them).

    \b
    Example:
      camkit list methods --format csv
      camkit list layers timm/vit_tiny_patch16_224 --weights random
    """
    if (what == "layers") != (model is not None):
        raise UsageError(
            "camkit list layers MODEL: name a model (camkit list models)"
            if what == "layers"
            else f"camkit list {what} takes no model"
        )
    from camkit.plugins import load_plugins

    load_plugins(plugin)
    if model is None:
        from camkit.report.tables import brief_listing, groups_of_methods, listing

        frame = listing(what)
    else:
        import pandas as pd

        from camkit.network.prepare import list_layers

        frame = pd.DataFrame(list_layers(model, RunConfig(model=(model,), **options), say))
    if style == "csv":
        click.echo(frame.to_csv(index=False, lineterminator="\n"), nl=False)
    elif style == "json":
        click.echo(frame.to_json(orient="records", indent=2, force_ascii=False))
    else:
        from tabulate import tabulate

        brief = brief_listing(what) if model is None else frame
        click.echo(tabulate(brief, headers="keys", tablefmt="simple", showindex=False))
        if what == "methods":
            click.echo(f"\n{groups_of_methods()}")
