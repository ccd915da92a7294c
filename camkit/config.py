"""RunConfig: everything that decides a run, from options and a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from camkit.errors import UsageError

DEFAULT_METRICS = ("adcc", "deletion", "insertion")


@dataclass(frozen=True)
class RunConfig:
    """One run of `camkit bench`. Names are those of the command line's options.

    Attributes:
        model, method, layer, utility: names; their product is the run's cells.
        target: `predicted`, `label` or `correct`.
        metrics: groups of scores.
        steps: N of deletion and insertion.
        data: a folder, or `sample`.
        limit: the first N images in the seeded order; None: all.
        weights: `pretrained`, `random` or a file.
        preprocess: `paper` or `native`.
        batch_size: images in a pass.
        workers: processes that decode images.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        seed: of the order of images, random methods and random weights.
        save_maps: write the signed maps beside each per-image CSV.
        out: results folder.
        force: move the results that are there aside first.
    """

    model: tuple[str, ...]
    method: tuple[str, ...] = ("shapleycam",)
    layer: tuple[str, ...] = ("conv",)
    utility: tuple[str, ...] = ("rest",)
    target: str = "predicted"
    metrics: tuple[str, ...] = DEFAULT_METRICS
    steps: int = 224
    data: str = "sample"
    limit: int | None = None
    weights: str = "pretrained"
    preprocess: str = "paper"
    batch_size: int = 32
    workers: int = 0
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0
    save_maps: bool = False
    out: Path = Path("results/local")
    force: bool = False

    def command(self) -> str:
        """The command line that makes this run; of paths only the last part."""
        words = ["camkit bench"]
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            option = "--" + item.name.replace("_", "-")
            if item.name in ("data", "weights", "out"):
                value = (
                    Path(value).expanduser().resolve().name
                    if value not in ("pretrained", "random")
                    else value
                )
            if isinstance(value, tuple):
                value = ",".join(value)
            words.append(option if value is True else f"{option} {value}")
        return " ".join(words)


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
