"""Loading results, marks, audit lines: what a block's scores are said to say."""

from dataclasses import replace

import numpy as np
import pytest
from report_data import analysis, blind, made_up, write_cell, write_results

from camkit.entries import METHODS
from camkit.errors import CamkitError, UsageError
from camkit.report.analysis import Analysis, compare
from camkit.report.audit import audit
from camkit.report.comparisons import compare_all, comparison_frame, comparison_grids, rank_tables
from camkit.report.study import load_study, source_names
from camkit.report.tables import score_frame

IMAGES = 60


def lines(tmp_path, cells, **settings) -> str:
    found = analysis(tmp_path, cells, **settings)
    return "\n".join(audit(found, [found.block]))


def test_scores_are_aligned_by_image(tmp_path):
    cells = {"gradcam": made_up(IMAGES, 0), "layercam": made_up(IMAGES, 1)}
    out = write_results(tmp_path / "results", cells)
    names = [f"img/{place:05}.jpg" for place in range(IMAGES)]
    shuffled = np.random.default_rng(0).permutation(IMAGES)
    write_cell(
        out / "resnet18" / "conv-rest",
        "layercam",
        {name: column[shuffled] for name, column in cells["layercam"].items()},
        [names[place] for place in shuffled],
    )
    (block,) = load_study([out])
    assert block.methods == ("gradcam", "layercam") and block.images == tuple(names)
    place = block.columns.index("average_drop")
    np.testing.assert_allclose(block.values[:, 1, place], cells["layercam"]["average_drop"], rtol=1e-6)
    assert block.top1 == 0.75


def test_controls_come_last_in_the_registrys_order(tmp_path):
    cells = dict.fromkeys(["randomcam", "edges", "shapleycam", "gradcam", "flat", "mine"], made_up(4, 0))
    (block,) = load_study([write_results(tmp_path, cells)])
    assert block.methods == ("gradcam", "shapleycam", "mine", "flat", "edges", "randomcam")
    assert block.controls.tolist() == [False] * 3 + [True] * 3


def test_the_torn_last_line_of_a_run_at_work_is_left_out_and_rows_of_an_image_are_merged(tmp_path):
    scores = made_up(3, 0)
    out = write_results(tmp_path, {"gradcam": scores})
    path = out / "resnet18" / "conv-rest" / "gradcam.csv"
    rows = path.read_text().splitlines()
    half = rows[1].split(",")
    first = ",".join([*half[:-1], ""])
    path.write_text("\n".join([rows[0], first, *rows[2:], rows[1], "img/00009.jpg,7,7,0.5,0.1"]))
    (block,) = load_study([out])
    assert block.images == ("img/00000.jpg", "img/00001.jpg", "img/00002.jpg")
    np.testing.assert_allclose(block.values[0, 0, block.columns.index("adcc")], scores["adcc"][0], rtol=1e-6)


def test_an_image_called_na_is_an_image(tmp_path):
    (block,) = load_study([write_results(tmp_path, {"gradcam": made_up(2, 0)}, names=["NA", "b.png"])])
    assert block.images == ("NA", "b.png")


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load_study([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no results found"):
        load_study([tmp_path])
    out = write_results(tmp_path / "results", {"gradcam": made_up(2, 0)})
    (out / "resnet18" / "conv-rest" / "gradcam.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CamkitError, match="not a table of scores"):
        load_study([out])


def test_best_and_second_share_their_place_where_they_look_the_same(tmp_path):
    scores = made_up(IMAGES, 0)
    raised = {name: column + (0.01 if name == "complexity" else 0) for name, column in scores.items()}
    nearly = {name: column + 1e-7 for name, column in scores.items()}
    found = analysis(
        tmp_path, {"gradcam": raised, "hirescam": nearly, "layercam": scores, "flat": blind(IMAGES, 0.01, 0)}
    )
    complexity = found.block.columns.index("complexity")
    assert found.block.methods == ("gradcam", "layercam", "hirescam", "flat")
    assert found.place[:, complexity].tolist() == [2, 1, 1, 0]


def test_a_method_that_does_not_beat_the_best_control_is_marked(tmp_path):
    weak, strong = made_up(IMAGES, 0), made_up(IMAGES, 0)
    weak["complexity"] = np.full(IMAGES, 0.3) + np.random.default_rng(1).normal(0, 0.1, IMAGES)
    weak["complexity"] += 0.3 - weak["complexity"].mean()
    strong["complexity"] = np.full(IMAGES, 0.2)
    cells = {
        "gradcam": weak,
        "layercam": strong,
        "flat": blind(IMAGES, 0.3, 0.2),
        "fake-cam": blind(IMAGES, 0.9, 0),
    }
    found = analysis(tmp_path, cells)
    complexity, drop = (found.block.columns.index(name) for name in ("complexity", "average_drop"))
    np.testing.assert_array_equal(found.beats_control[:, complexity], [0, 1, np.nan, np.nan])
    best = [found.block.methods[row] for row in found.best_control]
    assert (best[complexity], best[drop]) == ("flat", "fake-cam")
    assert found.blind_winners["coherency"] == "flat"
    assert "complexity" not in found.blind_winners


def test_a_score_that_a_map_wins_which_never_saw_the_image_gets_a_line(tmp_path):
    cells = {
        "gradcam": made_up(IMAGES, 0),
        "flat": blind(IMAGES, 0.6, 0.9),
        "fake-cam": blind(IMAGES, 1.0, 0.0),
    }
    text = lines(tmp_path, cells)
    assert "AD says nothing here: fake-cam, the same map for every image, has the best value." in text
    assert "Coh says nothing here: flat" in text


def test_a_method_says_itself_that_it_never_saw_the_image(tmp_path, monkeypatch):
    cells = {"gradcam": made_up(IMAGES, 0), "edges": blind(IMAGES, 1.0, 0.0)}
    assert "the same map for every image" not in lines(tmp_path / "seeing", cells)
    monkeypatch.setitem(METHODS._entries, "edges", replace(METHODS["edges"], blind=True))
    text = lines(tmp_path / "blind", cells)
    assert "AD and Coh say nothing here: edges, the same map for every image" in text


def test_randomcam_sees_the_image_and_its_win_is_no_such_line(tmp_path):
    best = made_up(IMAGES, 0) | {"average_drop": np.zeros(IMAGES)}
    assert "AD say" not in lines(tmp_path, {"gradcam": made_up(IMAGES, 1), "randomcam": best})


def test_without_controls_the_audit_says_so(tmp_path):
    assert "No controls here" in lines(tmp_path, {"gradcam": made_up(IMAGES, 0)})


def test_identical_and_nearly_identical_methods_are_named(tmp_path):
    scores = made_up(IMAGES, 0)
    nearly = scores | {"average_drop": scores["average_drop"] + 5e-6}
    text = lines(tmp_path, {"layercam": scores, "gradcam-e": scores, "hirescam": nearly})
    assert "layercam, gradcam-e and hirescam are the same but for rounding (at most 5e-06)" in text
    text = lines(tmp_path / "two", {"layercam": scores, "gradcam-e": scores})
    assert "layercam and gradcam-e are identical on every image." in text


def test_a_zero_hessian_term_is_named(tmp_path):
    scores = made_up(IMAGES, 0)
    text = lines(tmp_path, {"gradcam": scores, "shapleycam": scores, "layercam": made_up(IMAGES, 1)})
    assert "shapleycam is gradcam: its Hessian term was zero throughout." in text
    nearly = scores | {"average_drop": scores["average_drop"] + 5e-6}
    text = lines(tmp_path / "nearly", {"gradcam": scores, "shapleycam": nearly, "gradcam-e": scores})
    assert "shapleycam is gradcam: its Hessian term made no difference." in text
    assert "Hessian" not in lines(tmp_path / "other", {"gradcam": scores, "shapleycam": made_up(IMAGES, 1)})


def test_cells_identical_in_another_layer_are_named_but_not_controls(tmp_path):
    cells = {"gradcam": made_up(IMAGES, 0), "flat": blind(IMAGES, 0.3, 0.2)}
    out = write_results(tmp_path, cells)
    write_results(tmp_path, cells, layer="prepool")
    study = load_study([out])
    text = "\n".join(audit(Analysis(study[0]), study))
    assert "Identical to the cells of" in text and "prepool, rest: gradcam." in text


def test_flags_errors_and_few_images_are_reported(tmp_path):
    text = lines(
        tmp_path,
        {"gradcam": made_up(12, 0), "layercam": made_up(12, 1)},
        flags=[
            ("gradcam", "a.jpg", "degenerate"),
            ("gradcam", "b.jpg", "degenerate"),
            ("layercam", "a.jpg", "degenerate_masked"),
        ],
        errors=["x.jpg", "y.jpg"],
        failures=[("mine", "a.jpg"), ("mine", "b.jpg")],
    )
    assert "Only 12 images" in text
    assert "Degenerate maps (constant or not finite): gradcam 2." in text
    assert "coherency 0): layercam 1." in text
    assert "2 images could not be read" in text
    assert "a plugin failed (failures.csv): mine 2." in text


def test_missing_images_are_named_and_comparisons_use_those_that_all_have(tmp_path):
    first, second = made_up(IMAGES, 0), made_up(IMAGES, 1)
    second = {name: np.where(np.arange(IMAGES) < 40, column, np.nan) for name, column in second.items()}
    found = analysis(tmp_path, {"gradcam": first, "layercam": second})
    assert "Images are missing in some scores of layercam" in "\n".join(audit(found, [found.block]))
    drop = found.block.columns.index("average_drop")
    assert found.own.value[0, drop] == pytest.approx(first["average_drop"].mean(), rel=1e-6)
    assert found.common.value[0, drop] == pytest.approx(first["average_drop"][:40].mean(), rel=1e-6)
    assert found.common_images[drop] == 40
    expected = (second["average_drop"] - first["average_drop"])[:40].mean()
    assert compare(found, 0).difference[1, drop] == pytest.approx(expected, rel=1e-5)


def test_shares_of_images_are_of_those_that_the_difference_is_over(tmp_path):
    """A third method lacks the images on which the second wins."""
    first, second, third = (made_up(4, 0) for _ in range(3))
    second["average_drop"] = first["average_drop"] + np.array([0.1, 0.1, -0.1, -0.1])
    third["average_drop"] = np.array([0.5, 0.5, np.nan, np.nan])
    found = compare(analysis(tmp_path, {"gradcam": first, "layercam": second, "hirescam": third}), 0)
    drop = found.analysis.block.columns.index("average_drop")
    row = found.analysis.block.methods.index("layercam")
    assert found.difference[row, drop] == pytest.approx(0.1, rel=1e-5)
    assert (found.won[row, drop], found.tied[row, drop]) == (0, 0)


def test_holms_family_holds_only_what_has_a_better_side(tmp_path):
    scores = {name: made_up(IMAGES, 0)[name] for name in ("average_drop", "complexity")}
    other = {name: made_up(IMAGES, 1)[name] for name in ("average_drop", "complexity")}
    few = compare(analysis(tmp_path / "few", {"gradcam": scores, "layercam": other}), 0)
    rng = np.random.default_rng(2)
    more = [one | {"nonadditivity": rng.random(IMAGES)} for one in (scores, other)]
    found = compare(analysis(tmp_path / "more", {"gradcam": more[0], "layercam": more[1]}), 0)
    assert found.analysis.block.columns == ("average_drop", "complexity", "nonadditivity")
    np.testing.assert_allclose(found.p[1], [*few.p[1], np.nan])
    assert np.isnan(found.won[1, 2]) and not found.same[1, 2]


def test_what_cannot_be_asked_is_no_statement(tmp_path):
    """Deletion is there for one method only: it is neither worse, nor the same, nor better than a control."""
    first = made_up(IMAGES, 0, curves=True)
    flat = blind(IMAGES, 0.3, 0.2, deletion_auc=0.9)
    study = [analysis(tmp_path, {"gradcam": first, "layercam": made_up(IMAGES, 1), "flat": flat})]
    frame = score_frame(study).set_index(["method", "score"])
    assert frame.loc[("layercam", "deletion_auc"), "beats_best_control"] == ""
    assert frame.loc[("gradcam", "deletion_auc"), "beats_best_control"] is True
    found = compare_all(study, "gradcam")
    rows = comparison_frame(found).set_index(["method", "score"])
    assert rows.loc[("layercam", "deletion_auc"), "told_apart"] == ""
    (grid,) = [grid for grid in comparison_grids(found[0]) if "Deletion" in grid.title]
    assert not any("layercam" in note for note in grid.notes)


def test_a_block_without_a_known_score_is_left_out_with_a_line(tmp_path):
    write_results(tmp_path, {"gradcam": made_up(5, 0)})
    write_results(tmp_path, {"gradcam": {"sharpness": np.ones(5)}}, model="vgg16")
    said = []
    (block,) = load_study([tmp_path], said.append)
    assert block.model == "resnet18"
    assert said == ["vgg16 · conv · rest is left out: no metric here declares any of its scores (sharpness)."]
    out = write_results(tmp_path / "alone", {"gradcam": {"sharpness": np.ones(5)}})
    with pytest.raises(UsageError, match="--plugin FILE"):
        load_study([out])


def test_methods_of_a_package_that_is_not_installed_can_be_read(tmp_path):
    names = ("grad_cam:NoSuchCAM", "torchcam:NoSuchCAM", "captum:NoSuch", "aumann-99", "gradcam")
    (block,) = load_study([write_results(tmp_path, {name: made_up(5, 0) for name in names})])
    assert block.methods[0] == "gradcam" and not block.controls.any()


def test_folders_of_the_same_name_are_told_apart_by_those_above_them(tmp_path):
    folders = [tmp_path / place for place in ("a/run", "b/run", "b/other", "run")]
    assert source_names(folders) == ["a/run", "b/run", "other", f"{tmp_path.name}/run"]
    for folder in folders[:2]:
        write_results(folder, {"gradcam": made_up(5, 0)})
    study = load_study([*folders[:2], folders[0] / ".." / "run"])
    assert [block.source for block in study] == ["a/run", "b/run"]
    assert study[1].title.startswith("resnet18 · conv · rest · b/run (5 images")


def test_a_model_in_two_folders_counts_once_in_a_ranking(tmp_path):
    for folder in ("a/run", "b/run"):
        for number, model in enumerate(("resnet18", "vgg16")):
            cells = {"gradcam": made_up(20, number), "layercam": made_up(20, number + 9)}
            write_results(tmp_path / folder, cells, model=model)
    study = load_study([tmp_path / "a/run", tmp_path / "b/run"])
    tables = [one for one in rank_tables([Analysis(block) for block in study]) if one.score.short == "ADCC"]
    assert [one.models for one in tables] == [("resnet18", "vgg16")] * 2
    assert [one.title for one in tables] == [
        f"conv · rest · {folder}/run · ADCC ↑, average rank over 2 families of 2 models" for folder in "ab"
    ]


def test_comparison_by_hand(tmp_path):
    scores = made_up(4, 0) | {"average_drop": np.array([0.1, 0.2, 0.3, 0.4])}
    other = scores | {"average_drop": np.array([0.2, 0.1, 0.1, 0.4])}
    found = compare(analysis(tmp_path, {"gradcam": scores, "layercam": other}), baseline=0)
    drop = found.analysis.block.columns.index("average_drop")
    assert found.difference[1, drop] == pytest.approx(-0.05)
    assert (found.won[1, drop], found.tied[1, drop]) == (0.5, 0.25)
    assert np.isnan(found.p[0]).all()


def test_a_clear_difference_is_told_apart_and_a_method_from_itself_is_not(tmp_path):
    scores = made_up(IMAGES, 0)
    better = scores | {"complexity": scores["complexity"] - 0.05}
    found = compare(analysis(tmp_path, {"gradcam": scores, "layercam": better, "gradcam-e": scores}), 0)
    complexity = found.analysis.block.columns.index("complexity")
    assert found.analysis.block.methods == ("gradcam", "layercam", "gradcam-e")
    assert found.apart[:, complexity].tolist() == [False, True, False]
    assert found.same[2].all() and not found.apart[2].any()


def test_a_score_that_only_some_methods_have_leaves_the_others_alone(tmp_path):
    first = made_up(IMAGES, 0, curves=True)
    found = analysis(tmp_path, {"gradcam": first, "layercam": made_up(IMAGES, 1)})
    deletion = found.block.columns.index("deletion_auc")
    assert found.common_images.tolist() == [IMAGES] * 8
    assert np.isnan(found.own.value[1, deletion])
    assert found.place[:, deletion].tolist() == [1, 0]
