"""Made-up scores of mosaics whose exchange rate and agreement with the truth are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from report_data import MOSAICS, TILES, changed, each, graded, write_mosaics

from camkit.report import grades
from camkit.report.exchange import paid
from camkit.report.study import load_study


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

    def test_rounding_is_no_change(self, tmp_path: Path) -> None:
        cells = changed(0.8, (3e-7, 0.1, 0.3, 0.6), (3e-7, 0, 0))
        one = graded(write_mosaics(tmp_path, cells))["drop_in_deletion"]
        assert (one.worse, one.paid, one.paid_high) == ((0, 1, 1, 1), 0, 0)

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
