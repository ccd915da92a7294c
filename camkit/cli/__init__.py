"""The command line: parse, call, print. Torch is imported only by the commands that need it.

Its options are made from the fields of camkit/config.py: an option of a run is added there, not here.
"""

from __future__ import annotations

import os
import traceback
from typing import Any

import click

from camkit import __version__
from camkit.cli.bench import bench
from camkit.cli.data import data
from camkit.cli.explain import explain, list_names
from camkit.cli.report import compare, grade, plot, report
from camkit.cli.runs import merge, score, submit, verify
from camkit.console import lenient_streams
from camkit.errors import CamkitError, UsageError
from camkit.runs.stop import stop_signals


class _Commands(click.Group):
    """Shows errors as one or two lines: exit code 2 for wrong usage, 1 for all else."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        with lenient_streams():  # also of the help, which click prints before anything is invoked
            return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            ctx.color = False
        try:
            with stop_signals(lambda line: None):  # SIGTERM, too, ends with a line
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="camkit")
def main() -> None:
    """Benchmark class activation maps (CAMs): methods, models and scores over ImageNet.

    \b
    Example:
      camkit bench --model resnet50 --method shapleycam --data /data/imagenet/val
    """


for command in (bench, score, explain, list_names, data, report, compare, grade, plot, merge, submit, verify):
    main.add_command(command)
