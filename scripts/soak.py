"""Kill a run of two models again and again, start it again, and compare with a run that was left alone.

    python scripts/soak.py --kills 200

Each run is killed (SIGKILL) a few times, then left to finish: at a random moment; in the middle of a write,
of which a random part reaches the disk; between writing a file and renaming it; or it meets a full disk (a
limit on the size of files), fails, and finds room at its next start. A kill costs the cell that is being
computed and the one that waits to be written. Prints what came of it and exits with 1 if a row was lost,
doubled or computed again, or a final file differs by a byte.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
from soak_run import make_images, result_files, run, table_rows

from camkit.errors import CamkitError
from camkit.results import arrays, files, table
from camkit.results.cells import CellScores, Result
from camkit.results.model_run import ModelRun

IMAGES = 14
KINDS = ("at a random moment", "within a write", "before a rename", "by a full disk")
WEIGHTS = (6, 1, 1, 1)
FULL_DISK = 3


def in_child(work: Callable[[], None], told: Path) -> int:
    """Fork, and work there. The parent must not have computed anything: OpenMP does not survive a fork.

    Args:
        told: where the traceback of an error goes.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        code = 0
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        told.write_text(traceback.format_exc(), errors="surrogateescape")
        if isinstance(error, CamkitError) and "File too large" in str(error):
            code = FULL_DISK
    finally:
        os._exit(code)


def killed(child: int, told: Path) -> bool:
    """Wait for a child; whether it was killed.

    Raises:
        RuntimeError: it failed in a way that it should not; with its traceback.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL, FULL_DISK):
        said = told.read_text(errors="surrogateescape") if told.exists() else "it left no traceback"
        raise RuntimeError(f"a run ended with {status}:\n{said}")
    return status != 0


def die_within_write(after: int, share: float) -> None:
    """Arrange for the process to die in its `after`-th write, of which only a share reaches the disk."""
    append, writes = files.append, iter(range(after))

    def torn(path: Path, data: bytes) -> None:
        if next(writes, None) is not None:
            append(path, data)
            return
        with path.open("ab") as file:
            file.write(data[: int(share * len(data))])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    for module in (files, table, arrays):  # each has its own name for it
        module.append = torn  # type: ignore[attr-defined]


def die_before_rename(after: int) -> None:
    """Arrange for the process to die when it would rename for the `after`-th time."""
    replace, renames = Path.replace, iter(range(after))

    def never(self: Path, target: Path) -> Path:
        if next(renames, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = never  # type: ignore[assignment,method-assign]


def log_computed(path: Path) -> None:
    """Arrange for every (table, image) that is computed to be noted before it is written."""
    write = ModelRun.write

    def noted(self: ModelRun, result: Result) -> None:
        if isinstance(result, CellScores):
            table = self.tables[result.cell].path.relative_to(self.config.out).as_posix()
            with path.open("a") as file:
                file.writelines(json.dumps([table, item.id]) + "\n" for item in result.items)
        write(self, result)

    ModelRun.write = noted  # type: ignore[method-assign]


def attempt(kind: str | None, dice: random.Random, data: Path, out: Path, log: Path, seconds: float) -> bool:
    """One start of the command; whether it was killed."""
    after, share, moment = dice.randrange(80), dice.random(), dice.uniform(0, seconds)
    # The limit on the size of files would hold for the workers' shared memory too.
    workers = 0 if kind == "by a full disk" else dice.randrange(2)

    def work() -> None:
        log_computed(log)
        if kind == "within a write":
            die_within_write(after, share)
        elif kind == "before a rename":
            die_before_rename(after % 24)
        elif kind == "by a full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * 3500), resource.RLIM_INFINITY))
        run(data, out, workers)

    told = log.with_name("traceback")
    child = in_child(work, told)
    if kind == "at a random moment":
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return killed(child, told)


@click.command()
@click.option(
    "--kills", default=200, show_default=True, help="How many at random moments; others come on top."
)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill a run many times, and compare what comes of it with a run that was left alone."""
    dice = random.Random(seed)
    counts: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    gc.freeze()  # so that the children's collections do not copy the parent's memory
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, reference, log = make_images(folder / "data", IMAGES), folder / "reference", folder / "log"
        told = folder / "traceback"
        killed(in_child(lambda: run(data, folder / "warm"), told), told)
        started = time.perf_counter()
        killed(in_child(lambda: run(data, reference), told), told)
        seconds = time.perf_counter() - started
        expected = result_files(reference)
        out = folder / "out"
        while tried[KINDS[0]] < kills:
            shutil.rmtree(out, ignore_errors=True)
            counts["runs"] += 1
            wanted = dice.choices(KINDS, WEIGHTS, k=dice.randint(1, 6))
            for kind in (*wanted, None):
                before = dict(table_rows(out))
                log.write_text("")
                if attempt(kind, dice, data, out, log, seconds):
                    tried[str(kind)] += 1
                after = dict(table_rows(out))
                counts["rows lost"] += sum(after.get(key) != row for key, row in before.items())
                computed = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
                counts["rows computed"] += len(computed)
                counts["rows computed again"] += sum(key in before for key in computed)
            found = [key for key, _ in table_rows(out)]
            counts["rows doubled"] += len(found) - len(set(found))
            left = result_files(out)
            counts["files compared"] += len(left)
            counts["files different"] += sum(left.get(k) != expected.get(k) for k in {**left, **expected})
    for kind in KINDS:
        click.echo(f"ended {kind:29} {tried[kind]:6}")
    wrong = ("rows computed again", "rows lost", "rows doubled", "files different")
    for what in ("runs", "rows computed", "files compared", *wrong):
        click.echo(f"{what:35} {counts[what]:6}")
    sys.exit(any(counts[what] for what in wrong))


if __name__ == "__main__":
    main()
