"""Grades of made-up scores whose grades are known, and what reports say of truth and ceilings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from corners import CORNER_RUN, colour_photos
from report_data import write_results

from camkit.cli import main
from camkit.config import RunConfig
from camkit.report import audit, comparisons, grade_tables, grades
from camkit.report.analysis import Analysis
from camkit.report.exchange import paid
from camkit.report.grades import Grade
from camkit.report.study import load_study
from camkit.report.tables import score_grid
from camkit.runs.bench import bench

MOSAIC = {"mosaic": 2, "confidence": 0.9}
MOSAICS = 40
TILES = [f"mosaic/{number:05}#{tile}" for number in range(MOSAICS) for tile in range(1, 5)]
MOVED = ("moved-10", "moved-25", "moved-50", "moved-100")
Cells = dict[str, dict[str, np.ndarray]]


def each(value: float, tiles: int = 4 * MOSAICS) -> np.ndarray:
    return np.full(tiles, value)


def graded(out: Path) -> dict[str, Grade]:
    (report,) = grades.grade(load_study([out], altered=True))
    return {one.score.name: one for one in report.grades}


def write_mosaics(
    out: Path, cells: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str] = TILES
) -> Path:
    return write_results(out, cells, names=names, protocol=MOSAIC)


def changed(
    whole: float, losses: Sequence[float], gains: Sequence[float], column: str = "drop_in_deletion"
) -> Cells:
    """A method, four shares of it in a wrong tile, and three changes of its histogram."""
    scores = [whole, *(whole - loss for loss in losses), *(whole + gain for gain in gains)]
    names = ["hirescam", *(f"hirescam~{change}" for change in (*MOVED, "sqrt", "square", "raised"))]
    return {
        name: {"energy": each(0.9), column: each(score)} for name, score in zip(names, scores, strict=True)
    }


class TestExchange:
    def test_by_hand(self, tmp_path: Path) -> None:
        """A gain of 0.05 lies 3/8 of the way from the loss at 10 % (0.02) to that at 25 % (0.1)."""
        cells = changed(0.8, (0.02, 0.1, 0.3, 0.6), (0.05, -0.02, 0))
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert (one.base, one.noticed, one.mosaics) == ("hirescam", 0.1, MOSAICS)
        assert one.paid == one.paid_low == one.paid_high == pytest.approx(0.1 + 0.15 * 3 / 8)
        assert one.passed["noticed"]
        assert not one.passed["paid"]

    def test_a_score_that_is_better_lower(self, tmp_path: Path) -> None:
        losses, gains = (-0.02, -0.1, -0.3, -0.6), (-0.05, 0.02, 0)
        cells = changed(0.1, losses, gains, "average_drop")
        one = graded(write_mosaics(tmp_path, cells))["average_drop"]
        assert one.noticed == 0.1
        assert one.paid == pytest.approx(0.1 + 0.15 * 3 / 8)

    def test_a_score_with_its_sign_wrong_notices_nothing_and_pays_for_all(self, tmp_path: Path) -> None:
        cells = changed(0.4, (-0.02, -0.1, -0.3, -0.5), (0.05, -0.02, 0))
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert one.noticed == one.paid == np.inf
        assert not one.passed["noticed"]

    def test_what_is_noticed_in_95_percent_of_the_mosaics(self, tmp_path: Path) -> None:
        """Of 40 mosaics three do not fall at 10 %, and two do not at 25 %."""
        cells = changed(0.8, (0.02, 0.1, 0.3, 0.6), (0, 0, 0))
        for change, mosaics in (("moved-10", 3), ("moved-25", 2)):
            cells[f"hirescam~{change}"]["drop_in_deletion"][: 4 * mosaics] = 0.8
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert (one.noticed, one.paid) == (0.25, 0)
        assert one.worse == (37 / 40, 38 / 40, 1, 1)

    def test_maps_in_a_wrong_place_do_not_count(self, tmp_path: Path) -> None:
        """Half of the mosaics have a map with an energy of 0.3, and there moving it helps."""
        cells = changed(0.8, (0.02, 0.1, 0.3, 0.6), (0.05, 0, 0))
        for name, scores in cells.items():
            scores["energy"][: 2 * MOSAICS] = 0.3
            scores["drop_in_deletion"][: 2 * MOSAICS] = 0.1 if name == "hirescam" else 0.9
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert (one.noticed, one.mosaics) == (0.1, MOSAICS // 2)
        assert one.paid == pytest.approx(0.1 + 0.15 * 3 / 8)

    def test_mosaics_are_the_units(self, tmp_path: Path) -> None:
        """In each, one tile rises by little and three fall: all mosaics notice it."""
        cells = changed(0.8, (0.04, 0.1, 0.3, 0.6), (0.05, 0, 0))
        cells["hirescam~moved-10"]["drop_in_deletion"][::4] = 0.81
        cells["hirescam~sqrt"]["drop_in_deletion"][: 2 * MOSAICS] = 0.8  # no gain in half of them
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert one.noticed == 0.1
        assert one.paid_low < one.paid < one.paid_high
        assert 0.05 < one.paid < 0.15

    def test_a_score_of_signed_maps_is_held_against_the_map_without_its_sign(self, tmp_path: Path) -> None:
        """0.3 is lost with the sign; what moves loses 0.02 more, and a root gains 0.05."""
        cells = changed(0.5, (0.02, 0.1, 0.3, 0.6), (0.05, -0.02, 0), "single_deletion")
        cells["hirescam"]["single_deletion"] = each(0.8)
        assert np.isnan(graded(write_mosaics(tmp_path / "lacks", cells))["single_deletion"].noticed)
        cells["hirescam~same"] = {"energy": each(0.9), "single_deletion": each(0.5)}
        one = graded(write_mosaics(tmp_path / "has", cells))["single_deletion"]
        assert (one.base, one.noticed) == ("hirescam", 0.1)
        assert one.paid == pytest.approx(0.1 + 0.15 * 3 / 8)

    def test_a_single_mosaic(self, tmp_path: Path) -> None:
        cells = changed(0.8, (0.02, 0.1, 0.3, 0.6), (0.05, -0.02, 0))
        one = {name: {column: values[:4] for column, values in cell.items()} for name, cell in cells.items()}
        write_mosaics(tmp_path, one, TILES[:4])
        (report,) = grades.grade(load_study([tmp_path], altered=True))
        assert any("Fewer than 20" in note for note in report.notes)
        (found,) = report.grades
        assert found.noticed == 0.1
        assert np.isnan([found.chance, found.images]).all()

    def test_without_changed_maps(self, tmp_path: Path) -> None:
        write_mosaics(tmp_path, {"hirescam": changed(0.8, (0,) * 4, (0,) * 3)["hirescam"]})
        (report,) = grades.grade(load_study([tmp_path], altered=True))
        assert any("no exchange rate" in note for note in report.notes)
        assert all(np.isnan([one.noticed, *one.worse]).all() for one in report.grades)


@pytest.mark.parametrize(
    ("effects", "share"),
    [
        ((0.1, 0.2, 0.4, 0.8, 0.1, 0, 0), 0.1),
        ((0.1, 0.2, 0.4, 0.8, 0.05, -1, -1), 0.05),
        ((0.1, 0.2, 0.4, 0.8, 0, 0.6, 0), 0.75),
        ((0.1, 0.2, 0.4, 0.8, 0, 0, 0.8), 1.0),
        ((0.1, 0.2, 0.4, 0.8, 0, 0, 0.81), np.inf),
        ((0.1, 0.2, 0.4, 0.8, -0.1, -0.2, -0.3), 0.0),
        ((-0.1, 0.2, 0.4, 0.8, 0, 0.1, 0), 0.175),
    ],
)
def test_paid_by_hand(effects: tuple[float, ...], share: float) -> None:
    assert paid(np.array(effects)) == pytest.approx(share)


class TestAgreement:
    """Energies 0.9, 0.7, 0.5, 0.45 and a control of 0.25: nine of ten pairs are more than 0.1 apart."""

    ENERGY = {"gradcam": 0.9, "hirescam": 0.7, "layercam": 0.5, "xgradcam": 0.45, "flat": 0.25}

    def write(self, out: Path, scores: Sequence[float], **more: float) -> Path:
        cells = {
            name: {"energy": each(energy), "drop_in_deletion": each(score)}
            for (name, energy), score in zip((self.ENERGY | more).items(), scores, strict=True)
        }
        return write_mosaics(out, cells)

    def test_by_hand(self, tmp_path: Path) -> None:
        """The control's score is above that of two methods: two pairs are wrong, and one that is no pair."""
        one = graded(self.write(tmp_path, (0.9, 0.8, 0.1, 0.2, 0.3)))["drop_in_deletion"]
        assert (one.pairs, one.agreement) == (9, pytest.approx(7 / 9))
        assert not one.passed["agreement"]

    def test_ceilings_and_changed_maps_are_no_methods(self, tmp_path: Path) -> None:
        more = {"region": 0.99, "drops-4": 0.6, "hirescam~sqrt": 0.1, "gradcam~moved-25": 0.5}
        one = graded(self.write(tmp_path, (0.9, 0.8, 0.7, 0.6, 0.3, 0, 0, 1, 1), **more))["drop_in_deletion"]
        assert (one.pairs, one.agreement) == (9, 1)

    def test_methods_with_the_same_maps_count_once(self, tmp_path: Path) -> None:
        out = self.write(tmp_path, (0.9, 0.8, 0.7, 0.6, 0.3))
        drawn = np.random.default_rng(0).random((3, len(TILES), 4, 5)).astype(np.float32)
        maps = {"gradcam": drawn[0], "hirescam": 2 * drawn[0], "layercam": drawn[1], "xgradcam": drawn[2]}
        for name, one in maps.items():
            np.savez(out / "resnet18" / "conv-rest" / f"{name}.npz", images=np.array(TILES), maps=one)
        assert graded(out)["drop_in_deletion"].pairs == 5  # of gradcam, layercam, xgradcam and flat

    def test_maps_of_another_grid_are_other_maps(self, tmp_path: Path) -> None:
        out = self.write(tmp_path, (0.9, 0.8, 0.7, 0.6, 0.3))
        for name, side in (("gradcam", 4), ("hirescam", 5)):
            maps = np.ones((len(TILES), side, side), dtype=np.float32)
            np.savez(out / "resnet18" / "conv-rest" / f"{name}.npz", images=np.array(TILES), maps=maps)
        assert graded(out)["drop_in_deletion"].pairs == 9


def photo_cells(images: int, means: Mapping[str, float], noise: float, **columns: np.ndarray) -> Cells:
    drawn = np.random.default_rng(1)
    return {
        name: {"drop_in_deletion": mean + noise * drawn.standard_normal(images), **columns}
        for name, mean in means.items()
    }


class TestChance:
    def grade(self, out: Path, means: Mapping[str, float]) -> Grade:
        return graded(write_results(out, photo_cells(100, means, 0.1)))["drop_in_deletion"]

    def test_a_method_that_beats_all_controls(self, tmp_path: Path) -> None:
        one = self.grade(tmp_path, {"gradcam": 0.5, "hirescam": 0.7, "flat": 0.4, "edges": 0.5})
        assert one.chance == 1

    def test_one_that_is_no_better_than_a_single_control(self, tmp_path: Path) -> None:
        one = self.grade(tmp_path, {"gradcam": 0.5, "hirescam": 0.7, "flat": 0.1, "blocks-16": 0.72})
        assert one.chance == 0
        assert not one.passed["chance"]

    def test_a_ceiling_is_not_the_best_method(self, tmp_path: Path) -> None:
        one = self.grade(tmp_path, {"gradcam": 0.5, "drops-4": 0.9, "flat": 0.51})
        assert one.chance == 0

    def test_another_family_member_is_a_control_too(self, tmp_path: Path) -> None:
        assert self.grade(tmp_path, {"gradcam": 0.5, "blocks-5": 0.9}).chance == 0

    def test_a_control_without_the_score_is_not_asked(self, tmp_path: Path) -> None:
        cells = photo_cells(100, {"gradcam": 0.7, "flat": 0.3, "edges": 0.5}, 0.1)
        cells["edges"]["drop_in_deletion"][:] = np.nan
        assert graded(write_results(tmp_path / "one", cells))["drop_in_deletion"].chance == 1
        cells["flat"]["drop_in_deletion"][:] = np.nan
        assert np.isnan(graded(write_results(tmp_path / "none", cells))["drop_in_deletion"].chance)

    def test_without_controls_nothing_is_said(self, tmp_path: Path) -> None:
        assert np.isnan(self.grade(tmp_path, {"gradcam": 0.5, "hirescam": 0.7}).chance)


class TestArea:
    def grade(self, out: Path, share: float) -> float:
        """A score that is the map's shape but for noise; images differ, which says nothing of maps."""
        drawn = np.random.default_rng(0)
        cells, images = {}, drawn.normal(0, 5, 200)
        for name in ("gradcam", "hirescam", "layercam", "flat"):
            complexity, roughness, noise = drawn.standard_normal((3, 200))
            score = share * (0.8 * complexity - 0.6 * roughness) + (1 - share**2) ** 0.5 * noise
            cells[name] = {
                "drop_in_deletion": images + score,
                "complexity": complexity,
                "roughness": roughness,
            }
        return graded(write_results(out, cells))["drop_in_deletion"].area

    def test_by_construction(self, tmp_path: Path) -> None:
        assert self.grade(tmp_path / "all", 1.0) == pytest.approx(1)
        assert self.grade(tmp_path / "half", 0.5**0.5) == pytest.approx(0.5, abs=0.08)
        assert self.grade(tmp_path / "none", 0.0) == pytest.approx(0, abs=0.02)

    def test_without_the_shape_it_is_not_known(self, tmp_path: Path) -> None:
        write_results(tmp_path, photo_cells(50, {"gradcam": 0.5, "flat": 0.3}, 0.1))
        assert np.isnan(graded(tmp_path)["drop_in_deletion"].area)


class TestImages:
    MEANS = {"gradcam": 0.1, "hirescam": 0.2, "layercam": 0.3, "xgradcam": 0.4, "flat": 0.9}

    @pytest.mark.parametrize(("noise", "images"), [(0.0, 10), (5.0, np.inf)])
    def test_ends(self, tmp_path: Path, noise: float, images: float) -> None:
        write_results(tmp_path, photo_cells(120, self.MEANS, noise))
        assert graded(tmp_path)["drop_in_deletion"].images == images

    def test_more_noise_takes_more_images(self, tmp_path: Path) -> None:
        found = []
        for noise in (0.1, 0.4, 0.8):
            write_results(tmp_path / str(noise), photo_cells(1000, self.MEANS, noise))
            found.append(graded(tmp_path / str(noise))["drop_in_deletion"].images)
        assert found == sorted(found)
        assert 10 <= found[0] < found[2] < np.inf

    def test_too_few_methods_have_no_ranking(self, tmp_path: Path) -> None:
        write_results(tmp_path, photo_cells(120, {"gradcam": 0.5, "hirescam": 0.7, "flat": 0.3}, 0.1))
        assert np.isnan(graded(tmp_path)["drop_in_deletion"].images)


class TestCommand:
    def results(self, out: Path) -> tuple[Path, Path]:
        mosaics = write_mosaics(out / "mosaics", changed(0.8, (0.02, 0.1, 0.3, 0.6), (0.05, -0.02, 0)))
        means = {"gradcam": 0.5, "hirescam": 0.7, "layercam": 0.6, "flat": 0.3}
        photos = write_results(
            out / "photos", photo_cells(100, means, 0.1, complexity=np.linspace(0, 1, 100))
        )
        return mosaics, photos

    def test_mosaics_and_photos_together(self, tmp_path: Path) -> None:
        mosaics, photos = self.results(tmp_path)
        result = CliRunner().invoke(main, ["grade", str(mosaics), str(photos)])
        assert result.exit_code == 0, result.output
        (row,) = (line for line in result.output.splitlines() if line.strip().startswith("ADD"))
        assert "10 %" in row
        assert "16 % (16 % to 16 %) ×" in row
        assert "100 %" in row
        assert "40 mosaics, 160 images; 100 images" in result.output
        assert "Energy" not in [line.split()[0] for line in result.output.splitlines() if line.split()]

    def test_as_csv(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["grade", *map(str, self.results(tmp_path)), "--format", "csv"])
        rows = {row["score"]: row for row in csv.DictReader(result.output.splitlines())}
        assert set(rows) == {"drop_in_deletion", "complexity"}
        row = rows["drop_in_deletion"]
        assert (row["noticed"], row["chance"], row["mosaics"], row["missed"]) == ("0.1", "1", "40", "paid")
        assert float(row["paid"]) == pytest.approx(0.15625)
        assert [row[f"worse_{t}"] for t in (10, 25, 50, 100)] == ["1"] * 4
        assert rows["complexity"]["noticed"] == ""

    def test_two_results_of_a_kind_are_not_pooled(self, tmp_path: Path) -> None:
        _, photos = self.results(tmp_path)
        other = write_results(tmp_path / "other", photo_cells(50, {"gradcam": 0.5, "flat": 0.3}, 0.1))
        (report,) = grades.grade(load_study([photos, other], altered=True))
        assert report.block.size == "100 images"
        assert "Left out, as there are other results of this model, layer and utility: other." in report.notes
        assert any("nothing is said of place" in note for note in report.notes)

    def test_mosaics_without_energy(self, tmp_path: Path) -> None:
        cells = {name: {"drop_in_deletion": each(0.5)} for name in ("hirescam", "flat")}
        (report,) = grades.grade(load_study([write_mosaics(tmp_path, cells)], altered=True))
        assert any("--metrics localisation" in note for note in report.notes)

    def test_the_table_has_a_mark_for_every_threshold_that_is_missed(self, tmp_path: Path) -> None:
        (report,) = grades.grade(load_study([self.results(tmp_path)[0]], altered=True))
        grid = grade_tables.grade_grid(report)
        (row,) = grid.groups[0]
        assert grid.headings == grade_tables.HEADINGS
        assert [entry.text for entry in row] == [
            *("ADD ↑", "10 %", "16 % (16 % to 16 %) ×", "", "", "", "", "2"),
        ]  # fmt: skip

    def test_changed_maps_stand_in_no_other_table(self, tmp_path: Path) -> None:
        mosaics, _ = self.results(tmp_path)
        result = CliRunner().invoke(main, ["report", str(mosaics)])
        assert result.exit_code == 0, result.output
        assert "~" not in result.output


def test_a_page_of_mosaics(tmp_path: Path) -> None:
    """A real run over mosaics, with maps: tables, grades, gallery and what chance and the region have."""
    photos = colour_photos(tmp_path / "photos")
    methods = ("hirescam", "gradcam", "layercam", "hirescam~all", "region", "flat", "blocks-8")
    settings = {"method": methods, "metrics": ("localisation", "null", "average_drop", "shape"), "limit": 3}
    settings |= {"data": f"mosaic:{photos}", "out": tmp_path / "out", "save_maps": True}
    bench(RunConfig(**CORNER_RUN | settings), lambda line: None)
    page = tmp_path / "report.html"
    result = CliRunner().invoke(
        main, ["report", str(tmp_path / "out"), "--data", str(photos), "-o", str(page)]
    )
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "What the scores are worth" in text
    assert "3 mosaics, 12 images" in text
    assert "chance is 25.00." in text
    assert "through the layer" in text
    shown, _, _ = text.partition('<section id="provenance">')
    assert "~moved" not in shown
    assert text.count("data:image/jpeg") == 3  # a mosaic's tiles share its picture
    assert "not in --data" not in result.output


def block_of(out: Path) -> Analysis:
    (block,) = load_study([out])
    return Analysis(block)


class TestReports:
    CELLS = {
        "gradcam": {"energy": each(0.8), "region_share": each(0.25), "null_share": each(0.9)},
        "hirescam": {"energy": each(0.7), "region_share": each(0.25), "null_share": each(1e-6)},
        "region": {"energy": each(0.95), "region_share": each(0.25), "null_share": each(1.0)},
        "flat": {"energy": each(0.25), "region_share": each(0.25), "null_share": each(np.nan)},
    }

    def test_localisation_shows_chance_and_ceiling(self, tmp_path: Path) -> None:
        analysis = block_of(write_mosaics(tmp_path, self.CELLS))
        lines = audit.audit(analysis, [analysis.block])
        assert "Energy: chance is 25.00." in lines
        assert "The region itself, through the layer's grid (region), has Energy 95.00." in lines

    def test_a_ceiling_that_is_not_known_is_asked_for(self, tmp_path: Path) -> None:
        cells = {name: scores for name, scores in self.CELLS.items() if name != "region"}
        analysis = block_of(write_mosaics(tmp_path, cells))
        assert any("--method region" in line for line in audit.audit(analysis, [analysis.block]))

    def test_axioms_are_passed_or_not(self, tmp_path: Path) -> None:
        analysis = block_of(write_mosaics(tmp_path, self.CELLS))
        assert "Null is passed (0 but for rounding, on every image) by: hirescam." in audit.audit(
            analysis, [analysis.block]
        )

    def test_one_image_that_fails_is_a_failure(self, tmp_path: Path) -> None:
        cells = {name: dict(scores) for name, scores in self.CELLS.items()}
        cells["hirescam"]["null_share"] = each(0.0)
        cells["hirescam"]["null_share"][17] = 0.01
        analysis = block_of(write_mosaics(tmp_path, cells))
        assert "Null is passed (0 but for rounding, on every image) by: none." in audit.audit(
            analysis, [analysis.block]
        )

    def test_empty_maps_are_counted(self, tmp_path: Path) -> None:
        flags = [("gradcam", TILES[0], "empty_map"), ("gradcam", TILES[1], "empty_null_map")]
        out = write_results(tmp_path, self.CELLS, names=TILES, protocol=MOSAIC, flags=flags)
        counts = {"gradcam": {"empty_map": 1, "empty_null_map": 1}}
        analysis = block_of(out)
        lines = audit.audit(analysis, [analysis.block])
        assert analysis.block.flags == {
            (name, flag): n for name, of in counts.items() for flag, n in of.items()
        }
        assert "Empty maps (energy and pointing of chance): gradcam 1." in lines
        assert any(line.startswith("Empty maps of the network that is blind") for line in lines)

    def test_a_ceiling_is_neither_the_best_method_nor_a_control(self, tmp_path: Path) -> None:
        analysis = block_of(write_mosaics(tmp_path, self.CELLS))
        energy = analysis.block.columns.index("energy")
        rows = {name: row for row, name in enumerate(analysis.block.methods)}
        assert list(analysis.block.methods) == ["gradcam", "hirescam", "flat", "region"]
        assert [analysis.place[rows[name], energy] for name in rows] == [1, 2, 0, 0]
        assert np.isnan(analysis.control_p[rows["region"]]).all()
        assert analysis.best_control is not None
        assert analysis.best_control[energy] == rows["flat"]
        grid = score_grid(analysis, [analysis.block])
        assert [[row[0].text for row in group] for group in grid.groups] == [
            ["gradcam", "hirescam"], ["flat"], ["region"], ["best control"],
        ]  # fmt: skip

    def test_mosaics_are_counted_not_tiles(self, tmp_path: Path) -> None:
        analysis = block_of(write_mosaics(tmp_path, self.CELLS))
        assert analysis.block.counts.max() == MOSAICS
        assert "40 mosaics, 160 images" in analysis.block.title


class TestAcross:
    def test_by_hand(self, tmp_path: Path) -> None:
        """hirescam beats gradcam under two of three protocols, layercam loses under one."""
        drawn = np.random.default_rng(0)
        for number, (hires, layer) in enumerate(((0.8, 0.5), (0.8, 0.5), (0.5, 0.2))):
            cells = {
                name: {"drop_in_deletion": mean + 0.01 * drawn.standard_normal(60)}
                for name, mean in (("gradcam", 0.5), ("hirescam", hires), ("layercam", layer))
            }
            write_results(tmp_path / str(number), cells, layer=("conv", "prepool", "conv")[number])
        folders = [tmp_path / str(number) for number in range(3)]
        found = comparisons.compare_all([Analysis(block) for block in load_study(folders)], "gradcam")
        (grid,) = comparisons.across_grids(found)
        assert {row[0].text: row[1].text for group in grid.groups for row in group} == {
            "hirescam": "2 : 0 of 3",
            "layercam": "0 : 1 of 3",
        }
        result = CliRunner().invoke(main, ["compare", *map(str, folders), "--across"])
        assert result.exit_code == 0, result.output
        assert "2 : 0 of 3" in result.output

    def test_a_ceiling_is_not_compared(self, tmp_path: Path) -> None:
        analysis = block_of(write_mosaics(tmp_path, TestReports.CELLS))
        (one,) = comparisons.compare_all([analysis], "gradcam")
        row = analysis.block.methods.index("region")
        assert not one.asked[row].any()
        assert np.isnan(one.p[row]).all()
        shown = {
            entry[0].text
            for grid in comparisons.comparison_grids(one)
            for group in grid.groups
            for entry in group
        }
        assert shown == {"hirescam", "flat"}


def test_few_mosaics_are_counted_as_mosaics(tmp_path: Path) -> None:
    for tiles, size, note in (
        (12, "3 mosaics, 12 images", "Only 3 mosaics"),
        (4, "1 mosaic, 4 images", "Only one mosaic"),
    ):
        cells = {"gradcam": {"energy": np.linspace(0.1, 0.9, tiles)}}
        (block,) = load_study([write_mosaics(tmp_path / str(tiles), cells, TILES[:tiles])])
        assert block.size == size
        assert any(note in line for line in audit.audit(Analysis(block), [block]))
