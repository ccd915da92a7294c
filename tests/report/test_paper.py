"""Results beside the published figures."""

import numpy as np
import pytest
from click.testing import CliRunner
from report_data import made_up, write_results

from camkit.cli import main
from camkit.report import paper
from camkit.report.analysis import Analysis
from camkit.report.study import load_study

PARTS = ("average_drop", "increase", "drop_in_deletion", "coherency", "complexity")


def published_scores(images: int, cell: tuple[str, str, str, str], **shift: float) -> dict[str, np.ndarray]:
    """Scores that vary between images and whose means are the published figures, but for `shift`."""
    row = paper.published().loc[cell]
    rng = np.random.default_rng(0)
    scores = {}
    for name in PARTS:
        noise = rng.normal(0, 0.1, images)
        scores[name] = row[name] + shift.get(name, 0.0) + noise - noise.mean()
    return scores | {"adcc": np.full(images, 0.5)}


def write_full(tmp_path, monkeypatch, images=400, model="resnet18", method="gradcam", **shift):
    """Results that count as the full set."""
    monkeypatch.setattr(paper, "FULL_SET", images)
    cell = (model, "conv", "rest", method)
    return write_results(tmp_path / "results", {method: published_scores(images, cell, **shift)}, model=model)


def run(*arguments, code=0):
    found = CliRunner().invoke(main, ["report", *map(str, arguments), "--against", "paper"])
    assert found.exit_code == code, found.output
    return found.output


def test_the_published_table_is_whole():
    """12 models x 10 methods x 6 scores of the main table; ADCC follows from its parts in each."""
    table = paper.published().xs(("conv", "rest"), level=("layer", "utility"))
    assert len(table) == 120 and table.notna().all(axis=None)
    adcc = 3 / (1 / table["coherency"] + 1 / (1 - table["complexity"]) + 1 / (1 - table["average_drop"]))
    np.testing.assert_allclose(table["adcc"], adcc, atol=2e-6)
    assert table.loc[("resnet18", "gradcam"), "adcc"] == pytest.approx(0.7694, abs=5e-5)


def test_a_full_set_that_agrees_is_reproduced(tmp_path, monkeypatch):
    text = run(write_full(tmp_path, monkeypatch), "--strict")
    assert "Full set: 6 of 6 figures are within 0.5 points of the paper's: reproduced." in text
    assert "‡−" not in text and "‡+" not in text


def test_a_full_set_that_is_off_fails_with_strict_only(tmp_path, monkeypatch):
    out = write_full(tmp_path, monkeypatch, increase=0.006)
    assert "5 of 6 figures" in run(out) and "‡+0.60" in run(out)
    assert "off (--strict)" in run(out, "--strict", code=1)


def test_a_difference_within_the_tolerance_is_not_off(tmp_path, monkeypatch):
    run(write_full(tmp_path, monkeypatch, increase=0.0049), "--strict")


def test_a_subset_is_judged_by_its_interval(tmp_path):
    cell = ("resnet18", "conv", "rest", "gradcam")
    near = published_scores(400, cell, increase=0.012)  # standard error 0.005: within 0.0098 + 0.005
    far = published_scores(400, cell, increase=0.03)
    for scores, expected in ((near, "6 of 6"), (far, "5 of 6")):
        text = run(write_results(tmp_path / expected, {"gradcam": scores}))
        assert f"Subset (400 images or more): {expected} figures are within" in text
        assert "at most about 0 would not be by chance alone. It cannot see differences below" in text


def test_strict_fails_where_no_figure_over_the_full_set_was_checked(tmp_path):
    cell = ("resnet18", "conv", "rest", "gradcam")
    out = write_results(tmp_path, {"gradcam": published_scores(40, cell)})
    assert "no figure was checked over the full set of 50,000 images (49,500 are enough)" in run(
        out, "--strict", code=1
    )


def test_a_missing_image_or_an_unpublished_short_method_hides_no_full_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FULL_SET", 400)
    cell = ("resnet18", "conv", "rest", "gradcam")
    full = published_scores(400, cell, increase=0.02)
    full["coherency"][7] = np.nan  # one image of one score
    short = {name: np.where(np.arange(400) < 100, column, np.nan) for name, column in full.items()}
    out = write_results(tmp_path, {"gradcam": full, "mine": short, "layercam": short})
    text = run(out, "--strict", code=1)
    assert "Full set: 5 of 6 figures" in text and "1 of 6 figures over the full set are off" in text
    assert "Subset (99 images or more)" in text


def test_more_than_one_percent_missing_is_a_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FULL_SET", 400)
    cell = ("resnet18", "conv", "rest", "gradcam")
    for images, word in ((396, "Full set: 6 of 6"), (395, "Subset (395 images")):
        out = write_results(tmp_path / str(images), {"gradcam": published_scores(images, cell)})
        assert word in run(out)


def test_an_artefact_without_images_makes_no_subset_of_none(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FULL_SET", 400)
    cells = {
        name: published_scores(400, ("vgg16", "conv", "rest", name)) for name in ("gradcam", "shapleycam")
    }
    cells["shapleycam"]["coherency"][:] = np.nan
    text = run(write_results(tmp_path, cells, model="vgg16"), "--strict")
    assert "Full set: 6 of 6" in text and "Subset" not in text


def test_the_interval_shrinks_as_the_subset_nears_the_full_set(tmp_path, monkeypatch):
    cell = ("resnet18", "conv", "rest", "gradcam")
    out = write_results(tmp_path, {"gradcam": published_scores(300, cell)})
    widths = []
    for full in (50_000, 400, 300):
        monkeypatch.setattr(paper, "FULL_SET", full)
        found = paper.check(Analysis(load_study([out])[0]))
        widths.append((found.high - found.low)[0, 0])
    assert widths[0] > widths[1] > widths[2] == pytest.approx(2 * paper.TOLERANCE)


def test_the_known_artefact_is_named_and_not_called_off(tmp_path, monkeypatch):
    out = write_full(tmp_path, monkeypatch, model="vgg16", method="shapleycam", average_drop=0.4)
    text = run(out)
    assert "figures are within" not in text
    assert "§+40.00" in text and "before it, for ShapleyCAM only" in text


def test_randomcam_wins_three_swins_in_the_published_table(tmp_path, monkeypatch):
    text = run(write_full(tmp_path, monkeypatch))
    line = next(line for line in text.splitlines() if line.startswith("Published, conv, rest"))
    assert "shapleycam on swin_l, swin_s and swin_t;" in line


def test_published_figures_that_contradict_each_other_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FULL_SET", 400)

    def lines(model, layer):
        cell = (model, layer, "rest", "gradcam")
        rows = {"gradcam": published_scores(400, cell)}
        out = write_results(tmp_path / f"{model}-{layer}", rows, model=model, layer=layer)
        return [line for line in run(out).splitlines() if "does not depend on the utility" in line]

    (line,) = lines("resnet18", "prepool")
    assert "52.80 here and 58.64 under log-softmax" in line
    assert not lines("resnet18", "conv") and not lines("swin_t", "prepool")


def test_another_protocol_is_left_out_by_name(tmp_path):
    cell = ("resnet18", "conv", "rest", "gradcam")
    paper, other = tmp_path / "paper", tmp_path / "other"
    write_results(paper, {"gradcam": published_scores(40, cell)})
    write_results(other, {"gradcam": made_up(40, 0)}, model="resnet50", protocol={"weights": "random"})
    reason = "is left out: weights is 'random', the paper's 'pretrained'"
    assert f"resnet50 · conv · rest · other {reason}" in run(paper, other)


def test_nothing_to_compare_is_an_error(tmp_path):
    out = write_results(tmp_path, {"gradcam": made_up(40, 0)}, model="tf_efficientnet_lite0")
    text = run(out, code=2)
    assert "nothing is published for it" in text and "The paper has efficientnet_b0" in text
