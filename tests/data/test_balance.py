"""Class weights: hip.md section 7, by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from mmexpert.data.balance import METHODS, balance_settings, class_weights
from mmexpert.types import ClassTable, ConfigError, DataError

KEYS = {"apply": "none", "sampler": "weighted", "method": "inverse_freq", "smooth": 1.0, "beta": 0.999, "clip_ratio": 20}


def weights(counts, method, **changes):
    keys = {"smooth": 1.0, "beta": 0.999, "clip_ratio": 1e9} | changes
    return class_weights(counts, method, **keys)


def table(*counts):
    names = tuple("abcdefgh"[: len(counts)])
    return ClassTable(names, tuple((name,) for name in names), counts)


def test_inverse_frequency_is_scikit_learns_balanced_weight():
    counts = [66, 235, 57, 119]
    labels = np.repeat(range(4), counts)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(weights(counts, "inverse_freq"), expected)


def test_100_to_10_by_hand_under_every_method():
    by_hand = {
        "inverse_freq": (110 / 200, 110 / 20),
        "additive_smooth": (110 / (2 * 101), 110 / (2 * 11)),
        "sqrt_inverse": (1 / 10, 1 / np.sqrt(10)),
        "effective_number": (0.001 / (1 - 0.999**100), 0.001 / (1 - 0.999**10)),
        "median_freq": (55 / 100, 55 / 10),
    }
    assert set(by_hand) == set(METHODS)
    for method, (common, rare) in by_hand.items():
        scale = 110 / (100 * common + 10 * rare)
        np.testing.assert_allclose(weights([100, 10], method), [common * scale, rare * scale], err_msg=method)


def test_the_exponent_runs_from_no_weighting_to_full_weighting():
    np.testing.assert_allclose(weights([100, 10], "inverse_freq", smooth=0), [1, 1])
    root = weights([100, 10], "inverse_freq", smooth=0.5)
    assert root[1] / root[0] == pytest.approx(np.sqrt(10))


def test_at_1_both_readings_of_the_smooth_factor_agree_within_one_over_the_count_and_1():
    counts = np.array([104, 80, 40, 56, 32, 32, 32, 24])
    exponent = counts.sum() / (8 * counts)
    additive = counts.sum() / (8 * (counts + 1))
    assert (abs(additive / exponent - 1) <= 1 / (counts + 1) + 1e-12).all()
    np.testing.assert_allclose(weights(counts, "inverse_freq"), exponent)


@pytest.mark.parametrize("method", METHODS)
def test_weights_leave_the_sum_over_rows_alone_and_respect_the_largest_ratio(method):
    counts = [5000, 300, 20, 1]
    for ratio in (1, 3, 20):
        found = weights(counts, method, clip_ratio=ratio)
        assert found @ counts == pytest.approx(sum(counts)) and found.max() / found.min() <= ratio * (1 + 1e-9)
        assert (np.diff(found) >= -1e-12).all()  # the rarer, the heavier


@pytest.mark.parametrize(
    "apply, share, drawn, loss",
    [
        ("none", [10 / 11, 1 / 11], [10 / 11, 1 / 11], [1, 1]),
        ("sampler", [0.5, 0.5], [0.5, 0.5], [1, 1]),
        ("loss", [0.5, 0.5], [10 / 11, 1 / 11], [0.55, 5.5]),
        ("half", [0.5, 0.5], [10 / (10 + np.sqrt(10)), np.sqrt(10) / (10 + np.sqrt(10))], [np.sqrt(0.55), np.sqrt(5.5)]),
        ("both", [1 / 11, 10 / 11], [0.5, 0.5], [0.55, 5.5]),
    ],
)
def test_effective_shares_of_100_to_10(apply, share, drawn, loss):
    settings = balance_settings(KEYS | {"apply": apply})
    balance = settings.of(table(100, 10), "fold 1")
    np.testing.assert_allclose(balance.effective_share, share)
    np.testing.assert_allclose(balance.sampler_share, drawn)
    np.testing.assert_allclose(balance.loss, loss)
    assert settings.over_corrected == (apply == "both")
    assert [line.split()[0] for line in balance.table().splitlines()] == ["class", "a", "b"]


def test_a_class_without_a_training_row_is_an_error_that_names_class_and_fold():
    settings = balance_settings(KEYS | {"apply": "loss"})
    with pytest.raises(DataError, match="fold 3: the class 'b' has no row"):
        settings.of(table(4, 0, 2), "fold 3")
    assert balance_settings(KEYS).of(table(4, 0, 2), "fold 3").loss.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="every class needs a row"):
        weights([4, 0], "inverse_freq")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"apply": "twice"}, "dataset.balance.apply=twice: choose none, sampler, loss, half, both"),
        ({"method": "inverse"}, "dataset.balance.method=inverse: choose inverse_freq"),
        ({"sampler": "balanced"}, "set dataset.balance.apply=sampler, not none"),
        ({"smooth": -1}, "dataset.balance.smooth=-1"),
        ({"beta": 1.0}, "dataset.balance.beta=1.0"),
        ({"clip_ratio": 0.5}, "dataset.balance.clip_ratio=0.5"),
        ({"weight": 1}, "dataset.balance.weight"),
    ],
)
def test_a_setting_that_means_nothing_is_an_error_that_names_its_key(changes, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        balance_settings(KEYS | changes)
