"""Which layer suits a model: made-up scores of several layers, and the p value by scipy."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from report_data import blind, made_up, write_results
from scipy import stats

from camkit.cli import main
from camkit.report.analysis import Analysis
from camkit.report.layers import choose, layer_grids
from camkit.report.study import Block, load_study

IMAGES = 60


def scores(seed: int, worse: float = 0.0) -> dict[str, np.ndarray]:
    """A small difference of every image, beside what is the same for all layers."""
    found = made_up(IMAGES, seed=1)
    noise = np.random.default_rng(seed).normal(worse, 0.02, IMAGES)
    found["complexity"] = (found["complexity"] + 0.2 + noise).clip(0, 1)
    return {"complexity": found["complexity"], "average_drop": found["average_drop"]}


def study(out: Path, layers: dict[str, dict], names: dict[str, list[str]] | None = None) -> list[Analysis]:
    for layer, cells in layers.items():
        write_results(out, cells, layer=layer, names=(names or {}).get(layer))
    return [Analysis(block) for block in load_study([out])]


def blocks(analyses: list[Analysis]) -> list[Block]:
    return [analysis.block for analysis in analyses]


def texts(grid) -> list[list[str]]:
    return [[f"{cell.text} {cell.detail}".strip() for cell in row] for group in grid.groups for row in group]


@pytest.fixture
def three(tmp_path: Path) -> list[Analysis]:
    """One layer is 10 points better than the others, for one of two methods."""
    control = blind(IMAGES, 0.3, 0.1)
    control = {name: control[name] for name in ("complexity", "average_drop")}
    return study(
        tmp_path,
        {
            "layer2": {"gradcam": scores(2, 0.1), "layercam": scores(3), "flat": control},
            "layer3": {"gradcam": scores(4, 0.1), "layercam": scores(5), "flat": control},
            "layer4": {"gradcam": scores(6), "layercam": scores(7, -0.007), "flat": control},
        },
    )


def test_the_best_layer_and_whether_it_is_shown(three: list[Analysis]) -> None:
    (grid,) = layer_grids(three)
    assert grid.title == "Which layer? resnet18 · rest (60 images)"
    assert grid.headings == ("method", "AD ↓", "Com ↓")
    gradcam, layercam = texts(grid)
    means = {a.block.layer: a.own for a in three}
    column = blocks(three)[0].columns.index("complexity")
    value, (low, high) = means["layer4"].value[0, column], (e[0, column] for e in means["layer4"].interval)
    assert gradcam[0] == "gradcam"
    assert gradcam[2] == f"layer4 {100 * value:.2f} ± {100 * max(high - value, value - low):.2f}"
    best = min(means, key=lambda layer: means[layer].value[1, column])
    assert layercam[2].startswith(f"≈{best} ")
    # The same of every image: no layer is better.
    assert gradcam[1].startswith("≈")
    assert [row[0] for row in texts(grid)] == ["gradcam", "layercam"]  # no control


def test_p_is_the_largest_of_the_paired_tests_times_their_number(three: list[Analysis]) -> None:
    block = blocks(three)[0]
    choice = choose(blocks(three), "layercam", block.scores)
    assert choice is not None
    column, row = block.columns.index("complexity"), block.methods.index("layercam")
    values = [one.values[:, row, column].astype(float) for one in blocks(three)]
    best = int(np.argmin([one.mean() for one in values]))
    assert choice.best[column] == best
    p = max(
        stats.ttest_rel(values[best], other).pvalue for place, other in enumerate(values) if place != best
    )
    assert 0.01 < choice.p[column] < 1
    # Where differences are skewed the report's test says less than Student's, never more.
    assert 1.999 * p <= choice.p[column] <= 2.6 * p


def test_only_images_that_every_layer_has(tmp_path: Path) -> None:
    names = {
        layer: [f"{n}.jpg" for n in range(start, start + IMAGES)] for layer, start in (("a", 0), ("b", 20))
    }
    analyses = study(tmp_path, {"a": {"gradcam": scores(2)}, "b": {"gradcam": scores(3)}}, names)
    choice = choose(blocks(analyses), "gradcam", blocks(analyses)[0].scores)
    assert choice is not None
    assert choice.images == 40
    column = blocks(analyses)[0].columns.index("complexity")
    means = [scores(2)["complexity"][20:].mean(), scores(3)["complexity"][:40].mean()]
    assert choice.value[column] == pytest.approx(min(means), rel=1e-5)


def test_no_table_for_a_single_layer(tmp_path: Path) -> None:
    assert layer_grids(study(tmp_path, {"a": {"gradcam": scores(2)}})) == []


def test_methods_of_no_single_layer_and_the_very_same_scores_are_left_out(tmp_path: Path) -> None:
    same = scores(2)
    analyses = study(
        tmp_path,
        {
            "a": {"gradcam": same, "rollout": scores(3), "layercam": scores(4)},
            "b": {"gradcam": same, "rollout": scores(5), "layercam": scores(6)},
        },
    )
    (grid,) = layer_grids(analyses)
    assert [row[0] for row in texts(grid)] == ["layercam"]


def test_a_layer_that_is_called_as_a_control_is_one(tmp_path: Path) -> None:
    analyses = study(tmp_path, {"flat": {"gradcam": scores(2)}, "edges": {"gradcam": scores(3, 0.1)}})
    (grid,) = layer_grids(analyses)
    assert texts(grid)[0][2].startswith("flat ")


def test_one_image_has_no_interval_and_nothing_is_shown(tmp_path: Path) -> None:
    cells = [{name: values[:1] for name, values in scores(seed).items()} for seed in (2, 3)]
    (grid,) = layer_grids(study(tmp_path, {"a": {"gradcam": cells[0]}, "b": {"gradcam": cells[1]}}))
    assert texts(grid)[0][2].endswith("± –")
    assert texts(grid)[0][2].startswith("≈")
    assert any("Only 1 image" in note for note in grid.notes)


def test_the_reports_have_it(three: list[Analysis], tmp_path: Path) -> None:
    runner = CliRunner()
    terminal = runner.invoke(main, ["report", str(tmp_path)])
    assert terminal.exit_code == 0
    text = click.unstyle(terminal.stdout)
    assert "Which layer? resnet18 · rest (60 images)" in text
    assert "not shown to beat every other layer" in text
    for ending, heading in ((".md", "### Which layer? resnet18"), (".html", ">Which layer? resnet18")):
        out = tmp_path / f"report{ending}"
        result = runner.invoke(
            main, ["report", str(tmp_path), "-o", str(out), *(["--no-photos"] * (ending == ".html"))]
        )
        assert result.exit_code == 0, result.output
        assert heading in out.read_text(encoding="utf-8")


def test_maps_that_do_not_depend_on_the_layer_are_no_audit_line(tmp_path: Path) -> None:
    same = scores(2)
    cells = {"rollout": same, "gradcam": same}
    three = study(tmp_path, {"a": cells, "b": cells})
    from camkit.report.tables import score_grid

    notes = " ".join(score_grid(three[0], blocks(three)).notes)
    assert "Identical to the cells of" in notes
    assert "rest: gradcam." in notes
