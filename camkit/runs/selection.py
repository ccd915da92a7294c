"""What a run takes, and whether its options go together: models, data set, images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from camkit.config import RunConfig
from camkit.data import ClassList, DataSet, Item, data_of
from camkit.entries import METRICS, UTILITIES
from camkit.errors import Say, UsageError
from camkit.network.layers import parts_of
from camkit.network.loading import own_classes as own_classes_of
from camkit.network.targets import TARGETS, find_target
from camkit.network.view import View
from camkit.plugins import load_plugins
from camkit.runs.cells import check_located, find_methods, find_models, lacking_in_data


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


def check_regions(config: RunConfig, say: Say) -> None:
    """Say which methods are left out because these data do not say where the class is.

    Raises:
        UsageError: one of them was named, or scores that need it.
    """
    for method in find_methods(config.method):
        why = lacking_in_data(method, config)
        if method.name in config.method and why:
            raise UsageError(f"method {method.name!r}: {why}")
        if why:
            say(f"{method.name} is left out: {why}")
    check_located(config)


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
    if config.of_mosaics and not config.photos:
        raise UsageError(f"--data {config.data}: of which photos? --data mosaic:PATH")
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
    """The same with a target class by its index, where one is named.

    Raises:
        UsageError: the name is that of two classes, or of one and the index of another.
    """
    if config.target in TARGETS:
        return config
    if classes.indices_named(config.target):
        try:
            return replace(config, target=str(classes.index_of(config.target)))
        except UsageError as error:
            raise UsageError(f"--target: {error}") from error
    return replace(config, target=str(int(config.target))) if config.target.isdecimal() else config


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
    check_mosaics(config)
    check_regions(config, say)
    data = data_of_run(config)
    for note in data.notes:
        say(note)
    config = with_target(config, data.classes)
    target = find_target(config.target)
    if config.sample is not None and config.sample >= config.steps - 1:
        say(f"--sample {config.sample}: all {config.steps} steps are scored, as without it (--steps)")
    if (
        config.regions is not None
        and config.target not in ("predicted", "label", "correct")
        and any(item.label is not None for item in data.items)
    ):
        say(f"--target {config.target}: images whose label is another class have no localisation (--regions)")
    if config.photos == "sample":
        say("The data are scikit-image's six sample photos: a demonstration, not a benchmark (see --data).")
    if config.of_mosaics:
        if len(data.items) < config.mosaic**2:
            raise UsageError(
                f"--mosaic {config.mosaic}: each takes {config.mosaic**2} photos, and there are "
                f"{len(data.items)}"
            )
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
