"""Orders by class: what is drawn, how often, and alike on all ranks and in every run."""

from collections import Counter

import numpy as np
import pytest

from mmexpert.data.class_samplers import balanced_order, distinct_classes, weighted_order
from mmexpert.types import ConfigError

LABELS = [0] * 50 + [1] * 20 + [2] * 6 + [3] * 4


def test_weighted_draws_follow_the_weights_and_the_epoch():
    weights = np.array([1.0, 2.5, 8.0, 12.0])[LABELS]
    drawn = [index for epoch in range(400) for index in weighted_order(weights, 3, epoch)]
    assert len(drawn) == 400 * 80
    shares = Counter(LABELS[i] for i in drawn)
    for label, share in enumerate(np.array([50.0, 50.0, 48.0, 48.0]) / 196):
        assert shares[label] / len(drawn) == pytest.approx(share, abs=4 * (share * (1 - share) / len(drawn)) ** 0.5)
    assert weighted_order(weights, 3, 7) == weighted_order(weights, 3, 7) != weighted_order(weights, 3, 8)


def test_weighted_draws_are_those_of_the_stated_formula():
    raw = np.random.Philox(key=[5, 1 * 2**32 + 2]).random_raw(4)
    weights = [1.0, 0.0, 3.0, 4.0]
    expected = [int(np.searchsorted(np.cumsum(weights), (int(r) >> 11) * 2.0**-53 * 8.0, side="right")) for r in raw]
    assert weighted_order(weights, 5, 2) == expected and 1 not in expected


def test_balanced_batches_hold_equal_shares_of_their_classes():
    order = balanced_order(LABELS, 16, 4, 0, 1)
    assert len(order) == 80
    for start in range(0, 80, 16):
        assert set(Counter(LABELS[i] for i in order[start : start + 16]).values()) == {4}
    of_first = [i for i in order if LABELS[i] == 0]
    assert len(set(of_first)) == len(of_first)  # no row twice before all of its class had a turn


def test_unique_class_batches_hold_no_class_twice():
    order = balanced_order(LABELS, 3, 3, 0, 0)
    assert all(len({LABELS[i] for i in order[start : start + 3]}) == 3 for start in range(0, len(order), 3))
    assert {LABELS[i] for i in order} == {0, 1, 2, 3}


def test_how_many_classes_share_a_batch():
    assert (
        distinct_classes("balanced", 32, 8) == 8
        and distinct_classes("balanced", 32, 5) == 4
        and distinct_classes("unique_class", 4, 8) == 4
    )
    with pytest.raises(ConfigError, match="batch of 32 has more rows than the 8 classes"):
        distinct_classes("unique_class", 32, 8)
