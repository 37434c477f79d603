"""Classification metrics as fractions 0..1, over the classes that occur; equal to scikit-learn's on those classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15
SMALLEST = 1e-12  # of a probability under the logarithm


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray, ordered: bool = False) -> dict[str, float | None]:
    """probabilities [n, K] (rows sum to 1), labels int [n] -> metrics by name; None where nothing can be said.

    Macro metrics run over classes with a true row (n_classes_used); a prediction of an absent class is still an error of the true one.
    ordered: the classes have an order, and quadratic_kappa is there. Raises ValueError without a row or with a label outside 0..K-1.
    """
    n, classes = probabilities.shape
    if len(labels) != n or not n or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{n} rows of {classes} probabilities and {len(labels)} labels; expected as many, one or more, labels 0..{classes - 1}"
        )
    predicted = probabilities.argmax(1)
    counts = confusion_counts(predicted, labels, classes)
    used = np.flatnonzero(counts.sum(1))
    recall = np.diag(counts)[used] / counts.sum(1)[used]
    true, guessed, right = counts.sum(1), counts.sum(0), np.diag(counts)
    f1 = np.array([2 * right[k] / (true[k] + guessed[k]) if true[k] + guessed[k] else 0.0 for k in range(classes)])
    top2 = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    own = probabilities[np.arange(n), labels]
    onehot = np.eye(classes)[labels]
    confidence, hit = probabilities.max(1), (predicted == labels).astype(float)
    aurocs = [auroc(probabilities[:, k], labels == k) for k in used]
    known = [value for value in aurocs if value is not None]
    quadratic = {"quadratic_kappa": quadratic_kappa(counts)} if ordered else {}
    return quadratic | {
        "acc": float(hit.mean()),
        "top2": float((top2 == labels[:, None]).any(1).mean()),
        "balanced_acc": float(recall.mean()),
        "macro_f1": float(f1[used].mean()),
        "weighted_f1": float((f1 * true).sum() / n),
        "map": float(np.mean([average_precision(probabilities[:, k], labels == k) for k in used])),
        "macro_auroc": float(np.mean(known)) if known else None,
        "kappa": _kappa(counts),
        "mcc": _mcc(counts),
        "nll": float(-np.log(np.maximum(own, SMALLEST)).mean()),
        "brier": float(((probabilities - onehot) ** 2).sum(1).mean()),
        "ece": _calibration(confidence, hit, np.linspace(0, 1, BINS + 1)),
        "ece_adaptive": _calibration(confidence, hit, np.quantile(confidence, np.linspace(0, 1, BINS + 1))),
        "n_classes_used": int(len(used)),
    }


def chance_lines(labels: np.ndarray, classes: int, ordered: bool = False) -> dict[str, float]:
    """What guessing gives: acc the largest share, balanced_acc 1 / classes used, map of random orders, nll the entropy of the shares.

    map is not the 1 / K that is often named (cross-validation.md section 2 too): that is what it comes to for endless rows. A random
    order of n rows with p of a class has a mean average precision above p / n, and beside 1 / K a model that has learnt nothing would
    look better than chance in every small part. ordered: quadratic_kappa is there too.
    """
    counts = np.bincount(labels, minlength=classes)
    counts = counts[counts > 0]
    shares = counts / len(labels)
    return ({"quadratic_kappa": 0.0} if ordered else {}) | {
        "acc": float(shares.max()),
        "balanced_acc": 1 / len(shares),
        "map": float(np.mean([chance_precision(int(n), len(labels)) for n in counts])),
        "macro_auroc": 0.5,
        "kappa": 0.0,
        "mcc": 0.0,
        "nll": float(-(shares * np.log(shares)).sum()),
    }


def chance_precision(positives: int, rows: int) -> float:
    """Mean average precision of random orders: (H + (p - 1) / (n - 1) (n - H)) / n with H = 1 + 1/2 + ... + 1/n; above the share p / n,
    for few rows far above."""
    if positives == rows:
        return 1.0
    harmonic = float((1 / np.arange(1, rows + 1)).sum())
    return (harmonic + (positives - 1) / (rows - 1) * (rows - harmonic)) / rows


def confusion_counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """int [K, K], rows are truth."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """sum_n (R_n - R_{n-1}) P_n over thresholds; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    recall = hits[last] / positive.sum()
    precision = hits[last] / (last + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Share of (positive, negative) pairs in the right order, ties half; None where one side is empty."""
    ups, downs = scores[positive], np.sort(scores[~positive])
    if not len(ups) or not len(downs):
        return None
    below = np.searchsorted(downs, ups, "left") + np.searchsorted(downs, ups, "right")
    return float(below.sum() / (2 * len(ups) * len(downs)))


def group_rows(probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Probabilities averaged over each group's rows, their labels, and how many groups were left out for having two labels."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    means, truth, mixed = [], [], 0
    for number in range(len(names)):
        rows = inverse == number
        if len(set(labels[rows].tolist())) > 1:
            mixed += 1
            continue
        means.append(probabilities[rows].mean(0))
        truth.append(labels[rows][0])
    return np.array(means), np.array(truth), mixed


def per_class_rows(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """class, n, sensitivity, specificity, ppv with Wilson 95 % bounds, f1, ap, auroc."""
    from mmexpert.metrics.statistics import wilson

    counts = confusion_counts(probabilities.argmax(1), labels, len(names))
    rows = []
    for k, name in enumerate(names):
        hit, true, guessed = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        others = int(counts.sum()) - true
        row: dict[str, Any] = {"class": name, "n": true}
        for key, right, total in (("sensitivity", hit, true), ("specificity", others - (guessed - hit), others), ("ppv", hit, guessed)):
            low, high = wilson(right, total) if total else (None, None)
            row |= {key: right / total if total else None, f"{key}_lo": low, f"{key}_hi": high}
        row["f1"] = 2 * hit / (true + guessed) if true + guessed else None
        row["ap"] = average_precision(probabilities[:, k], labels == k) if true else None
        row["auroc"] = auroc(probabilities[:, k], labels == k)
        rows.append(row)
    return rows


def quadratic_kappa(counts: np.ndarray) -> float | None:
    """Cohen's kappa of a confusion matrix whose errors weigh as the square of their distance in class order."""
    places = np.arange(len(counts))
    return _kappa(counts, (places[:, None] - places) ** 2)


def precision_at(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of a class among the k rows nearest to its text (scores [n, K], equal scores: lower row), mean over classes with a row.

    Of fewer than k rows, all are looked at.
    """
    nearest = np.argsort(-scores, axis=0, kind="stable")[:k]
    return float(np.mean([(labels[nearest[:, c]] == c).mean() for c in np.unique(labels)]))


def _kappa(counts: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    weight = 1 - np.eye(len(counts)) if weight is None else weight
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    disagreement = (weight * expected).sum()
    return float(1 - (weight * counts).sum() / disagreement) if disagreement > 0 else None  # one class only: nothing to agree on


def _mcc(counts: np.ndarray) -> float:
    n, right = float(counts.sum()), float(np.trace(counts))
    true, guessed = counts.sum(1).astype(float), counts.sum(0).astype(float)
    spread = (n**2 - (guessed**2).sum()) * (n**2 - (true**2).sum())
    return float((right * n - (true * guessed).sum()) / np.sqrt(spread)) if spread > 0 else 0.0


def _calibration(confidence: np.ndarray, hit: np.ndarray, edges: np.ndarray) -> float:
    bins = np.clip(np.searchsorted(edges, confidence, "left") - 1, 0, len(edges) - 2)
    gaps = [abs(hit[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))
