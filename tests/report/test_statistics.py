"""Statistics: against scipy, worked by hand, and by simulation."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from camkit.metrics.adcc import AdccMean
from camkit.report.statistics import bootstrap, holm, ranks, resampled_means
from camkit.results.summary import cell_means

COLUMNS = ("average_drop", "coherency", "complexity", "adcc")
OWN = {"adcc": AdccMean()}


def scores_like_a_cams(rng: np.random.Generator, images: int, methods: int = 1) -> np.ndarray:
    """Skewed scores in [0, 1], (images, methods, columns): many small drops, coherency crowded below 1."""
    shape = (images, methods)
    drop = rng.beta(0.3, 1.5, shape)
    coherency = 1 - rng.beta(0.6, 6, shape)
    complexity = rng.beta(3, 7, shape)
    adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    return np.stack([drop, coherency, complexity, adcc], axis=-1)


TRUTH = np.array([0.3 / 1.8, 1 - 0.6 / 6.6, 0.3])  # means of the distributions above
TRUE_ADCC = 3 / (1 / (1 - TRUTH[0]) + 1 / TRUTH[1] + 1 / (1 - TRUTH[2]))


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


def test_resampled_means_are_means_of_whole_samples_the_same_for_all_columns():
    values = np.random.default_rng(0).random((7, 1))
    means = resampled_means(np.hstack([values, 2 * values, np.ones((7, 1))]), resamples=500, seed=3)
    assert means.shape == (500, 3)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    np.testing.assert_allclose(means[:, 2], 1)
    sample = np.random.default_rng(3).integers(0, 7, 7)
    assert means[0, 0] == pytest.approx(values[sample].mean())


def test_resampled_means_do_not_depend_on_the_chunks(monkeypatch):
    values = np.random.default_rng(0).random((20, 3))
    whole = resampled_means(values, resamples=101)
    monkeypatch.setattr("camkit.report.statistics.COUNTS", 7 * 20)
    np.testing.assert_allclose(resampled_means(values, resamples=101), whole, rtol=1e-12)


def test_missing_scores_are_left_out_of_means():
    values = np.array([[0.1, 0.1], [0.5, np.nan], [0.3, 0.3]])
    means = resampled_means(values, resamples=300, seed=1)
    sample = np.random.default_rng(1).integers(0, 3, 3)
    assert means[0, 1] == pytest.approx(np.nanmean(values[sample, 1]))
    result = bootstrap(values[:, :, None], ("average_drop",), resamples=300)
    np.testing.assert_allclose(result.value[:, 0], [0.3, 0.2])
    assert result.images[:, 0].tolist() == [3, 2]


def expanded(images: int) -> float:
    """The level of the plain percentile interval that the expanded 95 % one is."""
    return 1 - 2 * stats.norm.cdf(-np.sqrt(images / (images - 1)) * stats.t.ppf(0.975, images - 1))


@pytest.mark.parametrize("place", range(3))
def test_the_interval_of_a_mean_is_scipys_percentile_interval(place):
    values = scores_like_a_cams(np.random.default_rng(5), 60)
    low, high = bootstrap(values, COLUMNS, OWN, resamples=20_000).interval()
    expected = stats.bootstrap(
        (values[:, 0, place],),
        np.mean,
        n_resamples=20_000,
        confidence_level=expanded(60),
        method="percentile",
        rng=np.random.default_rng(1),
    )
    # Between two sets of 20,000 resamples an end's place has a standard deviation of 0.03 standard errors.
    within = 0.1 * expected.standard_error
    assert low[0, place] == pytest.approx(expected.confidence_interval.low, abs=within)
    assert high[0, place] == pytest.approx(expected.confidence_interval.high, abs=within)


def test_the_interval_of_adcc_and_of_its_difference_is_scipys():
    values = scores_like_a_cams(np.random.default_rng(6), 80, methods=2)
    result = bootstrap(values, COLUMNS, OWN, resamples=20_000)

    def adcc(*parts, axis=-1):
        drop, coherency, complexity = (part.mean(axis=axis) for part in parts)
        return 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))

    def gap(*parts, axis=-1):
        return adcc(*parts[:3], axis=axis) - adcc(*parts[3:], axis=axis)

    for found, parts, statistic in (
        (result[0], values[:, 0, :3].T, adcc),
        (result[1] - result[0], np.vstack([values[:, 1, :3].T, values[:, 0, :3].T]), gap),
    ):
        expected = stats.bootstrap(
            tuple(parts),
            statistic,
            n_resamples=20_000,
            confidence_level=expanded(80),
            method="percentile",
            paired=True,
            rng=np.random.default_rng(1),
        )
        low, high = found.interval()
        within = 0.1 * expected.standard_error
        assert found.value[3] == pytest.approx(statistic(*parts))
        assert low[3] == pytest.approx(expected.confidence_interval.low, abs=within)
        assert high[3] == pytest.approx(expected.confidence_interval.high, abs=within)


def test_p_of_a_difference_of_means_is_the_paired_t_tests():
    values = scores_like_a_cams(np.random.default_rng(7), 50, methods=2)
    result = bootstrap(values, COLUMNS, OWN, resamples=10)
    p = (result[1] - result[0]).p_value()
    for place in range(3):
        assert p[place] == pytest.approx(stats.ttest_rel(values[:, 1, place], values[:, 0, place]).pvalue)


def test_p_of_an_adcc_difference_is_the_jackknifes():
    values = scores_like_a_cams(np.random.default_rng(8), 400, methods=2)

    def gap(sample):
        drop, coherency, complexity, _ = sample.mean(axis=0).T
        adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        return adcc[1] - adcc[0]

    left_out = np.array([gap(np.delete(values, place, axis=0)) for place in range(400)])
    error = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    expected = 2 * stats.t.sf(abs(gap(values) / error), 399)
    result = bootstrap(values, COLUMNS, OWN, resamples=10)
    assert (result[1] - result[0]).p_value()[3] == pytest.approx(expected, rel=0.02)


def test_a_method_does_not_differ_from_itself():
    values = np.repeat(scores_like_a_cams(np.random.default_rng(9), 40), 3, axis=1)
    result = bootstrap(values, COLUMNS, OWN, resamples=500)
    difference = result - result[:1]
    low, high = difference.interval()
    assert (difference.value == 0).all() and (low == 0).all() and (high == 0).all()
    assert (difference.p_value() == 1).all()


def test_a_constant_score_has_an_interval_of_no_width():
    result = bootstrap(np.full((40, 1, 1), 0.3), ("complexity",), resamples=200)
    low, high = result.interval()
    assert low[0, 0] == pytest.approx(0.3) and high[0, 0] == pytest.approx(0.3)


@pytest.mark.slow
def test_intervals_cover_the_truth_in_95_percent_of_simulated_studies():
    """1,000 studies: the share covered has a standard error of 0.7 %. Means, ADCC and paired differences."""
    rng, images = np.random.default_rng(0), 200
    truth = np.append(TRUTH, TRUE_ADCC)
    hits, hits_difference = np.zeros(4), np.zeros(4)
    for study in range(1000):
        shared = scores_like_a_cams(rng, images)
        mixed = np.where(rng.random((images, 1, 1)) < 0.5, shared, scores_like_a_cams(rng, images))
        result = bootstrap(np.concatenate([shared, mixed], axis=1), COLUMNS, OWN, resamples=999, seed=study)
        low, high = result[0].interval()
        hits += (low <= truth) & (truth <= high)
        low, high = (result[1] - result[0]).interval()
        hits_difference += (low <= 0) & (high >= 0)
    assert ((hits >= 930) & (hits <= 970)).all(), hits
    assert ((hits_difference >= 930) & (hits_difference <= 970)).all(), hits_difference


def test_large_studies_stay_within_bounded_memory():
    values = np.zeros((50_000, 80))
    tracemalloc.start()
    resampled_means(values, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * values.nbytes


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
