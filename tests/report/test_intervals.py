"""Intervals and p values: against scipy and R, by their definition, and by simulation and enumeration."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import optimize, stats

import camkit.metrics  # noqa: F401  (fills the registry)
from camkit.entries import Column, all_columns
from camkit.report import intervals
from camkit.report.statistics import Estimates, estimates, ranks

COLUMNS = {name: all_columns()[name] for name in ("average_drop", "coherency", "complexity", "adcc")}
SHARE = {"increase": all_columns()["increase"]}
PLAIN = {"x": Column("higher")}
NAMES = list(COLUMNS)


def scores_like_a_cams(rng: np.random.Generator, images: int, methods: int = 1) -> np.ndarray:
    """Skewed scores in [0, 1], (images, methods, columns): many small drops, coherency crowded below 1."""
    shape = (images, methods)
    drop, complexity = rng.beta(0.3, 1.5, shape), rng.beta(3, 7, shape)
    coherency = 1 - rng.beta(0.6, 6, shape)
    adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    return np.stack([drop, coherency, complexity, adcc], axis=-1)


TRUTH = np.array([0.3 / 1.8, 1 - 0.6 / 6.6, 0.3])  # means of the distributions above
TRUE_ADCC = 3 / (1 / (1 - TRUTH[0]) + 1 / TRUTH[1] + 1 / (1 - TRUTH[2]))

# Coherencies of EfficientNet-Lite0 on 500 photos of ImageNet: quantiles at LEVELS; straight in between.
LEVELS = (0, 0.002, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1)
COHERENCY = {
    "gradcam": (0.613, 0.805, 0.899, 0.928, 0.96, 0.979, 0.99, 0.996, 0.999),
    "gradcam++": (0.827, 0.845, 0.893, 0.928, 0.955, 0.98, 0.99, 0.996, 0.999),
    "layercam": (0.798, 0.84, 0.884, 0.91, 0.951, 0.975, 0.987, 0.994, 0.998),
    "hirescam": (0.735, 0.744, 0.814, 0.86, 0.921, 0.959, 0.98, 0.991, 0.997),
    "shapleycam": (0.811, 0.861, 0.902, 0.931, 0.963, 0.981, 0.99, 0.996, 0.999),
    "shapleycam-h": (0.804, 0.81, 0.839, 0.889, 0.929, 0.963, 0.982, 0.991, 0.997),
}
# On how many of these photos IC is 1 for both, only GradCAM, only the other one, none.
INCREASE = {
    "gradcam++": (150, 20, 15, 315),
    "hirescam": (149, 21, 34, 296),
    "shapleycam": (165, 5, 4, 326),
    "xgradcam": (63, 107, 26, 304),
    "flat": (80, 90, 41, 289),
    "edges": (11, 159, 8, 322),
}


def one_column(values: np.ndarray, columns: dict[str, Column] = PLAIN) -> Estimates:
    """Estimates of scores (images,) or (images, methods) in one column."""
    return estimates(values.reshape(len(values), -1, 1), columns)


def test_of_scores_that_are_not_skewed_the_interval_is_students():
    half = np.random.default_rng(0).random((12, 3))
    found = one_column(np.concatenate([half, 1 - half]))
    expected = stats.ttest_1samp(np.concatenate([half, 1 - half]), 0).confidence_interval(0.95)
    low, high = (ends[:, 0] for ends in found.interval)
    np.testing.assert_allclose(low, expected.low, atol=1e-6)
    np.testing.assert_allclose(high, expected.high, atol=1e-6)


def halls_statistic(truth: float, values: np.ndarray) -> float:
    """Hall's transformed t statistic of a mean, by his formula (1992) with the unbiased third moment."""
    images = len(values)
    variance = values.var()
    skew = stats.kstat(values, 3) / variance**1.5
    y = (values.mean() - truth) / np.sqrt(variance * images / (images - 1))
    return np.sqrt(images) * (y + skew * y**2 / 3 + skew**2 * y**3 / 27 + skew / (6 * images))


@pytest.mark.parametrize("images", [3, 12, 30, 200])
def test_the_ends_are_the_farther_ones_of_students_and_of_those_that_halls_statistic_leaves(images):
    values = 1 - np.random.default_rng(images).beta(0.4, 8, images)
    t = stats.t.isf(0.025, images - 1)
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    low, high = (
        optimize.brentq(lambda truth, to=to: halls_statistic(truth, values) - to, -20, 20) for to in (t, -t)
    )
    assert low < student.low and high < student.high  # skewed to the left: the long side is below
    found = [float(ends[0, 0]) for ends in one_column(values).interval]
    np.testing.assert_allclose(found, [low, student.high], rtol=1e-9)


def test_of_many_images_the_intervals_are_those_of_scipys_bootstrap():
    """The mean, ADCC and ADCC's paired difference, 4,000 images: BCa knows of skewness too."""
    values = scores_like_a_cams(np.random.default_rng(6), 4000, methods=2)

    def adcc(*parts, axis=-1):
        drop, coherency, complexity = (part.mean(axis=axis) for part in parts)
        return 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))

    def gap(*parts, axis=-1):
        return adcc(*parts[:3], axis=axis) - adcc(*parts[3:], axis=axis)

    found = estimates(values, COLUMNS)
    difference = found.only(1) - found.only(0)
    for name, (low, high), value, parts, statistic in (
        ("coherency", found.interval, found.value, (values[:, 0, 1],), np.mean),
        ("adcc", found.interval, found.value, values[:, 0, :3].T, adcc),
        ("adcc", difference.interval, difference.value, [*values[:, 1, :3].T, *values[:, 0, :3].T], gap),
    ):
        expected = stats.bootstrap(
            tuple(parts), statistic, n_resamples=4000, paired=True, batch=200, rng=np.random.default_rng(1)
        )
        within = 0.15 * expected.standard_error  # an end of 4,000 resamples has a standard error of 0.06
        column = NAMES.index(name)
        assert value[0, column] == pytest.approx(statistic(*parts))
        assert low[0, column] == pytest.approx(expected.confidence_interval.low, abs=within)
        assert high[0, column] == pytest.approx(expected.confidence_interval.high, abs=within)


def test_p_of_differences_that_are_not_skewed_is_the_paired_t_tests():
    rng = np.random.default_rng(7)
    gaps = rng.normal(0.1, 0.3, (15, 5))
    first = rng.random((30, 5))
    second = first + np.concatenate([gaps, 2 * gaps.mean(axis=0) - gaps])
    both = one_column(np.stack([first, second], axis=1))
    found = (both - both).p_value  # of a method and itself
    assert (found == 1).all()
    for column in range(5):
        pair = one_column(np.stack([first[:, column], second[:, column]], axis=1))
        p = (pair - pair.only(0)).p_value[1, 0]
        assert p == pytest.approx(stats.ttest_rel(second[:, column], first[:, column]).pvalue, rel=1e-9)


def test_p_is_below_5_percent_just_where_the_interval_leaves_out_0():
    rng = np.random.default_rng(2)
    sizes, decided = (5, 12, 40), []
    for images in sizes:
        gaps = rng.gamma(0.3, 1, (images, 3000)) - rng.uniform(0, 0.8, 3000)
        found = one_column(np.hstack([np.zeros((images, 1)), gaps]))
        difference = found - found.only(0)
        low, high = difference.interval
        outside = (low > 0) | (high < 0)
        np.testing.assert_array_equal(difference.p_value < 0.05, outside)
        p = stats.ttest_1samp(gaps, 0).pvalue
        assert (difference.p_value[1:, 0] >= p * (1 - 1e-9)).all()
        decided.append(outside.mean())
    assert all(0.05 < share < 0.95 for share in decided)


def test_p_of_an_adcc_difference_is_the_jackknifes():
    values = scores_like_a_cams(np.random.default_rng(8), 400, methods=2)

    def gap(sample):
        drop, coherency, complexity, _ = sample.mean(axis=0).T
        adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
        return adcc[1] - adcc[0]

    left_out = np.array([gap(np.delete(values, place, axis=0)) for place in range(400)])
    error = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    found = estimates(values, COLUMNS)
    difference = found.only(1) - found.only(0)
    assert difference.spread.error[0, 3] == pytest.approx(error, rel=0.01)
    expected = 2 * stats.t.sf(abs(gap(values) / error), 399)
    assert difference.p_value[0, 3] == pytest.approx(expected, rel=0.1)


def test_missing_scores_are_left_out():
    values = np.array([[0.1, 0.1], [0.5, np.nan], [0.3, 0.3], [0.8, 0.9]])
    found, short = one_column(values), one_column(values[[0, 2, 3], 1])
    np.testing.assert_allclose(found.value[:, 0], [0.425, 1.3 / 3])
    assert found.images[:, 0].tolist() == [4, 3]
    for ends, expected in zip(found.interval, short.interval, strict=True):
        assert ends[1, 0] == pytest.approx(expected[0, 0])


def test_a_constant_score_has_an_interval_of_no_width_and_a_method_does_not_differ_from_itself():
    found = one_column(np.full((40, 2), np.float32(0.3)))
    low, high = found.interval
    assert (low == high).all() and low[0, 0] == pytest.approx(0.3)
    values = np.repeat(scores_like_a_cams(np.random.default_rng(9), 40), 3, axis=1)
    found = estimates(values, COLUMNS)
    difference = found - found.only(0)
    assert (difference.value == 0).all() and (np.stack(difference.interval) == 0).all()
    assert (difference.p_value == 1).all()


def test_intervals_end_at_a_scores_bounds():
    values = np.array([0.0, 0.0, 0.0, 0.9])
    free, bound = (one_column(values, {"x": Column("lower", bounds=b)}) for b in ((-9, 9), (0, 1)))
    assert free.interval[0][0, 0] < 0 and free.interval[1][0, 0] > 1
    assert (bound.interval[0][0, 0], bound.interval[1][0, 0]) == (0, 1)


# Shares


def test_a_share_has_wilsons_interval_also_where_it_is_0_of_24():
    values = np.zeros((24, 3))
    values[:7, 1], values[:, 2] = 1, 1
    found = one_column(values, SHARE)
    for row, hits in enumerate((0, 7, 24)):
        expected = stats.binomtest(hits, 24).proportion_ci(method="wilson")
        assert found.interval[0][row, 0] == pytest.approx(expected.low)
        assert found.interval[1][row, 0] == pytest.approx(expected.high)
    assert found.interval[1][0, 0] == pytest.approx(0.138, abs=5e-4)


def test_a_column_that_is_no_share_or_holds_other_values_has_the_interval_of_a_mean():
    values = np.random.default_rng(0).integers(0, 2, 24).astype(float)
    plain = one_column(values).interval[0][0, 0]
    assert one_column(values, SHARE).interval[0][0, 0] != pytest.approx(plain, rel=1e-3)
    values[3] = 0.5
    assert one_column(values, SHARE).interval[0] == pytest.approx(one_column(values).interval[0])


def test_the_interval_of_a_difference_of_shares_is_rs():
    """contingencytables: Newcombe_square_and_add_CI_paired_2x2(cavo_2012), as its tests have it.

    The second table is bentur_2009, with the interval that Fagerland, Lydersen and Laake (2014) print.
    """
    low, high = intervals.paired_share_interval(np.array([[59, 1], [6, 1], [16, 7], [80, 12]]))
    np.testing.assert_allclose([low[0], high[0]], [-0.1186, -0.0046], atol=5e-5)
    np.testing.assert_allclose([low[1], high[1]], [-0.507, -0.026], atol=5e-4)


def test_the_pairs_of_a_difference_are_counted_by_image():
    first = np.array([1, 1, 1, 0, 0, 0, 0, np.nan])
    second = np.array([1, 0, 0, 1, 0, 0, 0, 1])
    found = one_column(np.stack([first, second], axis=1), SHARE)
    difference = found - found.only(1)
    assert difference.pairs[:, 0, 0].tolist() == [1, 2, 1, 3]
    expected = intervals.paired_share_interval(np.array([[1], [2], [1], [3]]))
    assert difference.interval[0][0, 0] == pytest.approx(expected[0][0])
    assert difference.p_value[0, 0] == pytest.approx(stats.binomtest(2, 3).pvalue)


def test_two_shares_of_0_differ_by_no_more_than_wilsons_end():
    zero = one_column(np.zeros((24, 2)), SHARE)
    difference = zero - zero.only(0)
    end = zero.interval[1][0, 0]
    np.testing.assert_allclose([ends[1, 0] for ends in difference.interval], [-end, end])
    assert difference.p_value[1, 0] == 1


def test_p_of_a_difference_of_shares_is_that_of_the_binomial_test_on_discordant_pairs():
    for first, second in product(range(13), range(13)):
        pairs = np.array([2, first, second, 3])
        expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert float(intervals.paired_share_p(pairs)) == pytest.approx(expected)


@pytest.mark.parametrize("images", [6, 12, 24])
def test_where_the_exact_test_tells_shares_apart_the_interval_leaves_out_0(images):
    tables = np.array(list(tables_of(images))).T
    low, high = intervals.paired_share_interval(tables)
    apart = intervals.paired_share_p(tables) < 0.05
    assert apart.any() and ((low > 0) | (high < 0))[apart].all()


# One image


@pytest.mark.parametrize("columns", [PLAIN, SHARE])
def test_one_image_gives_no_interval_and_no_p(columns):
    found = one_column(np.array([[1.0, 0.0]]), columns)
    difference = found - found.only(0)
    assert np.isnan(np.stack(found.interval)).all()
    assert np.isnan(np.stack(difference.interval)).all() and np.isnan(difference.p_value).all()
    two = one_column(np.array([[1.0, 0.0], [0.0, 0.0]]), columns)
    assert np.isfinite(np.stack(two.interval)).all() and np.isfinite((two - two.only(0)).p_value).all()


# Coverage


def held(ends: tuple[np.ndarray, np.ndarray], truth: float | np.ndarray) -> np.ndarray:
    return ((ends[0] <= truth) & (truth <= ends[1])).mean(axis=0)


@pytest.mark.parametrize("method", COHERENCY)
def test_intervals_of_coherency_cover_93_to_97_percent_at_30_images(method):
    """10,000 studies: the share covered has a standard error of 0.2 %. Student's cover 88 to 92 %."""
    studies, quantiles = 10_000, np.array(COHERENCY[method])
    truth = np.trapezoid(quantiles, LEVELS) if hasattr(np, "trapezoid") else np.trapz(quantiles, LEVELS)
    drawn = np.interp(np.random.default_rng(0).random((30, studies)), LEVELS, quantiles)
    found = one_column(drawn, {"coherency": COLUMNS["coherency"]})
    assert 0.93 <= held(found.interval, truth)[0] <= 0.97
    student = stats.ttest_1samp(drawn, 0).confidence_interval(0.95)
    assert 0.87 < held((student.low, student.high), truth) < 0.925


def test_intervals_of_made_up_scores_and_of_adcc_cover_93_to_97_percent_at_30_images():
    """Those of average drop, half of whose values are nearly 0, a little more."""
    found = estimates(scores_like_a_cams(np.random.default_rng(0), 30, methods=10_000), COLUMNS)
    covered = held(found.interval, np.append(TRUTH, TRUE_ADCC))
    assert (covered >= 0.93).all() and covered[0] <= 0.98 and (covered[1:] <= 0.97).all(), covered


def tables_of(images: int):
    """All (both, only first, only second, none) of so many images."""
    for both, first, second in product(range(images + 1), repeat=3):
        if both + first + second <= images:
            yield both, first, second, images - both - first - second


@pytest.mark.parametrize("method", INCREASE)
def test_intervals_of_a_difference_in_ic_cover_at_least_93_percent_at_12_images(method):
    """By enumeration of all tables. Student's cover 53 % where few images tell the methods apart."""
    shares = np.array(INCREASE[method]) / 500
    tables = np.array(list(tables_of(12)))
    weights = stats.multinomial.pmf(tables, 12, shares)
    truth = shares[1] - shares[2]
    low, high = intervals.paired_share_interval(tables.T)
    covered = weights[(low <= truth) & (truth <= high)].sum()
    few = shares[1] + shares[2] < 0.15  # 12 images have a discordant one or two: no interval can be shorter
    assert 0.93 <= covered <= (1 if few else 0.985), covered
    gap = (tables[:, 1] - tables[:, 2]) / 12
    spread = np.sqrt(((tables[:, 1] + tables[:, 2]) / 12 - gap**2) / 11)
    half = stats.t.isf(0.025, 11) * spread
    assert weights[np.abs(gap - truth) <= half].sum() < covered


def test_paired_differences_that_are_none_are_found_in_at_most_5_percent():
    """Of means, in 2,000 studies of 30 images; alike in distribution and correlated, as two methods are."""
    rng = np.random.default_rng(3)
    for column in range(3):
        shared, first, second = (scores_like_a_cams(rng, 30, 2000)[..., column] for _ in range(3))
        mixed = np.where(rng.random(shared.shape) < 0.5, shared, second)
        gaps = one_column(np.where(rng.random(shared.shape) < 0.5, shared, first) - mixed)
        zero = one_column(np.zeros_like(shared))
        assert 0.01 < ((gaps - zero).p_value < 0.05).mean() < 0.062


# Ranks


def test_models_of_one_family_count_once():
    """Four models of one family agree; two others do not: three blocks, not six."""
    scores = np.array([[3, 2, 1]] * 4 + [[1, 2, 3], [1, 3, 2]], dtype=float)
    families = ["resnet"] * 4 + ["vgg", "swin"]
    blocks = np.array([[1, 2, 3], [3, 2, 1], [3, 1, 2]])
    found = ranks(scores, families)
    np.testing.assert_allclose(found.average, blocks.mean(axis=0))
    assert found.p == pytest.approx(stats.friedmanchisquare(*blocks.T).pvalue)
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 3)), rel=3e-4)  # Demsar
    assert ranks(scores).critical_difference < found.critical_difference


def test_ranks_in_the_models_of_a_family_are_averaged_and_ranked():
    scores = np.array([[3, 2, 1], [1, 3, 2], [3, 1, 2], [9, 8, 7]], dtype=float)
    found = ranks(scores, ["a", "a", "a", "b"])  # ranks 1 2 3, 3 1 2, 1 3 2: on average 5/3, 2, 7/3
    np.testing.assert_allclose(found.average, [1, 2, 3])


def test_one_family_is_ranked_and_not_tested():
    found = ranks(np.array([[3.0, 2, 1], [3, 2, 1]]), ["a", "a"])
    np.testing.assert_allclose(found.average, [1, 2, 3])
    assert np.isnan(found.p) and np.isnan(found.critical_difference)


def test_ranks_of_pairs_need_no_family():
    scores = np.random.default_rng(0).random((5, 4))
    for one, other in combinations(range(4), 2):
        pair = ranks(scores[:, [one, other]])
        assert pair.average.sum() == pytest.approx(3)
