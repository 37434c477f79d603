"""Classification metrics against scikit-learn on random cases with absent classes, and by hand where it says nothing."""

import itertools
import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from mmexpert.metrics.classification import (
    auroc,
    average_precision,
    chance_lines,
    chance_precision,
    classification_metrics,
    confusion_counts,
    group_rows,
    per_class_rows,
    precision_at,
)


def random_case(seed):
    """Probabilities with ties, labels of fewer classes than there are columns."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(5, 60)), int(rng.integers(3, 7))
    logits = rng.normal(size=(n, classes)).round(1) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, rng.choice(rng.choice(classes, size=classes - 1, replace=False), size=n)


@pytest.mark.parametrize("seed", range(50))
def test_metrics_are_scikit_learns_on_the_classes_present(seed):
    p, labels = random_case(seed)
    got = classification_metrics(p, labels, ordered=True)
    predicted, used, everything = p.argmax(1), np.unique(labels), np.arange(p.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "acc": sk.accuracy_score(labels, predicted),
            "top2": sk.top_k_accuracy_score(labels, p + 1e-9 * np.arange(p.shape[1])[::-1], k=2, labels=everything),
            "balanced_acc": sk.balanced_accuracy_score(labels, predicted),
            "macro_f1": sk.f1_score(labels, predicted, labels=used, average="macro", zero_division=0),
            "weighted_f1": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
            "map": np.mean([sk.average_precision_score(labels == k, p[:, k]) for k in used]),
            "mcc": sk.matthews_corrcoef(labels, predicted),
            "kappa": sk.cohen_kappa_score(labels, predicted),
            "quadratic_kappa": sk.cohen_kappa_score(labels, predicted, labels=everything, weights="quadratic"),
            "nll": sk.log_loss(labels, p, labels=everything),
            "brier": ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean(),
        }
        if len(used) > 1:
            expected["macro_auroc"] = np.mean([sk.roc_auc_score(labels == k, p[:, k]) for k in used])
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    assert got["n_classes_used"] == len(used)


def test_one_class_only_leaves_out_what_cannot_be_said_and_is_never_zero_for_it():
    got = classification_metrics(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]))
    assert got["acc"] == got["balanced_acc"] == got["map"] == 1.0
    assert got["macro_auroc"] is None and got["kappa"] is None and got["n_classes_used"] == 1


def test_one_row_alone_has_its_metrics():
    got = classification_metrics(np.array([[0.2, 0.5, 0.3]]), np.array([2]))
    assert got["acc"] == 0 and got["top2"] == 1 and got["nll"] == pytest.approx(-math.log(0.3))
    assert got["brier"] == pytest.approx(0.04 + 0.25 + 0.49)


def test_a_probability_of_zero_has_a_finite_nll():
    assert classification_metrics(np.array([[1.0, 0.0]]), np.array([1]))["nll"] == pytest.approx(-math.log(1e-12))


def test_a_prediction_of_an_absent_class_is_an_error_of_the_true_class_only():
    p = np.array([[0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    got = classification_metrics(p, np.array([0, 0, 1]))
    assert got["balanced_acc"] == pytest.approx((0.5 + 1) / 2) and got["n_classes_used"] == 2
    assert got["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_equal_scores_are_one_step_of_average_precision_and_half_a_pair_of_auroc():
    positive = np.array([True, False, True, False])
    assert average_precision(np.full(4, 0.5), positive) == 0.5
    assert auroc(np.full(4, 0.5), positive) == 0.5
    assert average_precision(np.array([0.9, 0.9, 0.5, 0.1]), positive) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    assert auroc(np.array([0.9, 0.9, 0.5, 0.1]), positive) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_rows():
    p = np.array([[0.95, 0.05]] * 4 + [[0.65, 0.35]] * 6)
    labels = np.array([0, 0, 0, 1] + [0] * 6)
    expected = 0.4 * abs(0.75 - 0.95) + 0.6 * abs(1 - 0.65)
    got = classification_metrics(p, labels)
    assert got["ece"] == pytest.approx(expected) and got["ece_adaptive"] == pytest.approx(expected)


def test_equal_count_bins_split_what_equal_width_bins_pool():
    confidence = np.linspace(0.94, 0.99, 30)  # all in one bin of width 1/15
    p = np.stack([confidence, 1 - confidence], 1)
    labels = (np.arange(30) < 15).astype(int)  # the lower half is wrong
    got = classification_metrics(p, labels)
    assert got["ece"] == pytest.approx(abs(0.5 - confidence.mean()))
    assert got["ece_adaptive"] > 0.45 and got["ece_adaptive"] == pytest.approx(
        sum(abs((labels[i : i + 2] == 0).mean() - confidence[i : i + 2].mean()) * 2 / 30 for i in range(0, 30, 2)), abs=0.05
    )


def test_chance_lines_are_what_guessing_gives():
    got = chance_lines(np.array([0, 0, 0, 2]), 4)
    assert got["acc"] == 0.75 and got["balanced_acc"] == 0.5 and got["macro_auroc"] == 0.5
    assert got["map"] == pytest.approx((chance_precision(3, 4) + chance_precision(1, 4)) / 2)
    assert got["nll"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


@pytest.mark.parametrize("positives, rows", [(1, 4), (3, 4), (4, 4), (2, 5), (3, 7)])
def test_chance_of_average_precision_is_its_mean_over_all_orders(positives, rows):
    places = itertools.combinations(range(1, rows + 1), positives)
    precisions = [sum(found / place for found, place in enumerate(places, 1)) / positives for places in places]
    assert chance_precision(positives, rows) == pytest.approx(sum(precisions) / len(precisions), rel=1e-12)


def test_groups_vote_by_mean_probability_and_a_group_of_two_labels_is_left_out_and_counted():
    p = np.array([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.2, 0.8]])
    means, truth, mixed = group_rows(p, np.array([1, 1, 0, 1]), ["b", "b", "a", "a"])
    assert means.tolist() == [pytest.approx([0.35, 0.65])] and truth.tolist() == [1] and mixed == 1
    assert classification_metrics(means, truth)["acc"] == 1.0  # where single rows have .5


def test_rows_of_the_confusion_matrix_are_truth():
    assert confusion_counts(np.array([1, 1, 0]), np.array([0, 1, 0]), 2).tolist() == [[1, 1], [0, 1]]


def test_the_class_table_has_rates_with_wilson_bounds_and_blanks_where_nothing_is_known():
    p = np.array([[0.9, 0.1, 0.0]] * 8 + [[0.2, 0.8, 0.0]] * 2 + [[0.3, 0.7, 0.0]] * 5)
    labels = np.array([0] * 10 + [1] * 5)
    first, second, absent = per_class_rows(p, labels, ["walk", "jump", "box"])
    assert first["sensitivity"] == 0.8 and (first["sensitivity_lo"], first["sensitivity_hi"]) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert first["specificity"] == 1.0 and first["ppv"] == 1.0 and second["ppv"] == pytest.approx(5 / 7)
    assert second["specificity"] == 0.8 and second["f1"] == pytest.approx(10 / 12)
    assert absent["n"] == 0 and absent["sensitivity"] is None and absent["ppv"] is None and absent["ap"] is None
    assert first["auroc"] == pytest.approx(sk.roc_auc_score(labels == 0, p[:, 0]))


def test_precision_of_a_class_text_is_the_share_of_its_class_among_the_nearest_rows():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3]])
    assert precision_at(scores, np.array([0, 1, 1, 0]), 2) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert precision_at(scores, np.array([0, 0, 1, 0]), 3) == pytest.approx((3 / 3 + 1 / 3) / 2)
    assert precision_at(scores, np.array([0, 1, 1, 0]), 50) == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0]])
def test_labels_that_do_not_fit_are_an_error(labels):
    with pytest.raises(ValueError, match=r"labels 0\.\.1"):
        classification_metrics(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array(labels))
