"""Shares of images: their intervals are Wilson's and their tests McNemar's, also of 0."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from command_line import run
from report_data import analysis, blind, made_up, write_results
from scipy import stats

from camkit.entries import all_columns
from camkit.report.analysis import compare
from camkit.report.comparisons import comparison_frame
from camkit.report.statistics import holm
from camkit.report.tables import score_frame


def shares(images: int, *hits: int) -> dict[str, np.ndarray]:
    """IC of two methods and a control, (images,); the ones stand first."""
    return {
        name: made_up(images, number) | {"increase": (np.arange(images) < count).astype(float)}
        for number, (name, count) in enumerate(zip(("gradcam", "layercam", "flat"), hits, strict=True))
    }


def test_ic_and_certified_are_declared_as_shares():
    declared = all_columns()
    assert declared["increase"].share
    assert [name for name, column in declared.items() if column.share] == ["increase", "certified"]


def test_ic_of_0_on_24_images_may_be_up_to_14_percent(tmp_path):
    out = write_results(tmp_path, shares(24, 0, 9, 0))
    row = next(line for line in run("report", out).splitlines() if line.startswith("gradcam"))
    assert "0.00 ± 13.80" in row
    frame = pd.read_csv(io.StringIO(run("report", out, "--format", "csv"))).set_index(["method", "score"])
    wilson = stats.binomtest(9, 24).proportion_ci(method="wilson")
    low, high = frame.loc[("layercam", "increase"), ["low", "high"]]
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert frame.loc[("gradcam", "increase"), "high"] == pytest.approx(0.138, abs=5e-4)


def test_differences_in_ic_have_mcnemars_p_and_an_interval_of_some_width(tmp_path):
    found = compare(analysis(tmp_path, shares(24, 0, 9, 0)), baseline=0)
    place = found.analysis.block.columns.index("increase")
    rows = comparison_frame([found]).set_index(["method", "score"])
    layercam, flat = (found.analysis.block.methods.index(name) for name in ("layercam", "flat"))
    low, high = rows.loc[("layercam", "increase"), ["low", "high"]]
    assert 0 < low < 9 / 24 < high
    assert found.low[flat, place] == pytest.approx(-0.138, abs=5e-4)
    alone = compare(analysis(tmp_path / "alone", {n: {"increase": c["increase"]} for n, c in shares(24, 0, 9, 0).items()}), 0)  # fmt: skip # noqa: E501
    exact = np.array([stats.binomtest(9, 9).pvalue, 1.0])
    np.testing.assert_allclose(alone.p[[layercam, flat], 0], holm(exact))


def test_the_length_behind_a_value_is_that_of_the_longer_side(tmp_path):
    found = analysis(tmp_path, {"gradcam": made_up(30, 0), "flat": blind(30, 0.3, 0.2)})
    row = score_frame([found]).set_index(["method", "score"]).loc[("gradcam", "coherency")]
    assert row.value - row.low > 1.2 * (row.high - row.value)  # few low ones among many near 1
    text = run("report", tmp_path / "results")
    assert f"± {100 * (row.value - row.low):5.2f}" in next(
        s for s in text.splitlines() if s.startswith("gradcam")
    )
