"""RunConfig: everything that decides a run, from options and a TOML file."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from camkit.errors import UsageError

DEFAULT_METRICS = ("adcc", "deletion", "insertion")
DEFAULT_BUDGET = 128  # permutations
# Option -> what it can be.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "target": ("predicted", "label", "correct"),
    "preprocess": ("paper", "native"),
    "exif": ("ignore", "apply"),
    "dtype": ("float32", "bfloat16", "float16"),
    "absent": ("zero", "mean", "blur"),
    "on_error": ("continue", "stop"),
}
# Option -> the least that it can be.
LEAST: Mapping[str, int] = {"limit": 1, "batch_size": 1, "workers": 0, "budget": 4}


def check_options(options: Mapping[str, Any]) -> None:
    """What the command line's own options check, for options that come another way.

    Raises:
        UsageError: one of :data:`CHOICES` is something else, or one of :data:`LEAST` is less.
    """
    for name, value in options.items():
        option = f"--{name.replace('_', '-')} {value}"
        if name in CHOICES and value not in CHOICES[name]:
            raise UsageError(f"{option}: expected one of {', '.join(CHOICES[name])}")
        if name in LEAST and isinstance(value, int) and value < LEAST[name]:
            raise UsageError(f"{option}: expected {LEAST[name]} or more")


@dataclass(frozen=True)
class RunConfig:
    """One run of `camkit bench`. Names are those of the command line's options.

    Attributes:
        model, method, layer, utility: names; their product is the run's cells.
        target: `predicted`, `label` or `correct`.
        metrics: groups of scores.
        steps: N of deletion and insertion.
        data: a folder or an archive, or `sample`.
        layout: how the data lie; None: found by looking.
        labels: CSV file `image,label` that stands above the data's own labels.
        limit: the first N images in the seeded order; None: all.
        weights: `pretrained`, `random` or a file.
        preprocess: `paper` or `native`.
        exif: `ignore` the orientation that cameras write, as the paper does, or `apply` it.
        batch_size: images in a pass, or `auto`: halved until a pass fits into the device's memory.
        workers: processes that decode images.
        cache: folder that keeps decoded pixels.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        tf32: let float32 matrix products and convolutions use TF32 on GPUs that have it.
        deterministic: only operations that give the same bits in every run, where torch has them.
        compile: run scoring passes as code that torch.compile makes; passes that explain stay as they are.
        budget: permutations from which a Shapley value is estimated.
        absent: activation of an absent position: `zero`, `mean` or `blur`.
        seed: of the order of images, random methods and random weights.
        on_error: `continue` past images that cannot be read, or `stop` at the first.
        max_errors: share of such images above which a model stops; None: 1 %, at least three. Of several
            processes each compares its own faults with its own share of the images.
        plugin: files that register methods, metrics or models of one's own.
        save_maps: write the signed maps beside each per-image CSV.
        curves: keep deletion and insertion curves whole, not thinned.
        out: results folder.
        force: move the results that are there aside first.

    Raises:
        UsageError: an option has a value that it cannot have.
    """

    model: tuple[str, ...]
    method: tuple[str, ...] = ("shapleycam",)
    layer: tuple[str, ...] = ("conv",)
    utility: tuple[str, ...] = ("rest",)
    target: str = "predicted"
    metrics: tuple[str, ...] = DEFAULT_METRICS
    steps: int = 224
    data: str = "sample"
    layout: str | None = None
    labels: Path | None = None
    limit: int | None = None
    weights: str = "pretrained"
    preprocess: str = "paper"
    exif: str = "ignore"
    batch_size: int | Literal["auto"] = 32
    workers: int = 0
    cache: Path | None = None
    device: str = "auto"
    dtype: str = "float32"
    tf32: bool = False
    deterministic: bool = False
    compile: bool = False
    budget: int = DEFAULT_BUDGET
    absent: str = "zero"
    seed: int = 0
    on_error: str = "continue"
    max_errors: float | None = None
    plugin: tuple[str, ...] = ()
    save_maps: bool = False
    curves: bool = False
    out: Path = Path("results/local")
    force: bool = False

    def __post_init__(self) -> None:
        check_options(vars(self))

    def command(self) -> str:
        """The command line that makes this run; of paths only the last part."""
        words = ["camkit", "bench"]
        for item in fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            option = "--" + item.name.replace("_", "-")
            if item.name in ("data", "labels", "weights", "out", "cache"):
                value = (
                    Path(value).expanduser().resolve().name
                    if value not in ("pretrained", "random")
                    else value
                )
            if item.name == "plugin":
                value = tuple(Path(file).name for file in value)
            if isinstance(value, tuple):
                value = ",".join(value)
            words += [option] if value is True else [option, str(value)]
        return shlex.join(words)


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
