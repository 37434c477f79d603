"""Classification metrics of many bootstrap draws at once: each row counts as often as a draw holds it.

Shapes: D draws, n rows, K classes; weight [D, n] counts. What classification_metrics says of the drawn rows, NaN where that is None.
"""

from collections.abc import Collection

import numpy as np

from mmexpert.metrics.classification import BINS, SMALLEST

RANKED = ("map", "macro_auroc")  # what takes the time: all rows in order, class by class


def counted_metrics(truth: np.ndarray, predicted: np.ndarray, classes: int, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics that the confusion matrix decides, quadratic_kappa among them; truth and predicted int [n]."""
    own, place = np.eye(classes)[truth], np.arange(classes)
    rows, true, guessed = weight.sum(1), weight @ own, weight @ np.eye(classes)[predicted]
    right = weight @ (own * (truth == predicted)[:, None])
    used, all_right = true > 0, right.sum(1)
    f1 = 2 * right / np.maximum(true + guessed, 1)
    agreed = (true * guessed).sum(1)  # of n^2 pairs, by chance
    spread = (rows**2 - (guessed**2).sum(1)) * (rows**2 - (true**2).sum(1))
    missed = (true @ (place[:, None] - place) ** 2 * guessed).sum(1) / rows
    return {
        "acc": all_right / rows,
        "balanced_acc": _mean(right / np.maximum(true, 1), used),
        "macro_f1": _mean(f1, used),
        "weighted_f1": (f1 * true).sum(1) / rows,
        "kappa": 1 - _share(rows - all_right, rows - agreed / rows),
        "quadratic_kappa": 1 - _share(weight @ (truth - predicted) ** 2, missed),
        "mcc": np.where(spread > 0, (all_right * rows - agreed) / np.sqrt(np.maximum(spread, 1)), 0.0),
    }


def probability_metrics(
    probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray, wanted: Collection[str] | None
) -> dict[str, np.ndarray]:
    """Metrics that probabilities [n, K] decide; wanted: names, None = all (the ranked ones are left out where nobody asks)."""
    rows, confidence, hit = weight.sum(1), probabilities.max(1), (predicted == truth).astype(float)
    second = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    onehot = np.eye(probabilities.shape[1])[truth]
    of_row = {
        "top2": (second == truth[:, None]).any(1).astype(float),
        "nll": -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], SMALLEST)),
        "brier": ((probabilities - onehot) ** 2).sum(1),
    }
    found = {name: weight @ values / rows for name, values in of_row.items()}
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, "left") - 1, 0, BINS - 1)
    found["ece"] = np.abs(weight @ (np.eye(BINS)[bins] * (hit - confidence)[:, None])).sum(1) / rows
    if wanted is None or "ece_adaptive" in wanted:
        found["ece_adaptive"] = _adaptive(confidence, hit, weight)
    if wanted is None or set(RANKED) & set(wanted):
        ranked = [_ranked(probabilities[:, k], truth == k, weight) for k in np.unique(truth)]
        for name, values in zip(RANKED, zip(*ranked, strict=True), strict=True):
            by_class = np.stack(values, 1)
            found[name] = _mean(by_class, ~np.isnan(by_class))
    return found


def _ranked(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(average precision, auroc) of one class by draw; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ordered = weight[:, order]
    every = np.cumsum(ordered, axis=1)[:, last]
    hits = np.cumsum(ordered * positive[order], axis=1)[:, last]
    gained = np.diff(hits, prepend=0, axis=1)
    precision = _share((gained * hits / np.maximum(every, 1)).sum(1), hits[:, -1])
    others = every - hits
    behind = others[:, -1:] - others + np.diff(others, prepend=0, axis=1) / 2  # ties half
    return precision, _share((gained * behind).sum(1), hits[:, -1] * others[:, -1])


def _adaptive(confidence: np.ndarray, hit: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """ece_adaptive by draw: the edges are quantiles of the drawn rows, as np.quantile has them (linear)."""
    order = np.argsort(confidence, kind="stable")
    ordered, gap = confidence[order], (hit - confidence)[order]
    found, share = np.empty(len(weight)), np.linspace(0, 1, BINS + 1)[1:-1]  # the outer edges hold everything
    for number, counts in enumerate(weight[:, order]):
        upto = np.cumsum(counts)
        place = (upto[-1] - 1) * share
        whole = np.floor(place)
        low = ordered[np.searchsorted(upto, whole, "right")]
        high = ordered[np.searchsorted(upto, np.minimum(whole + 1, upto[-1] - 1), "right")]
        part, step = place - whole, high - low
        edges = np.where(part < 0.5, low + step * part, high - step * (1 - part))
        sums = np.concatenate([[0.0], np.cumsum(counts * gap)])
        bounds = np.concatenate([[0], np.searchsorted(ordered, edges, "right"), [len(ordered)]])
        found[number] = np.abs(np.diff(sums[bounds])).sum() / upto[-1]
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is not above 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 1e-9)


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean of the known classes [D, K] -> [D]."""
    return _share(np.where(known, values, 0.0).sum(1), known.sum(1).astype(float))
