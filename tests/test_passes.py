"""The cost of a run: images through the network, counted in the network itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY, TinyNet

from camkit.benchmark import bench
from camkit.config import RunConfig

BATCH = 2


def passes(photos: Path, out: Path, **options: object) -> float:
    """Passes of a batch, without what a run costs whatever its length: two batches less one."""
    counts = []
    for batches in (1, 2):
        size = {"batch_size": BATCH, "limit": batches * BATCH}
        data = {"data": str(photos), "out": out / str(batches)}
        TinyNet.passed.clear()
        bench(RunConfig(**(TINY | size | data | options)), say=lambda line: None)
        counts.append(sum(TinyNet.passed))
    return (counts[1] - counts[0]) / BATCH


@pytest.mark.parametrize(
    ("method", "methods"),
    [(("gradcam",), 1), (("paper",), 10), (("paper", "controls"), 14), (("shapleycam", "flat", "edges"), 3)],
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


def test_scores_that_two_groups_have_are_made_once(photos: Path, tmp_path: Path) -> None:
    assert passes(photos, tmp_path, method=("gradcam",), metrics=("adcc", "average_drop")) == 1 + 2


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
