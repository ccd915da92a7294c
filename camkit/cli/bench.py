"""`camkit bench`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    FIELDS,
    Command,
    Option,
    config_option,
    config_options,
    debug_option,
    table_width,
)
from camkit.config import RunConfig
from camkit.console import say
from camkit.errors import CamkitError, UsageError


def read_config(path: Path, known: set[str]) -> Mapping[str, Any]:
    """Options from a TOML file, named as on the command line (`batch-size` or `batch_size`).

    Raises:
        UsageError: the file cannot be read, is no TOML, or names an option that is not in `known`.
    """
    try:
        options = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path}: {getattr(error, 'strerror', None) or 'cannot be read'}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from error
    options = {name.replace("-", "_"): value for name, value in options.items()}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise UsageError(
            f"--config {path}: unknown option {unknown[0]!r}. Options: {', '.join(sorted(known))}"
        )
    return options


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


@click.command(cls=Command)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_use_config,
    metavar="FILE",
    cls=Option,
    group="What to run",
    help="TOML file with these options; those on the command line win.",
)
@config_options(*(name for name in FIELDS if name != "out"))
@config_option("out", "-o")
@click.option(
    "--dry-run",
    is_flag=True,
    cls=Option,
    group="How it runs",
    help="Only say what is left of the run, and what it would cost.",
)
@debug_option
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
    from camkit.report.tables import terminal_table
    from camkit.runs.bench import bench as run
    from camkit.runs.cells import cells_of

    summary = run(run_config, say=say)
    if summary is None:  # one of several processes: the last to end shows the table
        return
    click.echo(terminal_table(cells_of(summary, run_config), table_width()))
    click.echo(f"\n{run_config.out / 'summary.csv'}: {len(summary)} cells; per-image scores beside it")


def _show_estimate(config: RunConfig) -> None:
    from tabulate import tabulate

    from camkit.runs.dryrun import dry_run

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
