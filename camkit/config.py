"""RunConfig: every option of a run with its default, limits and help text, and whether it decides numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from camkit.errors import UsageError

DEFAULT_METRICS = ("adcc", "deletion", "insertion")
DEFAULT_BUDGET = 128  # permutations
GROUPS = ("What to run", "Data", "Scores", "How it runs", "Output")
# Options whose value is a path, or may be one: the command of a run shows the last part only.
PATHS = ("data", "weights", "classes")
WORDS = ("pretrained", "random", "sample", "imagenet", "folders")


def option(
    default: Any = MISSING,
    text: str = "",
    *,
    group: str,
    kind: str = "text",
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    least: int | None = None,
    decides: str = "",
    shown: str | None = None,
) -> Any:
    """A field of :class:`RunConfig`, and with it an option of the command line.

    Args:
        text: the help text; `shown`: the default as the help text shows it, where the value does not say it.
        group: the heading it stands under, one of :data:`GROUPS`.
        kind: `names`, `text`, `choice`, `count`, `flag`, `file`, `folder`, `files`, `batch size` or `share`.
        choices: what it can be; `least`: the least that it can be.
        decides: its name in a run's protocol, where another value gives other numbers.
    """
    metadata = {
        "text": text, "group": group, "kind": kind, "metavar": metavar, "choices": choices, "least": least,
        "decides": decides, "shown": shown,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """One run of `camkit bench`. Fields are named as the options of the command line are.

    Raises:
        UsageError: an option has a value that it cannot have.
    """

    model: tuple[str, ...] = option(
        text="Models (camkit list models), `all`, timm/NAME[.TAG] or torchvision/NAME[.TAG].",
        group="What to run",
        kind="names",
    )
    method: tuple[str, ...] = option(
        ("shapleycam",),
        "CAM methods, or groups: paper (the ten), controls (the five), aumann, all.",
        group="What to run",
        kind="names",
    )
    layer: tuple[str, ...] = option(
        ("conv",), "Target layers: conv, prepool or MODULE.PATH.", group="What to run", kind="names"
    )
    utility: tuple[str, ...] = option(
        ("rest",), "rest, logit, softmax, log-softmax.", group="What to run", kind="names"
    )
    target: str = option(
        "predicted",
        "Class to explain; correct: the label, on images that the model gets right.",
        group="What to run",
        metavar="predicted|label|correct",
        decides="target_rule",
    )
    weights: str = option(
        "pretrained",
        "Weights: the published ones, seeded random ones, or a .pth, .pt or .safetensors file.",
        group="What to run",
        metavar="pretrained|random|FILE",
    )
    preprocess: str = option(
        "paper",
        "paper: resize to 256, crop 224, bilinear; native: the weights' own transform.",
        group="What to run",
        kind="choice",
        choices=("paper", "native"),
        decides="preprocess",
    )
    plugin: tuple[str, ...] = option(
        (),
        "Python file that registers methods, metrics or models of your own (docs/extend.md).",
        group="What to run",
        kind="files",
        metavar="FILE",
    )
    data: str = option(
        "sample",
        "Folder of images, tar or parquet files.",
        group="Data",
        metavar="PATH|sample",
        shown="$CAMKIT_DATA, else the sample photos",
    )
    layout: str | None = option(
        None,
        "How the data lie: wnid, folders, imagenet-v2, flat, photos, parquet, webdataset or tar.",
        group="Data",
        metavar="NAME",
        shown="found by looking",
    )
    labels: Path | None = option(
        None,
        "CSV file `image,label`; a label is a 0-based index, a wnid or a class name.",
        group="Data",
        kind="file",
        metavar="FILE",
    )
    classes: str | None = option(
        None,
        "What labels stand for: ImageNet's classes, the class folders in sorted order, or those of a file.",
        group="Data",
        metavar="imagenet|folders|FILE",
        shown="ImageNet's; bare numbers: see docs/data.md",
    )
    image_column: str | None = option(
        None, "Column of the images (parquet), or their ending (WebDataset).", group="Data", metavar="NAME"
    )
    label_column: str | None = option(
        None, "Column of the labels (parquet), or their JSON key (WebDataset).", group="Data", metavar="NAME"
    )
    limit: int | None = option(
        None, "The first N images of the seeded, spread-out order.", group="Data", kind="count", least=1
    )
    exif: str = option(
        "ignore",
        "Orientation that cameras write into photos; the paper ignores it.",
        group="Data",
        kind="choice",
        choices=("ignore", "apply"),
        decides="exif",
    )
    on_error: str = option(
        "continue",
        "Whether an unreadable image ends the run. errors.csv lists it.",
        group="Data",
        kind="choice",
        choices=("continue", "stop"),
    )
    max_errors: float | None = option(
        None,
        "Stop a model when more than this share of its images is unreadable; each of several processes "
        "judges its own.",
        group="Data",
        kind="share",
        metavar="SHARE",
        shown="1%, at least 3 images",
    )
    cache: Path | None = option(
        None,
        "Keep decoded pixels there (7.6 GB for the validation set): later models and runs do not decode.",
        group="Data",
        kind="folder",
        metavar="DIR",
    )
    metrics: tuple[str, ...] = option(DEFAULT_METRICS, "Groups of scores.", group="Scores", kind="names")
    steps: int = option(
        224, "Steps of deletion and insertion.", group="Scores", kind="count", decides="steps"
    )
    budget: int = option(
        DEFAULT_BUDGET,
        "Permutations from which Shapley values are estimated.",
        group="Scores",
        kind="count",
        least=4,
        decides="budget",
    )
    absent: str = option(
        "zero",
        "Activation of an absent position: of Shapley values and of aumann-N.",
        group="Scores",
        kind="choice",
        choices=("zero", "mean", "blur"),
        decides="absent",
    )
    seed: int = option(
        0,
        "Of the order of images, random methods and random weights.",
        group="Scores",
        kind="count",
        decides="seed",
    )
    device: str = option(
        "auto", "Where the network runs.", group="How it runs", metavar="auto|cpu|cuda[:N]|mps"
    )
    dtype: str = option(
        "float32",
        "Number format of the passes; derivatives stay float32.",
        group="How it runs",
        kind="choice",
        choices=("float32", "bfloat16", "float16"),
        decides="dtype",
    )
    tf32: bool = option(
        False,
        "Let float32 passes use TF32 on GPUs that have it.",
        group="How it runs",
        kind="flag",
        decides="tf32",
    )
    compile: bool = option(
        False,
        "torch.compile for the scoring passes; needs a C++ compiler or Triton.",
        group="How it runs",
        kind="flag",
    )
    deterministic: bool = option(
        False, "Only operations that give the same bits in every run.", group="How it runs", kind="flag"
    )
    batch_size: int | Literal["auto"] = option(
        32,
        "Images per pass; auto: halved until it fits into memory.",
        group="How it runs",
        kind="batch size",
        metavar="N|auto",
        least=1,
    )
    workers: int = option(
        0,
        "Processes that decode images; 0: none beside the main one.",
        group="How it runs",
        kind="count",
        least=0,
        shown="cores less one, at most 8",
    )
    out: Path = option(Path("results/local"), "Results folder.", group="Output", kind="folder", metavar="DIR")
    force: bool = option(
        False, "Start afresh: move what is in --out to OUT.<time> first.", group="Output", kind="flag"
    )
    save_maps: bool = option(
        False, "Also write the signed maps, an .npz beside each CSV.", group="Output", kind="flag"
    )
    curves: bool = option(
        False, "Keep every point of the deletion and insertion curves, not 29.", group="Output", kind="flag"
    )

    def __post_init__(self) -> None:
        check_options(vars(self))

    @property
    def protocol(self) -> dict[str, Any]:
        """The options that decide numbers, by their names in run.json."""
        return {one.metadata["decides"]: getattr(self, one.name) for one in deciding_options()}

    def command(self) -> str:
        """The command line that makes this run; of paths only the last part."""
        words = ["camkit", "bench"]
        for one in fields(self):
            value = getattr(self, one.name)
            if value == one.default:
                continue
            words.append(f"--{one.name.replace('_', '-')}")
            if value is not True:
                parts = value if isinstance(value, tuple) else (value,)
                words.append(",".join(_without_folders(one, part) for part in parts))
        return shlex.join(words)


def _without_folders(one: Field, value: Any) -> str:
    is_path = one.metadata["kind"] in ("file", "folder", "files") or one.name in PATHS
    return Path(value).expanduser().resolve().name if is_path and value not in WORDS else str(value)


def deciding_options() -> Iterator[Field]:
    """The fields of :class:`RunConfig` that decide numbers."""
    return (one for one in fields(RunConfig) if one.metadata["decides"])


def check_options(options: Mapping[str, Any]) -> None:
    """What the command line's own options check, for options that come another way.

    Raises:
        UsageError: one is none of its choices, or less than it can be.
    """
    known = {one.name: one.metadata for one in fields(RunConfig)}
    for name, value in options.items():
        choices, least = known[name]["choices"], known[name]["least"]
        said = f"--{name.replace('_', '-')} {value}"
        if choices and value not in choices:
            raise UsageError(f"{said}: expected one of {', '.join(choices)}")
        if least is not None and isinstance(value, int) and value < least:
            raise UsageError(f"{said}: expected {least} or more")
