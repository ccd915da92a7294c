"""The command line: parse, call, print. Torch is imported only by the commands that need it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli_data import data as data_commands
from camkit.cli_data import debug_option, labels_option, layout_option
from camkit.cli_report import compare, plot, report
from camkit.cli_runs import merge, submit, verify
from camkit.config import ABSENT, DEFAULT_BUDGET, DEFAULT_METRICS, RunConfig, read_config
from camkit.errors import CamkitError, UsageError

if TYPE_CHECKING:
    pass


class _Commands(click.Group):
    """Shows errors as one or two lines: exit code 2 for wrong usage, 1 for all else."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.meta.get("camkit.debug"):
                traceback.print_exc()
            click.echo(f"error: {_message(error)}", err=True)
            return ctx.exit(2 if isinstance(error, UsageError) else 1)


def _message(error: BaseException) -> str:
    """One or two lines for the user."""
    if isinstance(error, CamkitError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped. What is finished is kept: the same command goes on from there."
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {error}\n(--debug shows where)"


class BatchSize(click.IntRange):
    """A whole number from 1 up, or `auto`."""

    name = "batch size"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


def _split(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """`-x a,b -x c` -> (a, b, c), each once."""
    names = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


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


def _names(*flags: str, **settings: Any) -> Callable:
    """An option that takes several names: repeated, or in a comma list."""
    return click.option(*flags, multiple=True, callback=_split, metavar="NAME[,NAME…]", **settings)


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


def _plugin_option(command: Callable) -> Callable:
    return click.option(
        "--plugin",
        multiple=True,
        callback=_split,
        metavar="FILE",
        help="Python file that registers methods, metrics or models of your own (docs/extend.md).",
    )(command)


def _explanation_options(command: Callable) -> Callable:
    """What bench and explain have in common, in the order of the help text."""
    options: list[Callable] = [
        _names(
            "--method",
            default=["shapleycam"],
            show_default=True,
            help="CAM methods, or groups: paper (the ten), controls (the five), aumann, all.",
        ),
        click.option(
            "--weights",
            default="pretrained",
            show_default=True,
            metavar="pretrained|random|FILE",
            help="Weights: the published ones, seeded random ones, or a .pth, .pt or .safetensors file.",
        ),
        click.option(
            "--preprocess",
            type=click.Choice(["paper", "native"]),
            default="paper",
            show_default=True,
            help="paper: resize to 256, crop 224, bilinear; native: the weights' own transform.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda[:N]|mps",
            help="Where the network runs.",
        ),
        click.option(
            "--seed", default=0, show_default=True, help="Of the images' order and all that is random."
        ),
        _plugin_option,
        debug_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="camkit")
def main() -> None:
    """Benchmark class activation maps (CAMs): methods, models and scores over ImageNet.

    \b
    Example:
      camkit bench --model resnet50 --method shapleycam --data /data/imagenet/val
    """


@main.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=_use_config,
    metavar="FILE",
    help="TOML file with these options; those on the command line win.",
)
@_names("--model", required=True, help="Models (camkit list models), `all`, timm/NAME or torchvision/NAME.")
@_names("--layer", default=["conv"], show_default=True, help="Target layers: conv, prepool or MODULE.PATH.")
@_names("--utility", default=["rest"], show_default=True, help="rest, logit, softmax, log-softmax.")
@click.option(
    "--target",
    type=click.Choice(["predicted", "label", "correct"]),
    default="predicted",
    show_default=True,
    help="Class to explain; correct: the label, on images that the model gets right.",
)
@_names("--metrics", default=DEFAULT_METRICS, show_default=True, help="Groups of scores.")
@click.option("--steps", default=224, show_default=True, help="Steps of deletion and insertion.")
@click.option(
    "--data",
    metavar="PATH|sample",
    help="Folder of images, tar or parquet files.  [default: $CAMKIT_DATA, else the sample photos]",
)
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
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=lambda: min(8, (os.cpu_count() or 1) - 1),
    show_default="cores less one, at most 8",
    help="Processes that decode images; 0: none beside the main one.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Number format of the passes; derivatives stay float32.",
)
@click.option("--tf32", is_flag=True, help="Let float32 passes use TF32 on GPUs that have it (off else).")
@click.option("--deterministic", is_flag=True, help="Only operations that give the same bits in every run.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep decoded pixels there (7.6 GB for the validation set): later models and runs do not decode.",
)
@click.option("--dry-run", is_flag=True, help="Only say what the run would cost, from two probe batches.")
@click.option(
    "--exif",
    type=click.Choice(["ignore", "apply"]),
    default="ignore",
    show_default=True,
    help="Orientation that cameras write into photos; the paper ignores it.",
)
@click.option(
    "--on-error",
    type=click.Choice(["continue", "stop"]),
    default="continue",
    show_default=True,
    help="Whether an image that cannot be read ends the run. It is listed in errors.csv.",
)
@click.option(
    "--max-errors",
    callback=_share,
    metavar="SHARE",
    help="Share of such images, as 0.01 or 1%, above which the run ends.  [default: 1%, at least 3 images]",
)
@click.option(
    "--budget",
    type=click.IntRange(min=4),
    default=DEFAULT_BUDGET,
    show_default=True,
    help="Permutations from which Shapley values are estimated.",
)
@click.option(
    "--absent",
    type=click.Choice(ABSENT),
    default="zero",
    show_default=True,
    help="Activation of an absent position: of Shapley values and of aumann-N.",
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
@_explanation_options
def bench(config: Path | None, data: str | None, dry_run: bool, **options: Any) -> None:
    """Score CAM methods on models over a folder of images, and write CSV tables.

    Starting the same command again goes on where the last one stopped.

    \b
    Examples:
      camkit bench --model resnet50 --method shapleycam --data /data/imagenet/val
      camkit bench --model all --method paper,controls --layer conv,prepool --limit 1000
      camkit bench --config configs/conv_rest.toml --model swin_t
    """
    data = data or os.environ.get("CAMKIT_DATA") or "sample"
    run_config = RunConfig(data=data, **options)
    if dry_run:
        _show_estimate(run_config)
        return
    from camkit.benchmark import bench as run
    from camkit.prepare import cells_of
    from camkit.report.tables import terminal_table

    summary = run(run_config, say=_say)
    if summary is None:  # one of several processes: the first one shows the table
        return
    click.echo(terminal_table(cells_of(summary, run_config)))
    click.echo(f"\n{run_config.out / 'summary.csv'}: {len(summary)} cells; per-image scores beside it")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _show_estimate(config: RunConfig) -> None:
    from tabulate import tabulate

    from camkit.dryrun import dry_run

    estimate = dry_run(config, say=_say)
    click.echo(tabulate(estimate, headers="keys", tablefmt="simple", showindex=False))
    hours, rest = divmod(round(estimate["seconds"].sum()), 3600)
    click.echo(
        f"\n{estimate['cells'].sum()} cells, {estimate['passes'].sum()} passes of a batch, "
        f"{estimate['megabytes'].sum():.1f} MB, about {hours} h {rest // 60:02d} min {rest % 60:02d} s"
    )


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_names("--metrics", required=True, help="Groups of scores to add (camkit list metrics).")
@click.option(
    "--data", metavar="PATH|sample", help="The images of the run.  [default: $CAMKIT_DATA, else sample]"
)
@click.option("--weights", metavar="FILE", help="The weights file, where the run had one.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images in a pass."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where the network runs.",
)
@_plugin_option
@debug_option
def score(folder: Path, data: str | None, **options: Any) -> None:
    """Add scores to a results folder from its saved maps (bench --save-maps), without explaining again.

    Scores that explain changed images, as adcc does for coherency, need camkit bench.

    \b
    Example:
      camkit score results/imagenet --metrics deletion,insertion --data /data/imagenet/val
    """
    from camkit.report.tables import terminal_table
    from camkit.rescore import rescore

    data = data or os.environ.get("CAMKIT_DATA") or "sample"
    summary = rescore(folder, data=data, say=_say, **options)
    click.echo(terminal_table(summary))
    click.echo(f"\n{folder / 'summary.csv'}: {len(summary)} cells")


@main.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="NAME", help="One model (camkit list models).")
@click.option(
    "--layer", default="conv", show_default=True, help="Target layer: conv, prepool or MODULE.PATH."
)
@click.option("--utility", default="rest", show_default=True, help="rest, logit, softmax or log-softmax.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.png",
    help="The picture (.png, .pdf or .svg).",
)
@click.option("--scores", is_flag=True, help="ADCC and its parts below each map.")
@click.option(
    "--cmap",
    type=click.Choice(["inferno", "viridis", "jet"]),
    default="inferno",
    show_default=True,
    help="Colours of the maps; jet, the field's usual ones, draws edges that are not in a map.",
)
@_explanation_options
def explain(
    images: tuple[Path, ...],
    out: Path,
    scores: bool,
    cmap: str,
    model: str,
    layer: str,
    utility: str,
    **options: Any,
) -> None:
    """Draw photos beside the saliency maps of the chosen methods, with class and probability.

    IMAGE is a photo, a folder of photos, or `sample` for the sample photos.

    \b
    Example:
      camkit explain cat.jpg --model resnet50 --method gradcam,shapleycam -o cat.png
      camkit explain photos/ --model resnet50 --method paper --scores --cmap jet -o photos.pdf
    """
    from camkit.photos import explain_images
    from camkit.report.figures import saliency_figure, save_figure

    config = RunConfig(model=(model,), layer=(layer,), utility=(utility,), **options)
    rows = explain_images(images, config, say=_say, with_scores=scores)
    save_figure(saliency_figure(rows, cmap), out)
    click.echo(str(out))


@main.command("list")
@click.argument("what", type=click.Choice(["models", "methods", "metrics", "utilities"]))
@click.option(
    "--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
@_plugin_option
def list_command(what: str, style: str, plugin: tuple[str, ...]) -> None:
    """List what can be named: models, methods, metrics or utilities.

    \b
    Example:
      camkit list methods --format csv
    """
    from camkit.plugins import load_plugins
    from camkit.report.tables import listing

    load_plugins(plugin)
    frame = listing(what)
    if style == "csv":
        click.echo(frame.to_csv(index=False, lineterminator="\n"), nl=False)
    elif style == "json":
        click.echo(frame.to_json(orient="records", indent=2, force_ascii=False))
    else:
        from tabulate import tabulate

        click.echo(
            tabulate(frame.astype(object).fillna(""), headers="keys", tablefmt="simple", showindex=False)
        )


main.add_command(data_commands)
main.add_command(report)
main.add_command(compare)
main.add_command(plot)
main.add_command(merge)
main.add_command(submit)
main.add_command(verify)
