"""What the names of a run stand for: models, methods, utilities, cells and images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import pandas as pd
from torch import Tensor

import camkit.methods
import camkit.metrics
import camkit.network.utilities  # noqa: F401  (all three fill registries)
from camkit.config import RunConfig
from camkit.data import ClassList, DataSet, Item, data_of
from camkit.entries import COSTLY, METHODS, METRICS, UTILITIES, Method
from camkit.errors import CamkitError, Say, UsageError
from camkit.methods.altered import expand
from camkit.methods.fusion import at_layer
from camkit.network.layers import parts_of
from camkit.network.loading import own_classes as own_classes_of
from camkit.network.models import PAPER_ROWS, find_row
from camkit.network.passes import Network, TracedPass
from camkit.network.prepare import Prepared
from camkit.network.targets import find_target
from camkit.network.view import View
from camkit.plugins import load_plugins
from camkit.registry import ALL, unknown_name
from camkit.results.cells import Cell


def find_methods(names: Iterable[str]) -> list[Method]:
    """Methods by name or by group (`paper`, `controls`, `all`: without the costly), each once.

    Raises:
        UsageError: a name is neither.
    """
    groups = METHODS.groups
    found: dict[str, Method] = {}
    for name in (each for given in names for each in expand(given)):
        if not METHODS.knows(name) and name not in groups:
            also = f"; and {', '.join(METHODS.forms)}; groups: {', '.join(sorted(groups - {ALL}))}, {ALL}"
            raise unknown_name("method", name, METHODS, also)
        grouped = [
            m for m in METHODS.values() if name in m.groups or (name == ALL and COSTLY not in m.groups)
        ]
        found |= {member.name: member for member in grouped or [METHODS[name]]}
    return list(found.values())


def check_names(methods: Iterable[str], utilities: Iterable[str], metrics: Iterable[str]) -> None:
    """All of them exist, and there are some.

    Raises:
        UsageError: one does not.
    """
    methods, utilities = list(methods), list(utilities)
    if not methods or not utilities:
        raise UsageError(f"no {'utility' if methods else 'method'} is named")
    find_methods(methods)
    for name in utilities:
        UTILITIES[name]
    for name in metrics:
        METRICS[name]


def find_models(names: Iterable[str]) -> list[str]:
    """Model names, `all` being the paper's twelve.

    Raises:
        UsageError: a model does not exist.
    """
    listed = [row.name for name in names for row in (PAPER_ROWS if name == ALL else [find_row(name)])]
    return list(dict.fromkeys(listed))


def cells_of(summary: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
    """The rows of a run's cells in a summary that may hold others too; under `--layer all` of every layer."""
    methods = [method.name for method in find_methods(config.method)]
    return summary[
        summary["model"].isin(find_models(config.model))
        & (summary["layer"].isin(config.layer) | (ALL in config.layer))
        & summary["utility"].isin(config.utility)
        & summary["method"].isin(methods)
    ]


def cells_of_model(prepared: Prepared, config: RunConfig, say: Say = lambda line: None) -> list[Cell]:
    """All cells of one model in a run: its layers by its utilities by its methods.

    Methods that this model or a layer cannot have are left out, and said; one that was named, and no layer
    can have, is refused.

    Raises:
        UsageError: a method does not exist.
        CamkitError: a method was named that the model cannot have, or it can have none of a group.
    """
    cells = []
    named = prepared.layers(config.layer)
    for found in find_methods(config.method):
        if without_regions(found, config):
            continue
        lacking: dict[str, list[str]] = {}  # why -> the layers
        for layer in named:
            method = at_layer(found, prepared.paths[layer])
            why = what_is_lacking(method, prepared.network, prepared.paths[layer])
            if why:
                lacking.setdefault(why, []).append(layer)
            else:
                cells += [Cell(layer, prepared.paths[layer], utility, method) for utility in config.utility]
        for why, layers in lacking.items():
            line = f"{prepared.loaded.row.name}, layer {', '.join(layers)}: {found.name}: {why}"
            if found.name in config.method and not any(cell.method.name == found.name for cell in cells):
                raise CamkitError(line)
            say(f"{line}; left out")
    if not cells:
        raise CamkitError(
            f"{prepared.loaded.row.name} can have none of the methods {', '.join(config.method)}"
        )
    order = {utility: place for place, utility in enumerate(config.utility)}
    places = {layer: place for place, layer in enumerate(named)}
    return sorted(cells, key=lambda cell: (places[cell.layer], order[cell.utility]))


def what_is_lacking(method: Method, network: Network, path: str) -> str:
    """Why a network or its layer cannot have a method; "" where they can."""
    return method.lacks(network, path) if method.lacks else ""


@dataclass(frozen=True)
class Needs:
    """What a pass has to keep for a method.

    Attributes:
        layers: module paths.
        attention: also the attention of every block.
    """

    layers: frozenset[str]
    attention: bool

    @classmethod
    def of(cls, method: Method, network: Network, path: str) -> Needs:
        """Those of a method at a layer, or at several (`layer3+layer4`)."""
        parts = parts_of(path)
        stages = network.stages if "stages" in method.uses and len(parts) == 1 else ()
        return cls(frozenset((*parts, *stages)), "attention" in method.uses)

    def together(self, others: Iterable[Needs]) -> Needs:
        """What one pass keeps for all."""
        every = [self, *others]
        layers = frozenset(layer for one in every for layer in one.layers)
        return Needs(layers, any(one.attention for one in every))

    def met_by(self, passed: TracedPass, exactly: bool) -> bool:
        """Whether a pass has kept this; `exactly`: and nothing else."""
        kept = Needs(frozenset(passed.leaves), passed.attention is not None)
        return self == kept if exactly else kept == kept.together([self])

    def trace(self, network: Network, images: Tensor) -> TracedPass:
        """A pass that keeps this."""
        return network.trace(images, sorted(self.layers), attention=self.attention)


def without_regions(method: Method, config: RunConfig) -> str:
    """Why a run over these data cannot have a method; "" where it can."""
    lacks = "regions" in method.uses and not config.has_regions
    return "these data do not say where the class is (--regions, or --data mosaic:PATH)" if lacks else ""


def check_regions(config: RunConfig, say: Say) -> None:
    """Say which methods are left out because these data do not say where the class is.

    Raises:
        UsageError: one of them was named.
    """
    for method in find_methods(config.method):
        why = without_regions(method, config)
        if method.name in config.method and why:
            raise UsageError(f"method {method.name!r}: {why}")
        if why:
            say(f"{method.name} is left out: {why}")


def check_layers(config: RunConfig) -> None:
    """Scores that judge a map by its layer are asked for single layers.

    Raises:
        UsageError: one is asked for several (`layer3+layer4`).
    """
    several = next((layer for layer in config.layer if len(parts_of(layer)) > 1), None)
    for name in config.metrics:
        if several and METRICS[name].sees_layer:
            raise UsageError(
                f"--metrics {name}: judges a map by its layer, and --layer {several} is several layers"
            )


def check_mosaics(config: RunConfig) -> None:
    """Options that mosaics have are not given without them, and those that they lack not with them.

    Raises:
        UsageError: one is.
    """
    if config.of_mosaics and config.regions is not None:
        raise UsageError("--regions: in a mosaic the region is the photo's tile")
    if config.of_mosaics and config.target != "predicted":
        raise UsageError(f"--target {config.target}: in a mosaic each photo's own class is explained")
    for one in () if config.of_mosaics else fields(RunConfig):
        if one.name in ("mosaic", "confidence") and getattr(config, one.name) != one.default:
            raise UsageError(f"--{one.name} is for mosaics of photos: --data mosaic:PATH makes them")


def own_classes(config: RunConfig) -> ClassList | None:
    """The class list that a run's models carry, see :func:`camkit.network.loading.own_classes`.

    None where none has one, and where the user names a list.

    Raises:
        UsageError: two models carry different lists.
    """
    if config.classes is not None:
        return None
    found = {name: own_classes_of(name, config.weights) for name in find_models(config.model)}
    carried = {name: listed for name, listed in found.items() if listed is not None}
    first, *others = [*carried] or [""]
    for name in others:
        if carried[name].digest != carried[first].digest:
            raise UsageError(f"{first} and {name} carry different class lists: name one with --classes FILE")
    return carried.get(first)


def data_of_run(config: RunConfig) -> DataSet:
    """The photos of a run, their labels in the class list that the user names, else the models carry."""
    return data_of(config, own_classes(config))


def with_target(config: RunConfig, classes: ClassList) -> RunConfig:
    """The same with a target class by its index, where it is named."""
    if len(classes.indices_named(config.target)) == 1:
        return replace(config, target=str(classes.index_of(config.target)))
    return config


@dataclass(frozen=True)
class Selection:
    """What the names of a run stand for.

    Attributes:
        config: of the run, its target a rule or an index.
        items: the images of the data set that the run takes; of mosaics the photos.
    """

    config: RunConfig
    models: list[str]
    data: DataSet
    items: list[Item]


def select(config: RunConfig, say: Say) -> Selection:
    """The models, the data set, and the images of it that a run takes.

    Raises:
        UsageError: a name does not exist, there are no images, or they lack the labels that are needed.
    """
    load_plugins(config.plugin)
    models = find_models(config.model)
    View.of(config)  # what cannot be read is said at once
    check_names(config.method, config.utility, config.metrics)
    check_layers(config)
    check_regions(config, say)
    check_mosaics(config)
    data = data_of_run(config)
    for note in data.notes:
        say(note)
    config = with_target(config, data.classes)
    target = find_target(config.target)
    if config.sample is not None and config.sample >= config.steps - 1:
        say(f"--sample {config.sample}: all {config.steps} steps are scored, as without it (--steps)")
    if config.data == "sample":
        say("The data are scikit-image's six sample photos: a demonstration, not a benchmark (see --data).")
    if config.of_mosaics:
        return Selection(config, models, data, list(data.items))
    items = list(data.items[: config.limit])
    if target.needs_labels:
        labelled = [item for item in items if item.label is not None]
        if not labelled:
            raise UsageError(
                f"--target {config.target} needs labels, and these images have none (see --labels)"
            )
        if len(labelled) < len(items):
            say(
                f"{len(items) - len(labelled)} images without a label are left out (--target {config.target})"
            )
        items = labelled
    return Selection(config, models, data, items)
