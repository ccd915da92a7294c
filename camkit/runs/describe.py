"""What run.json says of a run: its protocol, and with what a segment of its rows was made."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import camkit
from camkit.config import MOSAIC, RunConfig, deciding_options
from camkit.data import DataSet
from camkit.errors import Say, UsageError
from camkit.network.prepare import Prepared, prepare
from camkit.results.cells import Cell
from camkit.results.folder import DEFINITIONS_VERSION, read_run
from camkit.results.segments import now


def describe_protocol(prepared: Prepared, cell: Cell, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """Everything that decides a number of a cell's folder."""
    loaded = prepared.loaded
    return {
        "model": loaded.row.name,
        "library_name": f"{loaded.row.library}/{loaded.row.entry}",
        "layer": cell.layer,
        "module": cell.path,
        "utility": cell.utility,
        **config.protocol,
        "transform": loaded.preprocess.describe(),
        "weights": loaded.weights.kind,
        "weights_tag": loaded.weights.tag,
        "weights_sha256": loaded.weights.sha256,
        "data_fingerprint": data.fingerprint,
        **({"regions": data.regions} if data.regions else {}),
        "class_list": data.classes.digest,
        "definitions": DEFINITIONS_VERSION,
    }


def describe_segment(prepared: Prepared, config: RunConfig, data: DataSet) -> dict[str, Any]:
    """With what, and when, some of the rows of a folder are made."""
    device = prepared.network.device
    cuda = device.type == "cuda"
    return {
        "command": config.command(),
        "started": now(),
        "data": data.name,
        "data_images": len(data.items),
        "layout": data.layout,
        "labels": data.labels,
        "classes": data.classes.title,
        "weights_file": prepared.loaded.weights.file,
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "driver": _driver() if cuda else None,
        "processor": None if cuda else processor(),
        "threads": torch.get_num_threads(),
        "compile": config.compile,
        "folded": prepared.is_folded,
        "plugins": {Path(file).name: _sha256(Path(file)) for file in config.plugin},
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda if cuda else None,
            "camkit": camkit.__version__,
            **{name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
        },
        "git": _git_commit(),
    }


def as_it_ran(folder: Path, config: RunConfig) -> RunConfig:
    """The settings with which a folder of cells was made, for what is to be made in the same way.

    Batch size and determinism are those of the last start.

    Args:
        config: gives what run.json does not know: where data and a weights' file are, on what to run.

    Raises:
        UsageError: there are no rows yet, the weights were a file and `config` names none, or one of the two
            is of mosaics.
        CamkitError: run.json cannot be read.
    """
    run = read_run(folder)
    if not run["segments"]:
        raise UsageError(f"{folder}: this run has not made a row yet")
    protocol, segment = run["protocol"], run["segments"][-1]
    if ("mosaic" in protocol) != config.of_mosaics:
        of, data = ("mosaics", f"{MOSAIC}PATH") if "mosaic" in protocol else ("photos", "PATH")
        raise UsageError(f"{folder}: this run is of {of}: --data {data}")
    weights = protocol["weights"] if config.weights == "pretrained" else config.weights
    if protocol["weights"] == "file" and config.weights == "pretrained":
        raise UsageError(
            f"{folder}: the weights were a file, {segment['weights_file']}: name it with --weights FILE"
        )
    return replace(
        config,
        model=(protocol["model"],),
        layer=(protocol["layer"],),
        utility=(protocol["utility"],),
        method=tuple(run["methods"]),
        metrics=tuple(run["metrics"]),
        weights=weights,
        batch_size=segment["batch_size"],
        deterministic=segment["deterministic"],
        **{
            one.name: protocol[one.metadata["decides"]]
            for one in deciding_options()
            if one.metadata["decides"] in protocol  # mosaics alone have theirs
        },
    )


def by_model(folders: Iterable[Path], config: RunConfig) -> list[dict[Path, RunConfig]]:
    """Folders of cells with their settings (:func:`as_it_ran`), grouped by the model that serves them."""
    groups: dict[tuple[Any, ...], dict[Path, RunConfig]] = {}
    for folder in folders:
        settings = as_it_ran(folder, config)
        key = (settings.model, settings.batch_size, settings.deterministic)
        groups.setdefault(key, {})[folder] = settings
    return list(groups.values())


def prepare_for(folders: Mapping[Path, RunConfig], data: DataSet, say: Say) -> Prepared:
    """The model of some folders of cells with all of their layers, see :func:`prepare`."""
    settings = list(folders.values())
    layers = dict.fromkeys(layer for one in settings for layer in one.layer)
    return prepare(settings[0].model[0], list(layers), data.items, settings[0], say)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@cache
def processor() -> str:
    """What the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def _driver() -> str | None:
    """The version of the NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout
        return output.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


@cache
def _git_commit() -> str | None:
    """The commit of the source tree that camkit runs from, with `-dirty` where files differ; None without."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
