"""Means, corrections and ranks: against scipy, and worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from camkit.metrics.adcc import AdccMean
from camkit.report.statistics import holm, ranks
from camkit.results.summary import cell_means


def test_adcc_is_the_harmonic_mean_of_means_and_not_the_mean():
    rows = pd.DataFrame(
        {"average_drop": [0.0, 1.0], "coherency": [1.0, 1.0], "complexity": [0.5, 0.5], "adcc": [0.75, 0.0]}
    )
    means = cell_means(rows, list(rows))
    assert means["adcc"] == pytest.approx(3 / (1 + 2 + 2))
    assert means["adcc_image_mean"] == pytest.approx(0.375)


def test_adcc_is_zero_where_a_factor_is_and_nan_where_one_is_unknown():
    assert AdccMean.parts == ("coherency", "complexity", "average_drop")
    means = np.array([[0.0, 0.5, 0.5], [1.0, 1.0, 0.5], [np.nan, 0.5, 0.5], [1.0, 0.5, 0.5]])
    np.testing.assert_allclose(AdccMean().of(means), [0, 0, np.nan, 3 / 5])


def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, each at least as large as the one before.
    corrected = holm(np.array([[0.01, 0.04, np.nan], [0.03, 0.005, np.nan]]))
    np.testing.assert_allclose(corrected, [[0.03, 0.06, np.nan], [0.06, 0.02, np.nan]])


def test_holm_never_exceeds_one():
    assert holm(np.array([0.9, 0.8, 1.0])).max() == 1


def test_ranks_by_hand():
    """Three models, three methods; the highest score ranks first and ties share their ranks."""
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.6, 0.1], [0.2, 0.5, 0.1]])  # 1 2 3 / 1.5 1.5 3 / 2 1 3
    result = ranks(scores)
    np.testing.assert_allclose(result.average, [1.5, 1.5, 3])
    assert result.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)]
)
def test_critical_difference_is_demsars(methods, q):
    """Table 5(a) of Demsar (JMLR 2006): q at 0.05; CD = q sqrt(k (k + 1) / (6 N))."""
    scores = np.random.default_rng(0).random((14, methods))
    expected = q * np.sqrt(methods * (methods + 1) / (6 * 14))
    assert ranks(scores).critical_difference == pytest.approx(expected, rel=3e-4)
