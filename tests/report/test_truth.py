"""What reports say of scores with a right answer, of axioms and of ceilings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from report_data import MOSAIC, MOSAICS, TILES, block_of, each, write_mosaics, write_results

from camkit.cli import main
from camkit.report import audit, comparisons
from camkit.report.analysis import Analysis
from camkit.report.study import load_study
from camkit.report.tables import score_grid


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
