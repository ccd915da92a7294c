"""Every option of a run, with its default, limits and help text, and whether it decides numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from camkit.errors import UsageError
from camkit.option import DATA, HOW, OUTPUT, RUN, SCORES, Options, option

DEFAULT_METRICS = ("adcc", "deletion", "insertion")
# The protocol has these only where the user gave them.
OF_IMAGES = ("size", "mean", "std")
MOSAIC = "mosaic:"  # begins a --data whose photos are set side by side
# Options whose value is a path, or may be one: the command of a run shows the last part only.
PATHS = ("data", "weights", "classes")
WORDS = ("pretrained", "random", "sample", "imagenet", "folders")
# What stands where pixels are gone, and which go first; what a score does where nothing is said.
FILLS, ORDERS = ("zero", "mean", "blur", "noise"), ("most", "least")
OWN_FILL = {"deletion": "zero", "insertion": "blur", "srg": "zero"}


def variant(score: str, fill: str, order: str) -> str:
    """The metric group of a score with another fill or order: `deletion-mean-least`."""
    parts = [score, "" if fill == OWN_FILL[score] else fill, "" if order == "most" else order]
    return "-".join(filter(None, parts))


@dataclass(frozen=True)
class WhatToRun(Options):
    """Models, methods and what is explained."""

    # fmt: off
    model: tuple[str, ...] = option(MISSING,
        "Models (camkit list models), `all`, timm/NAME[.TAG], torchvision/NAME[.TAG], transformers/NAME.",
        RUN, kind="names")
    method: tuple[str, ...] = option(("shapleycam",),
        "CAM methods, or groups: paper (the ten), cheap, perturbation, controls (the seven), ceilings, "
        "aumann, transformer; all: all but perturbation, to which the ceilings drops-N belong too.",
        RUN, kind="names")
    layer: tuple[str, ...] = option(("conv",), "conv, prepool, MODULE.PATH; fused: a+b; all: ends of stages.",
        RUN, kind="names")
    utility: tuple[str, ...] = option(("rest",), "rest, logit, softmax, log-softmax.", RUN, kind="names")
    activation: str = option("softmax",
        "softmax: one class of all; sigmoid: each class by itself, or one output that tells two apart.",
        RUN, kind="choice", choices=("softmax", "sigmoid"), decides="activation")
    target: str = option("predicted",
        "Class to explain; correct: the label, on images that the model gets right; or one class for all.",
        RUN, metavar="predicted|label|correct|runner-up|INDEX|NAME", decides="target_rule")
    weights: str = option("pretrained",
        "Weights: the published ones, seeded random ones, or a file (.pth, .pt, .bin, .ckpt, .safetensors).",
        RUN, metavar="pretrained|random|FILE[:KEY]")
    preprocess: str = option("paper",
        "paper: resize to 256, crop 224, bilinear; native: the weights' own transform.",
        RUN, kind="choice", choices=("paper", "native"), decides="preprocess")
    size: str | None = option(None,
        "Size of the images instead of the transform's: resized to cover 256/224 of it, then the centre.",
        RUN, metavar="HxW", decides="size")
    mean: str | None = option(None, "Mean of the images that the model takes, per channel, in [0, 1].",
        RUN, metavar="R,G,B", decides="mean")
    std: str | None = option(None, "Standard deviation of the images that the model takes, likewise.",
        RUN, metavar="R,G,B", decides="std")
    plugin: tuple[str, ...] = option((),
        "Python file that registers methods, metrics or models of your own (docs/extend.md).",
        RUN, kind="files", metavar="FILE")
    # fmt: on


@dataclass(frozen=True)
class DataOptions(Options):
    """The images, and what is known of them."""

    # fmt: off
    data: str = option("sample",
        "Folder of images, tar or parquet files; mosaic:PATH sets confidently classified ones side by side.",
        DATA, metavar="PATH|mosaic:PATH|sample", shown="$CAMKIT_DATA, else the sample photos")
    mosaic: int = option(2, "Photos along a side of a mosaic (--data mosaic:PATH).",
        DATA, kind="count", least=2, decides="mosaic")
    confidence: float = option(0.9, "Least probability of a photo's class by itself, for a mosaic.",
        DATA, kind="share", metavar="P", decides="confidence")
    layout: str | None = option(None,
        "How the data lie: wnid, folders, imagenet-v2, flat, photos, parquet, webdataset or tar.",
        DATA, metavar="NAME", shown="found by looking")
    labels: Path | None = option(None,
        "CSV file `image,label`; a label is a 0-based index, a wnid or a class name.",
        DATA, kind="file", metavar="FILE")
    regions: Path | None = option(None,
        "Where the class is in each image, for localisation: boxes (CSV, ILSVRC's XML) or PNG masks.",
        DATA, kind="file", metavar="FILE|DIR")
    classes: str | None = option(None,
        "What labels stand for: ImageNet's classes, the class folders in sorted order, or those of a file.",
        DATA, metavar="imagenet|folders|FILE", shown="the model's own, else ImageNet's")
    image_column: str | None = option(None, "Column of the images (parquet), or their ending (WebDataset).",
        DATA, metavar="NAME")
    label_column: str | None = option(None, "Column of the labels (parquet), or their JSON key (WebDataset).",
        DATA, metavar="NAME")
    limit: int | None = option(None, "The first N images of the seeded, spread-out order.",
        DATA, kind="count", least=1)
    exif: str = option("ignore", "Orientation that cameras write into photos; the paper ignores it.",
        DATA, kind="choice", choices=("ignore", "apply"), decides="exif")
    on_error: str = option("continue", "Whether an unreadable image ends the run. errors.csv lists it.",
        DATA, kind="choice", choices=("continue", "stop"))
    max_errors: float | None = option(None,
        "Stop a model when more than this share of its images is unreadable; each of several processes "
        "judges its own.",
        DATA, kind="share", metavar="SHARE", shown="1%, at least 3 images")
    cache: Path | None = option(None,
        "Keep decoded pixels there (7.6 GB for the validation set): later models and runs do not decode.",
        DATA, kind="folder", metavar="DIR")
    # fmt: on

    @property
    def photos(self) -> str:
        """Where the photos are, of mosaics too."""
        return self.data.removeprefix(MOSAIC)

    @property
    def of_mosaics(self) -> bool:
        """Whether the images are mosaics of photos."""
        return self.data.startswith(MOSAIC)

    @property
    def has_regions(self) -> bool:
        """Whether it is known where the class is in some images."""
        return self.of_mosaics or self.regions is not None


@dataclass(frozen=True)
class ScoreOptions(Options):
    """The scores, and what metrics are given as `subject.options`."""

    # fmt: off
    metrics: tuple[str, ...] = option(DEFAULT_METRICS, "Groups of scores.", SCORES, kind="names")
    steps: int = option(224, "Steps of deletion and insertion.", SCORES, kind="count", decides="steps")
    sample: int | None = option(None,
        "Of these steps score M, drawn per image; the area is estimated without bias.",
        SCORES, kind="count", metavar="M", least=1, decides="sample", shown="all steps")
    fill: tuple[str, ...] = option((),
        "What stands for missing pixels in deletion, insertion and srg: zero, mean, blur, noise.",
        SCORES, kind="names", choices=FILLS, shown="zero; of insertion blur")
    order: tuple[str, ...] = option((),
        "Which pixels go first in deletion and insertion: most, least (salient).",
        SCORES, kind="names", choices=ORDERS, shown="most")
    grid: int = option(4, "Patches along a side in single deletion.",
        SCORES, kind="count", least=2, decides="grid")
    ties: str = option("raster",
        "Which of equally salient pixels goes first in deletion and insertion; random: seeded, cell by cell.",
        SCORES, kind="choice", choices=("raster", "random"), decides="ties")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill or self.order:
            # A notation for names of groups: nothing after it knows of it.
            object.__setattr__(self, "metrics", tuple(self._variants()))
            object.__setattr__(self, "fill", ())
            object.__setattr__(self, "order", ())

    def _variants(self) -> Iterator[str]:
        if not set(self.metrics) & set(OWN_FILL):
            raise UsageError("--fill and --order are for the scores deletion, insertion and srg (--metrics)")
        for name in self.metrics:
            if name not in OWN_FILL:
                yield name
                continue
            orders = ("most",) if name == "srg" else self.order or ("most",)
            for fill in self.fill or (OWN_FILL[name],):
                yield from (variant(name, fill, order) for order in orders)


@dataclass(frozen=True)
class MethodOptions(Options):
    """What methods are given as `trace.options`."""

    # fmt: off
    budget: int = option(128, "Permutations from which Shapley values are estimated.",
        SCORES, kind="count", least=4, decides="budget")
    absent: str = option("zero", "Activation of an absent position: of Shapley values and of aumann-N.",
        SCORES, kind="choice", choices=("zero", "mean", "blur"), decides="absent")
    channels: int | None = option(None,
        "Of ScoreCAM: only the N channels that vary most over positions, so N passes, not one per channel.",
        SCORES, kind="count", least=1, decides="channels", shown="all")
    references: int = option(3, "Classes that FinerCAM compares with, the most similar.",
        SCORES, kind="count", least=1, decides="references")
    reference_weight: float = option(0.6,
        "How much their mean utility counts in FinerCAM: 0 (as GradCAM) to 1.",
        SCORES, kind="share", metavar="WEIGHT", decides="reference_weight")
    # fmt: on


@dataclass(frozen=True)
class RunConfig(MethodOptions, ScoreOptions, DataOptions, WhatToRun):
    """One run of `camkit bench`. Fields are named as the options of the command line are.

    Fields stand as in the help text, those of the last base first.
    """

    # fmt: off
    seed: int = option(0, "Of the order of images, random methods and random weights.",
        SCORES, kind="count", decides="seed")
    device: str = option("auto", "Where the network runs.", HOW, metavar="auto|cpu|cuda[:N]|mps")
    dtype: str = option("float32", "Number format of the passes; derivatives stay float32.",
        HOW, kind="choice", choices=("float32", "bfloat16", "float16"), decides="dtype")
    tf32: bool = option(False, "Let float32 passes use TF32 on GPUs that have it.",
        HOW, kind="flag", decides="tf32")
    compile: bool = option(False, "torch.compile for the scoring passes; needs a C++ compiler or Triton.",
        HOW, kind="flag")
    deterministic: bool = option(False, "Only operations that give the same bits in every run.",
        HOW, kind="flag")
    batch_size: int | Literal["auto"] = option(32, "Images per pass; auto: halved until it fits into memory.",
        HOW, kind="batch size", metavar="N|auto", least=1)
    workers: int = option(0, "Processes that decode images; 0: none beside the main one.",
        HOW, kind="count", least=0, shown="cores less one, at most 8")
    out: Path = option(Path("results/local"), "Results folder.", OUTPUT, kind="folder", metavar="DIR")
    force: bool = option(False, "Start afresh: move what is in --out to OUT.<time> first.",
        OUTPUT, kind="flag")
    save_maps: bool = option(False, "Also write the signed maps, an .npz beside each CSV.",
        OUTPUT, kind="flag")
    curves: bool = option(False, "Keep every point of the deletion and insertion curves, not 29.",
        OUTPUT, kind="flag")
    # fmt: on

    @property
    def protocol(self) -> dict[str, Any]:
        """The options that decide numbers, by their names in run.json."""
        options = {one.metadata["decides"]: getattr(self, one.name) for one in deciding_options()}
        if not self.of_mosaics:
            del options["mosaic"], options["confidence"]
        return {name: value for name, value in options.items() if value is not None or name not in OF_IMAGES}

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
