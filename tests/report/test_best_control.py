"""The best control is chosen and tested on the same images: the dagger allows for that."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import run
from report_data import analysis

from camkit.report.analysis import Analysis
from camkit.report.statistics import holm


def controlled(images: int = 60, **others: float) -> dict[str, dict[str, np.ndarray]]:
    """Complexity only: a method at 0.2, and controls at the means given; `edges` is noisy, `flat` is not."""
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 1, images)
    noise = (noise - noise.mean()) / noise.std()
    cells = {"gradcam": {"complexity": 0.2 + 0.05 * noise}}
    for name, mean in others.items():
        noise = rng.normal(0, 1, images)
        noise = (noise - noise.mean()) / noise.std()
        spread = {"flat": 0.001, "edges": 0.3}[name]
        cells[name] = {"complexity": mean + spread * noise}
    return cells


def test_a_method_has_to_beat_every_control_not_only_the_one_that_looks_best(tmp_path):
    sure = analysis(tmp_path / "a", controlled(flat=0.24))
    assert sure.beats_control[0, 0] == 1
    both = analysis(tmp_path / "b", controlled(flat=0.24, edges=0.25))
    assert both.block.methods[both.best_control[0]] == "flat"  # which it beats, and yet
    assert both.beats_control[0, 0] == 0
    edges = both.common - both.common.only(both.block.methods.index("edges"))
    assert both.control_p[0, 0] == pytest.approx(edges.p_value[0, 0])
    worse = analysis(tmp_path / "c", controlled(flat=0.19))
    assert worse.control_p[0, 0] == 1 and worse.beats_control[0, 0] == 0


def test_the_dagger_is_corrected_over_the_methods_and_scores_of_its_table(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 60)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    better = 0.3 - 2.3 * 0.1 / np.sqrt(60) + 0.1 * noise  # t = -2.3: p = 0.025
    one = {"gradcam": {"complexity": better}, "flat": {"complexity": np.full(60, 0.3)}}
    assert analysis(tmp_path / "one", one).beats_control[0, 0] == 1
    more = {name: {"complexity": 0.3 + 0.1 * rng.normal(0, 1, 60)} for name in ("layercam", "hirescam")}
    found = analysis(tmp_path / "more", one | more)
    assert found.beats_control[0, 0] == 0
    raw = np.array([0.0250, 1, 1])
    assert found.control_p[0, 0] == pytest.approx(holm(raw)[0], rel=0.02)
    assert "†" in next(
        s for s in run("report", tmp_path / "more/results").splitlines() if s.startswith("gradcam")
    )
    assert "corrected (Holm) over the methods and scores" in run("report", tmp_path / "more/results")


def test_a_table_of_methods_no_better_than_controls_claims_one_is_in_5_percent_at_most(tmp_path):
    """200 tables of 4 methods and 3 controls, alike in distribution: the best control is chosen in each."""
    rng, wrong = np.random.default_rng(0), 0
    names = ("gradcam", "layercam", "hirescam", "xgradcam", "flat", "centre", "edges")
    first = analysis(tmp_path, {name: {"complexity": np.zeros(40)} for name in names})
    for _ in range(200):
        values = rng.beta(2, 5, (40, len(names), 1)) + rng.beta(2, 5, (40, 1, 1))
        block = type(first.block)(**{**vars_of(first.block), "values": values})
        wrong += bool(np.nansum(Analysis(block).beats_control))
    assert wrong <= 10


def vars_of(block: object) -> dict:
    return {name: getattr(block, name) for name in block.__dataclass_fields__}  # type: ignore[attr-defined]
