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


def test_counts_draw_groups_as_the_group_bootstrap_does():
    """Within strata, whole groups, each as often as any other; the same for the same seed; and the same interval but for chance."""
    draws = np.random.default_rng(0)
    groups = [f"g{number}" for number in np.repeat(np.arange(60), 2)]
    labels = np.repeat(np.arange(60) % 3 == 0, 2).astype(int)
    labels[0] = 1 - labels[0]  # a group of two labels stands in the stratum of the lower one
    folds = [(groups[:60], labels[:60]), (groups[60:], labels[60:])]
    found = group_counts(folds, 5, 2000)
    value = [draws.random(60), draws.random(60)]
    for (counts, owner), (own, _) in zip(found, folds, strict=True):
        assert len({(group, number) for group, number in zip(own, owner.tolist(), strict=True)}) == len(set(own)) == counts.shape[1]
        assert (counts.sum(1) == 30).all() and np.allclose(counts.mean(0), 1, atol=0.12) and np.allclose(counts.var(0), 1, atol=0.25)
    (counts, owner), (_, of_row) = found[1], folds[1]  # no group of two labels: each draw has as many rows of a class as there are
    assert (counts[:, owner] @ (of_row == 1) == (of_row == 1).sum()).all() and not (counts == counts[0]).all()
    means = np.mean([counts[:, owner] @ of_row / 60 for (counts, owner), of_row in zip(found, value, strict=True)], axis=0)
    one_by_one = group_draws(folds, lambda number, rows: float(value[number][rows].mean()), 5)
    np.testing.assert_allclose(np.percentile(means, [2.5, 97.5]), np.percentile(one_by_one, [2.5, 97.5]), atol=0.006)
    again = group_counts(folds, 5, 2000)
    assert all((a[0] == b[0]).all() for a, b in zip(found, again, strict=True))
