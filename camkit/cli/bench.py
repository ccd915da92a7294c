"""`camkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    data_option,
    explanation_options,
    labels_option,
    layout_option,
    names_option,
    say,
    workers_option,
)
from camkit.config import CHOICES, DEFAULT_METRICS, RunConfig, read_config
from camkit.errors import CamkitError


class BatchSize(click.IntRange):
    """A whole number from 1 up, or `auto`."""

    name = "batch size"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


def _share(_: click.Context, __: click.Parameter, value: str | float | None) -> float | None:
    """`1%` or `0.01` -> 0.01."""
    if value is None:
        return None
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r}: expected a share, as 0.01 or 1%")
    return share


def _use_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        options = {p.name: p for p in ctx.command.params if p.name and p.name not in ("config", "debug")}
        found = read_config(path, set(options))
        ctx.default_map = {
            # An option that takes several names is also given one name, or a comma list.
            name: [value] if getattr(options[name], "multiple", False) and isinstance(value, str) else value
            for name, value in found.items()
        }
    return path


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_use_config,
    metavar="FILE",
    help="TOML file with these options; those on the command line win.",
)
@names_option(
    "--model", required=True, help="Models (camkit list models), `all`, timm/NAME or torchvision/NAME."
)
@names_option(
    "--layer", default=["conv"], show_default=True, help="Target layers: conv, prepool or MODULE.PATH."
)
@names_option("--utility", default=["rest"], show_default=True, help="rest, logit, softmax, log-softmax.")
@click.option(
    "--target",
    type=click.Choice(CHOICES["target"]),
    default="predicted",
    show_default=True,
    help="Class to explain; correct: the label, on images that the model gets right.",
)
@names_option("--metrics", default=DEFAULT_METRICS, show_default=True, help="Groups of scores.")
@click.option("--steps", default=224, show_default=True, help="Steps of deletion and insertion.")
@data_option("Folder of images, tar or parquet files.")
@layout_option
@labels_option
@click.option(
    "--limit", type=click.IntRange(min=1), help="The first N images of the seeded, spread-out order."
)
@click.option(
    "--batch-size",
    type=BatchSize(),
    default=32,
    show_default=True,
    metavar="N|auto",
    help="Images in a pass; auto: halved until it fits into memory.",
)
@workers_option
@click.option(
    "--dtype",
    type=click.Choice(CHOICES["dtype"]),
    default="float32",
    show_default=True,
    help="Number format of the passes; derivatives stay float32.",
)
@click.option("--tf32", is_flag=True, help="Let float32 passes use TF32 on GPUs that have it (off else).")
@click.option("--deterministic", is_flag=True, help="Only operations that give the same bits in every run.")
@click.option(
    "--compile", is_flag=True, help="torch.compile for the scoring passes; wants a C++ compiler or Triton."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep decoded pixels there (7.6 GB for the validation set): later models and runs do not decode.",
)
@click.option("--dry-run", is_flag=True, help="Only say what is left of the run, and what it would cost.")
@click.option(
    "--exif",
    type=click.Choice(CHOICES["exif"]),
    default="ignore",
    show_default=True,
    help="Orientation that cameras write into photos; the paper ignores it.",
)
@click.option(
    "--on-error",
    type=click.Choice(CHOICES["on_error"]),
    default="continue",
    show_default=True,
    help="Whether an image that cannot be read ends the run. It is listed in errors.csv.",
)
@click.option(
    "--max-errors",
    callback=_share,
    metavar="SHARE",
    help="Share of such images, as 0.01 or 1%, above which a model ends.  [default: 1%, at least 3 images]",
)
@click.option("--save-maps", is_flag=True, help="Also write the signed maps, an .npz beside each CSV.")
@click.option("--curves", is_flag=True, help="Keep every point of the deletion and insertion curves, not 29.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/local"),
    show_default=True,
    help="Results folder.",
)
@click.option("--force", is_flag=True, help="Start afresh: move what is in --out to OUT.<time> first.")
@explanation_options
def bench(config: Path | None, dry_run: bool, **options: Any) -> None:
    """Score CAM methods on models over a folder of images, and write CSV tables.

    Starting the same command again goes on where the last one stopped.

    \b
    Examples:
      camkit bench --model resnet50 --method shapleycam --data /data/imagenet/val
      camkit bench --model all --method paper,controls --layer conv,prepool --limit 1000
      camkit bench --config configs/conv_rest.toml --model swin_t
    """
    run_config = RunConfig(**options)
    if dry_run:
        _show_estimate(run_config)
        return
    from camkit.benchmark import bench as run
    from camkit.prepare import cells_of
    from camkit.report.tables import terminal_table

    summary = run(run_config, say=say)
    if summary is None:  # one of several processes: the first one shows the table
        return
    click.echo(terminal_table(cells_of(summary, run_config)))
    click.echo(f"\n{run_config.out / 'summary.csv'}: {len(summary)} cells; per-image scores beside it")


def _show_estimate(config: RunConfig) -> None:
    from tabulate import tabulate

    from camkit.dryrun import dry_run

    estimate, failed = dry_run(config, say=say)
    if len(estimate):
        if not estimate["head_passes"].any():
            estimate = estimate.drop(columns="head_passes")
        click.echo(tabulate(estimate, headers="keys", tablefmt="simple", showindex=False))
        hours, rest = divmod(round(estimate["seconds"].sum()), 3600)
        click.echo(
            f"\n{estimate['cells'].sum()} cells, {estimate['passes'].sum()} passes of a batch, "
            f"{estimate['megabytes'].sum():.1f} MB, about {hours} h {rest // 60:02d} min {rest % 60:02d} s"
        )
    if failed:
        models = len(failed) + len(estimate)
        raise CamkitError(f"{len(failed)} of {models} models failed, as said above: {', '.join(failed)}")
