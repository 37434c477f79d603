"""Metrics of many draws at once are those of each draw's rows, written out one by one."""

import numpy as np
import pytest

from mmexpert.metrics.classification import classification_metrics
from mmexpert.metrics.drawn import counted_metrics, probability_metrics
from mmexpert.metrics.statistics import group_counts, group_draws


def drawn(probabilities, labels, weight, wanted=None):
    predicted = probabilities.argmax(1)
    counted = counted_metrics(labels, predicted, probabilities.shape[1], weight.astype(float))
    return counted | probability_metrics(probabilities, labels, predicted, weight.astype(float), wanted)


@pytest.mark.parametrize("seed", range(50))
def test_every_metric_is_that_of_the_drawn_rows_one_by_one(seed):
    """Absent classes, ties, few rows, a class without a negative; 0 to 3 of each row."""
    draws = np.random.default_rng(seed)
    rows, classes = int(draws.integers(1, 40)), int(draws.integers(2, 6))
    labels = draws.integers(0, classes, rows) if seed % 7 else np.full(rows, 1)
    probabilities = draws.dirichlet(np.ones(classes) * 0.5, rows)
    if seed % 2:  # ties
        probabilities = np.round(probabilities * 4) + 1
        probabilities /= probabilities.sum(1, keepdims=True)
    weight = draws.integers(0, 4, (6, rows))
    weight[:, 0] += 1  # no draw is empty
    got = drawn(probabilities, labels, weight)
    for number, counts in enumerate(weight):
        expected = classification_metrics(np.repeat(probabilities, counts, axis=0), np.repeat(labels, counts), ordered=True)
        assert expected.keys() - got.keys() == {"n_classes_used"}
        for name, values in got.items():
            value = np.nan if expected[name] is None else expected[name]
            assert values[number] == pytest.approx(value, abs=1e-9, nan_ok=True), (name, number)


def test_ranking_is_left_out_where_nobody_asks_for_it():
    probabilities, labels = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
    assert not {"map", "macro_auroc", "ece_adaptive"} & drawn(probabilities, labels, np.ones((2, 4)), ("acc", "nll")).keys()
    assert {"map", "macro_auroc"} <= drawn(probabilities, labels, np.ones((2, 4)), ("map",)).keys()


def test_counts_are_the_very_draws_of_the_group_bootstrap():
    draws = np.random.default_rng(0)
    folds = []
    for rows in (20, 31):
        groups = [f"g{number}" for number in draws.integers(0, 9, rows)]
        folds.append((groups, draws.integers(0, 3, rows)))
    value = [draws.random(20), draws.random(31)]
    one_by_one = group_draws(folds, lambda number, rows: float(value[number][rows].mean()), 5)
    counted = [counts[:, owner] for counts, owner in group_counts(folds, 5, len(one_by_one))]
    means = [weight @ of_row / weight.sum(1) for weight, of_row in zip(counted, value, strict=True)]
    np.testing.assert_allclose(np.mean(means, axis=0), one_by_one, rtol=1e-12)
