"""Intervals against published factors, hand cases and simulation."""

import math

import numpy as np
import pytest

from mmexpert.metrics.statistics import bootstrap_p, corrected_interval, corrected_p, group_bootstrap, holm, mcnemar, wilson


@pytest.mark.parametrize(
    "count, rho, factor",
    [(5, 1 / 4, 1.862), (10, 1 / 9, 1.039), (15, 1 / 4, 1.207), (5, 0.2 / (0.8 * 0.85), 1.950)],
    ids=["5 folds", "10 folds", "3 x 5 folds", "5 folds with inner_val .15"],
)
def test_the_corrected_half_width_has_the_specifications_factors(count, rho, factor):
    values = np.random.default_rng(0).normal(0.8, 0.05, count)
    low, high = corrected_interval(values, rho)
    assert (high - low) / 2 / np.std(values, ddof=1) == pytest.approx(factor, abs=6e-3 if rho > 0.29 else 5e-4)
    assert (high + low) / 2 == pytest.approx(values.mean())


def test_the_interval_is_not_clipped_and_one_value_has_none():
    low, high = corrected_interval([0.9, 1.0, 0.99], 0.5)
    assert high > 1
    assert corrected_interval([0.5], 0.25) is None


@pytest.mark.parametrize("right, total, low, high", [(8, 10, 0.490, 0.943), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0)])
def test_wilson_bounds_are_the_published_ones(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-4)


def test_the_bootstrap_is_equal_for_equal_seeds_and_differs_for_others():
    groups = [f"g{i // 3}" for i in range(60)]
    hit = np.random.default_rng(0).random(60)
    metric = lambda _, rows: float(hit[rows].mean())  # noqa: E731
    first = group_bootstrap([(groups, [0] * 60)], metric, 1)
    assert first == group_bootstrap([(groups, [0] * 60)], metric, 1) != group_bootstrap([(groups, [0] * 60)], metric, 2)


def test_rows_of_a_group_are_drawn_together():
    """20 groups of 10 equal rows: the interval of the mean is that of 20 values, not of 200."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=20), 10)
    groups = [f"g{i // 10:02d}" for i in range(200)]
    low, high = group_bootstrap([(groups, [0] * 200)], lambda _, rows: float(values[rows].mean()), 0)
    error = values[::10].std() / math.sqrt(20)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < values.mean() < high


def test_groups_are_drawn_within_the_strata_of_their_majority_label():
    """Hits depend on the class alone: with the classes' shares held there is nothing left to vary."""
    labels = [0] * 30 + [1] * 10
    groups = [f"g{i // 2}" for i in range(40)]
    hit = np.array([1.0] * 30 + [0.0] * 10)
    assert group_bootstrap([(groups, labels)], lambda _, rows: float(hit[rows].mean()), 0) == (0.75, 0.75)


def test_several_folds_are_scored_each_and_averaged():
    folds = [(["a", "b"], [0, 0]), (["c", "d", "e"], [1, 1, 1])]
    seen = []
    low, high = group_bootstrap(folds, lambda number, rows: seen.append((number, len(rows))) or float(number), 0)
    assert (low, high) == (0.5, 0.5) and set(seen) == {(0, 2), (1, 3)}


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in range(30)]
    held = 0
    for case in range(40):
        values = rng.normal(size=30)
        low, high = group_bootstrap([(groups, [0] * 30)], lambda _, rows, v=values: float(v[rows].mean()), case)
        held += low < 0 < high
    assert 34 <= held <= 40


def test_mcnemar_of_one_against_nine_is_the_specifications_p_and_of_nothing_is_1():
    assert mcnemar(1, 9) == pytest.approx(0.0215, abs=5e-5) == mcnemar(9, 1)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1


def test_the_corrected_p_is_the_t_of_the_formula_by_hand():
    """d = .02, .04, .06, .00, .03: mean .03, s = sqrt(.002 / 4); rho .25."""
    value = 0.03 / (math.sqrt(0.0005) * math.sqrt(1 / 5 + 1 / 4))
    assert value == pytest.approx(2.0)
    assert corrected_p([0.02, 0.04, 0.06, 0.0, 0.03], 1 / 4) == pytest.approx(0.116117, abs=1e-6)  # 2 P(t_4 > 2), a table's figure


def test_equal_differences_have_p_1_where_they_are_0_and_no_p_elsewhere():
    assert corrected_p([0.0] * 5, 0.25) == 1
    assert corrected_p([0.1 + 0.2 - 0.3 + 0.05, 0.05, 0.05], 0.25) is None  # equal but for rounding
    assert corrected_p([0.3], 0.25) is None


def test_the_corrected_interval_holds_0_just_where_its_p_is_above_5_percent():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(0.02, 0.02, 5)
        low, high = corrected_interval(values, 0.25)
        assert (low < 0 < high) == (corrected_p(values, 0.25) > 0.05)


def test_the_bootstrap_p_counts_both_sides_and_never_falls_below_a_draw():
    assert bootstrap_p(np.zeros(2000)) == 1
    assert bootstrap_p(np.ones(2000)) == 1 / 2000
    assert bootstrap_p(np.array([-1.0] * 30 + [1.0] * 1970)) == pytest.approx(0.03)


def test_holm_multiplies_the_smallest_by_their_number_and_never_reverses_an_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([None, 0.02]) == [None, 0.04]
    assert holm([0.02]) == [0.02]
