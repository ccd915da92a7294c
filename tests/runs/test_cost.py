"""The cost of a run: images through the network, counted in the network itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TinyNet, run

BATCH = 2


def passes(photos: Path, out: Path, **options: object) -> float:
    """Passes of a batch, without what a run costs whatever its length: two batches less one."""
    counts = []
    for batches in (1, 2):
        size = {"batch_size": BATCH, "limit": batches * BATCH}
        TinyNet.passed.clear()
        run(photos, out / str(batches), **size | options)
        counts.append(sum(TinyNet.passed))
    return (counts[1] - counts[0]) / BATCH


@pytest.mark.parametrize(
    ("method", "methods"),
    [(("gradcam",), 1), (("paper",), 10), (("paper", "controls"), 16), (("shapleycam", "flat", "edges"), 3)],
)
def test_adcc_costs_one_traced_pass_and_two_a_method(
    photos: Path, tmp_path: Path, method: tuple[str, ...], methods: int
) -> None:
    assert passes(photos, tmp_path, method=method, metrics=("adcc",)) == 1 + 2 * methods


def test_layers_and_utilities_share_the_traced_pass(photos: Path, tmp_path: Path) -> None:
    found = passes(
        photos,
        tmp_path,
        method=("gradcam", "shapleycam"),
        layer=("conv", "features.3", "features.2"),
        utility=("rest", "logit", "softmax", "log-softmax"),
        metrics=("adcc",),
    )
    assert found == 1 + 2 * (2 * 3 * 4)


@pytest.mark.parametrize(
    ("methods", "maps"),
    [
        (("flat", "fake-cam", "centre", "edges"), 4),
        (("gradcam", "flat", "randomcam"), 2 * 2 * 2 + 1),  # randomcam has a layer's channels
    ],
)
def test_controls_of_the_image_alone_cost_the_same_for_any_layers_and_utilities(
    photos: Path, tmp_path: Path, methods: tuple[str, ...], maps: int
) -> None:
    grid = {"layer": ("conv", "features.2"), "utility": ("rest", "logit")}
    found = passes(photos, tmp_path, method=methods, metrics=("adcc",), **grid)
    assert found == 1 + 2 * maps
    curves = passes(photos, tmp_path / "curves", method=methods, metrics=("deletion",), steps=4, **grid)
    assert curves == 1 + 1 + 3 * maps


def test_two_names_of_one_layer_cost_no_more_than_one(photos: Path, tmp_path: Path) -> None:
    """timm/camkit_tiny has no row: conv and prepool are the same module, features.3 another."""
    settings = {"method": ("gradcam", "layercam", "flat"), "utility": ("rest", "logit"), "metrics": ("adcc",)}
    both = passes(photos, tmp_path, layer=("conv", "features.3", "prepool"), **settings)
    assert both == 1 + 2 * (2 * 2 * 2 + 1)
    tables = sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").glob("*/conv-*/*.csv"))
    assert len(tables) == 2 * 3
    for table in tables:
        name = table.parent.name.replace("conv", "prepool")
        twin = tmp_path / "2" / table.parent.parent / name / table.name
        assert twin.read_bytes() == (tmp_path / "2" / table).read_bytes()


def test_shared_maps_are_scored_in_what_each_cell_lacks(photos: Path, tmp_path: Path) -> None:
    """Deletion is there under rest: it is made for logit alone, and adcc once for both."""
    settings = {"method": ("flat",), "steps": 4}
    passes(photos, tmp_path, utility=("rest",), metrics=("deletion",), **settings)
    more = passes(photos, tmp_path, utility=("rest", "logit"), metrics=("deletion", "adcc"), **settings)
    assert more == 1 + (1 + 3) + 2


def test_two_models_cost_what_they_cost_alone(photos: Path, tmp_path: Path) -> None:
    settings = {"method": ("gradcam", "flat"), "metrics": ("adcc", "deletion"), "steps": 3}
    alone = 1 + 1 + 2 * (2 + 2)
    for models in (("timm/camkit_tiny",), ("timm/camkit_tiny", "timm/camkit_tiny_too")):
        out = tmp_path / str(len(models))
        assert passes(photos, out, model=models, **settings) == len(models) * alone


@pytest.mark.parametrize(("steps", "points"), [(130, 128), (90, 90)])
def test_a_curve_has_no_more_points_than_its_steps_need(
    photos: Path, tmp_path: Path, steps: int, points: int
) -> None:
    """130 steps of the 4096 pixels: 32 pixels a step, which are 128."""
    found = passes(photos, tmp_path, method=("flat",), metrics=("deletion",), steps=steps)
    assert found == 1 + 1 + (points - 1)


def test_below_float32_a_layer_costs_a_traced_pass_of_its_own(photos: Path, tmp_path: Path) -> None:
    settings = {
        "layer": ("conv", "features.2"),
        "dtype": "bfloat16",
        "metrics": ("adcc", "deletion"),
        "steps": 3,
    }
    found = passes(photos, tmp_path / "cams", method=("gradcam", "flat"), **settings)
    assert found == 1 + 2 + 1 + (2 + 1) * (2 + 2)
    assert passes(photos, tmp_path / "flat", method=("flat",), **settings) == 1 + 1 + (2 + 2)


@pytest.mark.parametrize("curve", ["deletion", "insertion"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_curve_costs_a_pass_a_step_between_its_ends(
    photos: Path, tmp_path: Path, curve: str, steps: int
) -> None:
    """One end is the image itself, the other one pass that all methods share."""
    found = passes(photos, tmp_path, method=("gradcam", "hirescam", "flat"), metrics=(curve,), steps=steps)
    assert found == 1 + 1 + 3 * (steps - 1)


def test_average_drop_alone_costs_one_pass_a_method(photos: Path, tmp_path: Path) -> None:
    methods = ("gradcam", "hirescam", "flat")
    assert passes(photos, tmp_path / "alone", method=methods, metrics=("average_drop",)) == 1 + 3
    for both in (("average_drop", "deletion"), ("deletion", "average_drop")):
        assert passes(photos, tmp_path / both[0], method=methods, metrics=both) == 1 + 1 + 3 * (1 + 3)


@pytest.mark.parametrize("metrics", [("adcc", "average_drop"), ("average_drop", "adcc")])
def test_scores_that_two_groups_have_are_made_once(
    photos: Path, tmp_path: Path, metrics: tuple[str, ...]
) -> None:
    assert passes(photos, tmp_path, method=("gradcam",), metrics=metrics) == 1 + 2


def test_all_scores(photos: Path, tmp_path: Path) -> None:
    metrics = ("adcc", "deletion", "insertion")
    found = passes(photos, tmp_path, method=("gradcam", "shapleycam"), metrics=metrics, steps=5)
    assert found == 1 + 2 + 2 * (2 + 2 * 4)


def test_a_new_method_costs_only_its_own(photos: Path, tmp_path: Path) -> None:
    """The other methods' rows are there: one traced pass, and two for the new one."""
    passes(photos, tmp_path, method=("gradcam", "layercam"), metrics=("adcc",))
    more = passes(photos, tmp_path, method=("gradcam", "layercam", "hirescam"), metrics=("adcc",))
    assert more == 1 + 2


def test_nothing_to_do_costs_no_more_for_more_images(photos: Path, tmp_path: Path) -> None:
    passes(photos, tmp_path, metrics=("adcc",))
    assert passes(photos, tmp_path, metrics=("adcc",)) == 0


@pytest.mark.parametrize(
    ("metrics", "shared", "method"),
    [
        (("srg",), 1, 2 * 3),  # 4 steps: three passes a curve between its ends
        (("srg", "deletion"), 1, 2 * 3),
        (("srg", "deletion", "deletion-least", "insertion-zero", "insertion-zero-least"), 1, 2 * 3),
        (("deletion-mean", "insertion-noise-least"), 2, 2 * 3),
        (("road",), 0, 18),
        (("arcc",), 0, 8 + 1),
        (("road", "arcc", "adcc", "average_drop"), 0, 18 + 2),
        (("single_deletion",), 16 + 1, 0),
        (("null",), 2, 0),
        (("class_sensitivity",), 0, 0),
        (("null", "axioms"), 3, 0),
        (("shape",), 0, 0),
    ],
)
def test_scores_cost_what_they_say(
    photos: Path, tmp_path: Path, metrics: tuple[str, ...], shared: int, method: int
) -> None:
    """Beside the pass that explains: some for all methods, some per method."""
    methods = ("gradcam", "hirescam")
    expected = 1 + shared + len(methods) * method
    if "axioms" in metrics:  # with another image, u(A) and u(A0) of what follows the layer
        expected += len(methods) * 2
    assert passes(photos, tmp_path, method=methods, metrics=metrics) == expected


def test_a_finer_grid_costs_its_patches(photos: Path, tmp_path: Path) -> None:
    found = passes(photos, tmp_path, method=("gradcam", "flat"), metrics=("single_deletion",), grid=3)
    assert found == 1 + 9 + 1


@pytest.mark.parametrize(("name", "found"), [("blocks-8", 0), ("drops-4", 17), ("hirescam~sqrt", 0)])
def test_controls_and_ceilings_cost_what_they_say(
    photos: Path, tmp_path: Path, name: str, found: int
) -> None:
    assert passes(photos, tmp_path, method=("gradcam", name), metrics=("shape",)) == 1 + found
