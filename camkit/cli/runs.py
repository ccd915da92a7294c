"""The commands around a run: score, merge, verify and submit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    batch_size_option,
    data_option,
    debug_option,
    device_option,
    labels_option,
    layout_option,
    names_option,
    plugin_option,
    say,
    workers_option,
)
from camkit.config import RunConfig
from camkit.errors import CamkitError, UsageError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@names_option("--metrics", required=True, help="Groups of scores to add (camkit list metrics).")
@data_option("The images of the run.")
@click.option("--weights", metavar="FILE", help="The weights file, where the run had one.")
@batch_size_option
@device_option
@plugin_option
@debug_option
def score(folder: Path, **options: Any) -> None:
    """Add scores to a results folder from its saved maps (bench --save-maps), without explaining again.

    Scores that explain changed images, as adcc does for coherency, need camkit bench.

    \b
    Example:
      camkit score results/imagenet --metrics deletion,insertion --data /data/imagenet/val
    """
    from camkit.report.tables import terminal_table
    from camkit.rescore import rescore

    summary = rescore(folder, say=say, **options)
    click.echo(terminal_table(summary))
    click.echo(f"\n{folder / 'summary.csv'}: {len(summary)} cells")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@debug_option
def merge(folder: Path) -> None:
    """Fold the parts of a run that several processes divided into its results folder DIR.

    The first of the processes does it at the end; after a crash it can be done, and repeated, by hand.

    \b
    Example:
      camkit merge results/imagenet
    """
    from camkit.merge import merge as fold_parts
    from camkit.report.tables import terminal_table

    summary = fold_parts(folder)
    click.echo(terminal_table(summary))
    click.echo(f"\n{folder / 'summary.csv'}: {len(summary)} cells")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@data_option("The images of the run.")
@layout_option
@labels_option
@click.option("--weights", default="pretrained", metavar="FILE", help="The weights, where they were a file.")
@device_option
@workers_option
@plugin_option
@debug_option
def verify(folder: Path, **options: Any) -> None:
    """Recompute 1 % of the images of a finished run, at least five, and compare every value.

    Values may differ by 1e-5, areas under curves by 1e-3; exit code 1 if one differs by more. The folder is
    only read.

    \b
    Example:
      camkit verify results/imagenet --data /data/imagenet/val
    """
    from tabulate import tabulate

    from camkit.verify import verify as recompute

    checks = recompute(folder, RunConfig(model=(), **options), say=say)
    click.echo(tabulate(checks, headers="keys", tablefmt="simple", showindex=False, floatfmt=".1e"))
    differing, values = checks["differing"].sum(), checks["values"].sum()
    if differing or not values:
        raise CamkitError(f"{differing} of {values} values differ from what was recomputed")
    click.echo(f"\nAll {values} values agree with what was recomputed.")


@click.command(
    context_settings={"ignore_unknown_options": True},
    options_metavar="[--local N] [--dry-run] [--slurm-NAME VALUE]… [OPTIONS OF BENCH]",
)
@click.option("--local", type=click.IntRange(min=1), metavar="N", help="Run the jobs here, N at a time.")
@click.option("--dry-run", is_flag=True, help="Only print the jobs.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="")
@debug_option
@click.pass_context
def submit(ctx: click.Context, local: int | None, dry_run: bool, words: tuple[str, ...]) -> None:
    """Run `camkit bench` over a cluster: a Slurm job array with one job a model.

    Any --slurm-NAME VALUE is a setting of the jobs (partition, account, time in minutes, gpus-per-node,
    cpus-per-task, mem, …). A job that reaches its time limit is queued again and goes on. Needs the extra
    `slurm`.

    \b
    Example:
      camkit submit --config configs/conv_rest.toml --slurm-partition gpu --slurm-gpus-per-node 1
    """
    from camkit import submit as jobs_of
    from camkit.plugins import load_plugins
    from camkit.prepare import find_models

    slurm, rest = jobs_of.split_words(words)
    # Parsed here, so that a wrong option is found now and not on the cluster.
    commands = ctx.find_root().command
    assert isinstance(commands, click.Group)
    options = commands.commands["bench"].make_context("camkit bench", list(rest), parent=ctx.parent).params
    load_plugins(options["plugin"])
    if options["force"]:
        raise UsageError("--force: each job would move the others' results aside; move the folder by hand")
    jobs = jobs_of.make_jobs(rest, find_models(options["model"]))
    if dry_run:
        for job in jobs:
            click.echo(str(job))
        where = f"{local} at a time on this machine" if local else "a Slurm array"
        settings = ", ".join(f"{name} {value}" for name, value in slurm.items())
        click.echo(f"\n{len(jobs)} jobs, {where}{f' ({settings})' if settings else ''}")
    elif local:
        jobs_of.run_here(jobs, local, options["out"], say)
    else:
        ids = jobs_of.submit(jobs, slurm, options["out"])
        click.echo(f"{len(ids)} jobs: {ids[0]} to {ids[-1]}; logs in {options['out'] / jobs_of.LOGS}")
