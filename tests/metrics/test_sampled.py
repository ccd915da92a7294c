"""`--sample`: areas from some of the steps. Unbiased by enumeration of every offset that can be drawn."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, TinyNet, calibrated_weights, noise, run
from torch import Tensor

from camkit.config import RunConfig, ScoreOptions
from camkit.entries import METRICS
from camkit.errors import UsageError
from camkit.metrics import Subject
from camkit.metrics.causal import area, deletion_curve, insertion_curve
from camkit.metrics.sampled import estimated_area, joined, sampled_steps
from camkit.runs.dryrun import dry_run
from camkit.runs.selection import select

SIDE = 4
PIXELS = SIDE * SIDE


def every_offset(interior: int, count: int) -> Tensor:
    """(count, interior): the steps of each offset that can be drawn, one a column."""
    return sampled_steps(interior, count, torch.arange(interior))


def points(curve: Tensor, at: Tensor) -> Tensor:
    """One curve (points,) seen at the steps (count, B): (B, count + 2)."""
    ends = torch.zeros_like(at[:1])
    return curve[torch.cat([ends, at, ends + len(curve) - 1]).T]


class TestSteps:
    @pytest.mark.parametrize("interior", [1, 5, 9, 223])
    @pytest.mark.parametrize("count", [1, 2, 4, 13])
    def test_each_step_comes_up_equally_often(self, interior: int, count: int) -> None:
        count = min(count, interior)
        at = every_offset(interior, count)
        assert Counter(at.flatten().tolist()) == dict.fromkeys(range(1, interior + 1), count)
        assert (at.diff(dim=0) > 0).all()

    def test_by_hand(self) -> None:
        """1 + ⌊(5 k + r) / 2⌋ for k = 0, 1."""
        assert sampled_steps(5, 2, torch.tensor([0, 3, 4])).tolist() == [[1, 2, 3], [3, 5, 5]]


class TestArea:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
    def test_the_mean_over_all_offsets_is_the_whole_area(self, count: int) -> None:
        curve = noise(14).double()  # no shape that helps: steps are as rough as can be
        at = every_offset(12, count)
        found = estimated_area(points(curve, at), at, 13)
        assert found.mean().item() == pytest.approx(area(curve[None]).item(), abs=1e-12)
        if count < 12:
            assert found.std() > 1e-3  # it is the mean alone that agrees
        else:
            torch.testing.assert_close(found, area(curve[None]).expand(12))

    def test_a_straight_line_needs_no_luck(self) -> None:
        curve = torch.linspace(0.9, 0.1, 14)
        at = every_offset(12, 1)
        torch.testing.assert_close(estimated_area(points(curve, at), at, 13), torch.full((12,), 0.5))

    def test_the_picture_is_numpys(self) -> None:
        curve, at = noise(14), every_offset(12, 3)
        found = joined(points(curve, at), at, 13)
        for row, steps in zip(found, at.T, strict=True):
            places = [0, *steps.tolist(), 13]
            np.testing.assert_allclose(row, np.interp(range(14), places, curve[places]), atol=1e-6)


def subject(sample: int | None, images: Tensor, saliency: Tensor, at: Tensor | None = None) -> Subject:
    """Of a network whose p_c is no linear function of the pixels, one step per pixel.

    Args:
        at: the steps that are drawn, (sample, B).
    """
    weights = noise(1, 3, SIDE, SIDE, seed=5).double()

    def score(changed: Tensor) -> Tensor:
        return torch.sigmoid((changed * weights).sum(dim=(1, 2, 3)))

    def none(*_: object) -> None:
        raise AssertionError("not needed here")

    given = dict.fromkeys(("logit", "explain_again", "explain_behind", "explain_as", "_find_trace"), none)
    found = Subject(
        images=images, target=torch.zeros(len(images)), logits=images, probability=score(images), score=score,
        options=ScoreOptions(steps=PIXELS, sample=sample), saliency=saliency, maps=None, regions=None,
        image_ids=[str(place) for place in range(len(images))], seed=0, layer_grid=None, **given,
    )  # fmt: skip
    if at is not None:
        found._made[f"{sample} of {PIXELS - 1} steps"] = at
    return found


class TestScores:
    @pytest.mark.parametrize(
        "name", ["deletion", "insertion", "deletion-mean-least", "insertion-zero", "srg"]
    )
    def test_scores_are_unbiased(self, name: str) -> None:
        """One image, once for each offset that can be drawn."""
        image, saliency = noise(1, 3, SIDE, SIDE).double(), torch.rand(1, SIDE, SIDE).double()
        at = every_offset(PIXELS - 1, 4)
        column = next(iter(METRICS[name].columns))
        (whole,) = METRICS[name].function(subject(None, image, saliency))[column]
        shape = (PIXELS - 1, -1, -1, -1)
        drawn = METRICS[name].function(subject(4, image.expand(shape), saliency.expand(shape[:3]), at))[
            column
        ]
        assert drawn.mean().item() == pytest.approx(whole.item(), abs=1e-12)
        assert drawn.std() > 1e-4

    def test_insertion_shares_the_images_of_deletion(self) -> None:
        """Those of the other order, from the end: asked for together or not, it is the same score."""
        images, saliency = noise(2, 3, SIDE, SIDE).double(), torch.rand(2, SIDE, SIDE).double()
        alone = insertion_curve(subject(4, images, saliency), "zero", "least")
        both = subject(4, images, saliency)
        deletion_curve(both, "zero", "most")
        torch.testing.assert_close(insertion_curve(both, "zero", "least"), alone, atol=1e-12, rtol=0)

    def test_the_draw_is_an_images_own(self) -> None:
        images, saliency = noise(6, 3, SIDE, SIDE).double(), torch.rand(6, SIDE, SIDE).double()
        first = subject(2, images, saliency).sampled_steps(PIXELS - 1)
        again = subject(2, images, 1 - saliency).sampled_steps(PIXELS - 1)  # another method's maps
        assert torch.equal(first, again)
        assert len({tuple(column) for column in first.T.tolist()}) > 1

    def test_no_fewer_steps_than_there_are_is_all_of_them(self) -> None:
        images, saliency = noise(2, 3, SIDE, SIDE).double(), torch.rand(2, SIDE, SIDE).double()
        whole, sampled = (deletion_curve(subject(n, images, saliency), "zero", "most") for n in (None, 15))
        assert torch.equal(whole, sampled)


CURVES = {"method": ("gradcam", "layercam", "flat"), "metrics": ("deletion", "insertion"), "steps": 16}


def rows(out: Path) -> dict[str, list[dict[str, str]]]:
    found = {}
    for path in sorted(out.glob("*/*/*.csv")):
        with path.open(newline="") as file:
            found[path.stem] = list(csv.DictReader(file))
    return found


class TestRuns:
    @pytest.mark.parametrize(("sample", "scored"), [(1, 1), (5, 5), (15, 15), (99, 15)])
    def test_passes(self, photos: Path, tmp_path: Path, sample: int, scored: int) -> None:
        settings = TINY | CURVES | {"data": str(photos), "batch_size": 6, "sample": sample}
        estimate, _ = dry_run(RunConfig(**settings, out=tmp_path), lambda line: None)
        TinyNet.passed.clear()
        run(photos, tmp_path, batch_size=6, sample=sample, **CURVES)
        expected = 1 + 2 + 3 * 2 * scored
        assert TinyNet.passed[-expected:] == [6] * expected
        assert estimate["passes"].tolist() == [expected]

    def test_batches_and_a_resumed_run_change_nothing(self, photos: Path, tmp_path: Path) -> None:
        weights = str(calibrated_weights(tmp_path))
        options = CURVES | {"sample": 4, "weights": weights}
        run(photos, tmp_path / "whole", batch_size=3, **options)
        run(photos, tmp_path / "parts", batch_size=3, limit=3, **options)
        run(photos, tmp_path / "parts", batch_size=3, **options)
        assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
        run(photos, tmp_path / "six", batch_size=6, **options)
        # Pixels of a CAM are nearly equal, and their order hangs on bits that a batch's size moves.
        three, six = (rows(tmp_path / name)["flat"] for name in ("whole", "six"))
        for one, other in zip(three, six, strict=True):
            assert float(one["deletion_auc"]) == pytest.approx(float(other["deletion_auc"]), abs=1e-5)

    def test_it_is_part_of_the_protocol(self, photos: Path, tmp_path: Path) -> None:
        run(photos, tmp_path, sample=4, **CURVES)
        with pytest.raises(UsageError, match="sample"):
            run(photos, tmp_path, sample=5, **CURVES)


@pytest.mark.parametrize(("sample", "said"), [(None, 0), (6, 0), (7, 1), (100, 1)])
def test_as_many_as_there_are_is_said_to_be_all(photos: Path, sample: int | None, said: int) -> None:
    """Of 8 steps the last one is the end of the curve."""
    lines: list[str] = []
    select(RunConfig(model=("resnet18",), data=str(photos), steps=8, sample=sample), lines.append)
    assert sum("all 8 steps are scored, as without it" in line for line in lines) == said
