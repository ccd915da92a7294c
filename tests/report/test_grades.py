"""Grades of made-up scores whose grades are known."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from corners import CORNER_RUN, colour_photos
from report_data import MOSAIC, TILES, changed, each, graded, write_mosaics, write_results

from camkit.cli import main
from camkit.config import RunConfig
from camkit.report import grade_tables, grades
from camkit.report.grades import Grade
from camkit.report.study import load_study
from camkit.runs.bench import bench


def test_passes_of_a_column_of_two_groups() -> None:
    """Complexity is in `adcc`, which explains again, and in `shape`, which needs no pass."""
    assert [grade_tables.passes_of(name) for name in ("complexity", "coherency", "roughness")] == [
        "0",
        "2",
        "0",
    ]


def photo_cells(
    images: int, means: Mapping[str, float], noise: float, **columns: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
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

    def test_axioms_are_not_graded(self, tmp_path: Path) -> None:
        cells = photo_cells(50, {"gradcam": 0.5, "flat": 0.3}, 0.1, null_share=np.ones(50))
        assert set(graded(write_results(tmp_path, cells))) == {"drop_in_deletion"}

    def test_results_without_a_graded_score(self, tmp_path: Path) -> None:
        """The command says so, and a page has no empty table."""
        cells = {name: {"energy": each(0.5), "null_share": each(1)} for name in ("hirescam", "flat")}
        mosaics = str(write_mosaics(tmp_path / "mosaics", cells))
        result = CliRunner().invoke(main, ["grade", mosaics])
        assert result.exit_code == 2 and "no score here is graded" in result.output
        page = tmp_path / "page.html"
        result = CliRunner().invoke(main, ["report", mosaics, "--no-photos", "-o", str(page)])
        assert result.exit_code == 0, result.output
        assert "What the scores are worth" not in page.read_text(encoding="utf-8")

    def test_few_mosaics_and_other_options_are_said(self, tmp_path: Path) -> None:
        cells = changed(0.8, (0.02, 0.1, 0.3, 0.6), (0.05, -0.02, 0))
        few = {name: {column: one[:4] for column, one in scores.items()} for name, scores in cells.items()}
        write_results(tmp_path / "m", few, names=TILES[:4], protocol=MOSAIC | {"steps": 8})
        write_results(tmp_path / "p", photo_cells(50, {"gradcam": 0.5, "flat": 0.3}, 0.1))
        (report,) = grades.grade(load_study([tmp_path / "m", tmp_path / "p"], altered=True))
        assert "Fewer than 20 mosaics: what is said of place may be chance." in report.notes
        assert "Mosaics and photos differ in more than the images: steps." in report.notes

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
