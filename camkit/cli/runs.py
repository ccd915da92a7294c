"""The commands around a run: score, merge, verify and submit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from camkit.cli.options import (
    Command,
    Option,
    batch_size_option,
    config_option,
    config_options,
    data_of_run,
    debug_option,
    table_width,
    weights_of_run,
)
from camkit.config import RunConfig, deciding_options
from camkit.console import say
from camkit.errors import CamkitError, UsageError

# What the runs of a folder know, and what has to be said again where maps come from elsewhere.
OF_MAPS = (*(one.name for one in deciding_options()), "limit")


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@config_option(
    "metrics",
    required=False,
    default=None,
    show_default=False,
    help="Groups of scores to add (camkit list metrics).  [default with --maps: those without adcc]",
)
@click.option(
    "--maps",
    type=click.Path(path_type=Path),
    metavar="PATH",
    cls=Option,
    group="What to run",
    help="Score maps that another program made: a folder or file of .npy, .npz, .png or .tif (docs/own.md).",
)
@click.option(
    "--name", metavar="NAME", cls=Option, group="What to run", help="Of the method that made --maps."
)
@config_option(
    "model", required=False, multiple=False, callback=None, metavar="NAME", help="The model of --maps."
)
@config_options(*OF_MAPS)
@data_of_run
@weights_of_run
@batch_size_option
@config_options("device", "plugin")
@debug_option
@click.pass_context
def score(
    ctx: click.Context, folder: Path, maps: Path | None, name: str | None, model: str | None, **options: Any
) -> None:
    """Add scores to a results folder DIR from maps that are there, without explaining again.

    The maps are those that bench --save-maps kept or, with --maps, those of another program: a method NAME
    beside camkit's own. All that decided the folder's numbers, as --target, is then said again, as to bench.
    Scores that explain again, as adcc and null do, need camkit bench.

    \b
    Example:
      camkit score results/imagenet --metrics deletion,insertion --data /data/imagenet/val
      camkit score results/imagenet --maps mine/ --name mine --model resnet50 --data /data/imagenet/val
    """
    from camkit.report.tables import terminal_table

    if maps is not None:
        if not model or not name:
            raise UsageError("--maps needs --model NAME, whose classes the maps explain, and --name NAME")
        from camkit.runs.elsewhere import METRICS_OF_MAPS, score_maps

        options["metrics"] = options["metrics"] or METRICS_OF_MAPS
        summary = score_maps(maps, name, RunConfig(model=(model,), out=folder, **options), say)
    else:
        from camkit.runs.rescore import rescore

        here = click.core.ParameterSource.COMMANDLINE
        given = [one for one in OF_MAPS if ctx.get_parameter_source(one) == here]
        if given or name or model:
            wrong = f"--{given[0]}" if given else "--name" if name else "--model"
            raise UsageError(f"{wrong} goes with --maps; without it the folder's runs say so")
        if not options["metrics"]:
            raise UsageError("--metrics NAME[,NAME…]: which scores are to be added? (camkit list metrics)")
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        options = {one: value for one, value in options.items() if one not in OF_MAPS}
        summary = rescore(RunConfig(model=(), out=folder, **options), say)
    click.echo(terminal_table(summary, table_width()))
    click.echo(f"\n{folder / 'summary.csv'}: {len(summary)} cells")


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@config_option("plugin")
@debug_option
def merge(folder: Path, plugin: tuple[str, ...]) -> None:
    """Fold the parts of a run that several processes divided into its results folder DIR.

    Each process folds its own part at its end. After a crash this can be done, and repeated, by hand.

    \b
    Example:
      camkit merge results/imagenet
    """
    from camkit.plugins import load_plugins
    from camkit.report.tables import terminal_table
    from camkit.results.merge import merge as fold_parts

    load_plugins(plugin)
    summary = fold_parts(folder)
    if summary.empty:
        raise UsageError(f"{folder}: no results there")
    click.echo(terminal_table(summary, table_width()))
    click.echo(f"\n{folder / 'summary.csv'}: {len(summary)} cells")


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@data_of_run
@weights_of_run
@config_option("seed", help="Which images are picked.")
@config_option(
    "batch_size",
    type=click.IntRange(min=1),
    metavar="N",
    default=None,
    show_default="as in the run",
    help="Images per pass.",
)
@config_options("device", "workers", "plugin")
@debug_option
def verify(folder: Path, seed: int, batch_size: int | None, **options: Any) -> None:
    """Recompute 1 % of the images of every cell of a finished run, at least five, and compare every value.

    Values may differ by 1e-5, above 1 relatively, and by 0.001 in a tenth of a cell's images, or in one;
    those of a run with TF32 or float16 by 0.01, with bfloat16 by 0.05. Scores that jump (increase, from 0 to
    1; areas under curves and single deletion, with the order of nearly equal pixels) may differ by 0.001, and
    by more in a tenth of a cell's images, or in one. Exit code 1 where one differs by more, or cannot be
    compared. The folder is only read.

    \b
    Example:
      camkit verify results/imagenet --data /data/imagenet/val
    """
    from tabulate import tabulate

    from camkit.runs.verify import faults
    from camkit.runs.verify import verify as recompute

    checks = recompute(folder, RunConfig(model=(), **options), say, seed=seed, batch_size=batch_size)
    click.echo(tabulate(checks, headers="keys", tablefmt="simple", showindex=False, floatfmt=".1e"))
    if wrong := faults(checks):
        raise CamkitError("\n".join(wrong))
    click.echo(f"\nAll {checks['values'].sum()} values agree with what was recomputed.")


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    options_metavar="--model NAME[,NAME…] [--local N] [--dry-run] [--slurm-NAME VALUE]… [OPTIONS OF BENCH]",
)
@config_option("model", required=False, help="Models, one job each; all else goes to camkit bench.")
@click.option(
    "--local",
    type=click.IntRange(min=1),
    metavar="N",
    cls=Option,
    group="How it runs",
    help="Run the jobs here, N at a time.",
)
@click.option("--dry-run", is_flag=True, cls=Option, group="How it runs", help="Only print the jobs.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="")
@debug_option
@click.pass_context
def submit(
    ctx: click.Context, model: tuple[str, ...], local: int | None, dry_run: bool, words: tuple[str, ...]
) -> None:
    """Run `camkit bench` over a cluster: a Slurm job array with one job per model.

    Any --slurm-NAME VALUE is a setting of the jobs: partition, account, time, gpus-per-node, cpus-per-task,
    mem and whatever sbatch has. --slurm-time is in minutes, H:M:S or D-H:M:S, 240 minutes unless given; a job
    that reaches it is queued again, 100 times at most, and goes on. Slurm needs the extra `slurm`.

    \b
    Example:
      camkit submit --config configs/conv_rest.toml --slurm-partition gpu --slurm-gpus-per-node 1
    """
    from camkit.plugins import load_plugins
    from camkit.runs import submit as jobs_of
    from camkit.runs.cells import find_models
    from camkit.runs.selection import check_names

    slurm, rest = jobs_of.split_words(words)
    if local and slurm:
        raise UsageError("--slurm-… settings mean nothing to jobs on this machine: leave them or --local out")
    settings = jobs_of.slurm_settings(slurm)
    # Parsed here, so that a wrong option is found now and not on the cluster.
    commands = ctx.find_root().command
    assert isinstance(commands, click.Group)
    named = [f"--model={','.join(model)}"] if model else []
    options = (
        commands.commands["bench"].make_context("camkit bench", [*named, *rest], parent=ctx.parent).params
    )
    load_plugins(options["plugin"])
    check_names(options["method"], options["utility"], options["metrics"])
    if options["force"]:
        raise UsageError("--force: each job would move the others' results aside; move the folder by hand")
    jobs = [jobs_of.Job(("bench", *rest, "--model", name)) for name in find_models(options["model"])]
    if dry_run:
        for job in jobs:
            click.echo(str(job))
        where = f"{local} at a time on this machine" if local else f"a Slurm array ({_shown(settings)})"
        click.echo(f"\n{len(jobs)} jobs, {where}")
    elif local:
        # A device that was named is the choice of whoever named it.
        gpus = jobs_of.visible_gpus() if options["device"] in ("auto", "cuda") else []
        jobs_of.run_here(jobs, local, options["out"], gpus, say)
    else:
        ids = jobs_of.submit(jobs, settings, options["out"])
        click.echo(f"{len(ids)} jobs: {ids[0]} to {ids[-1]}; logs in {options['out'] / jobs_of.LOGS}")


def _shown(settings: Mapping[str, Any]) -> str:
    """Settings of Slurm in one line."""
    flat = {**settings, **settings["additional_parameters"]}
    del flat["additional_parameters"]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in flat.items())
