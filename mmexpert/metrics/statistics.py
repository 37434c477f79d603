"""Intervals of means over folds and groups. Seeded: the same rows give the same interval."""

import math
from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 2000
_Z95 = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % bounds of a share."""
    p, z2 = right / total, _Z95**2
    centre, half = p + z2 / (2 * total), _Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return (centre - half) / (1 + z2 / total), (centre + half) / (1 + z2 / total)


def corrected_interval(values: Sequence[float], test_to_train: float) -> tuple[float, float] | None:
    """95 % interval of the mean over J folds, mean +- t s sqrt(1/J + rho) (Nadeau and Bengio 1999); None for one value.

    test_to_train: rho, mean over folds of n_test / n_train. Made for random resampling, a heuristic for folds; not clipped to 0..1.
    """
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return None
    half = t.ppf(0.975, count - 1) * float(np.std(values, ddof=1)) * math.sqrt(1 / count + test_to_train)
    mean = float(np.mean(values))
    return mean - half, mean + half


def group_bootstrap(
    folds: Sequence[tuple[Sequence[str], Sequence[int]]], metric: Callable[[int, np.ndarray], float], seed: int
) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of a metric averaged over folds, groups drawn with replacement within strata of their majority label.

    folds: (groups, labels) of the rows of each fold; metric(fold, rows) scores the drawn rows. Leaves out the variance of training.
    """
    rng = np.random.default_rng(seed)
    prepared = [_strata(groups, labels) for groups, labels in folds]
    means = []
    for _ in range(DRAWS):
        values = []
        for number, strata in enumerate(prepared):
            drawn = [members[i] for members in strata for i in rng.integers(len(members), size=len(members))]
            values.append(metric(number, np.concatenate(drawn)))
        means.append(np.mean(values))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _strata(groups: Sequence[str], labels: Sequence[int]) -> list[list[np.ndarray]]:
    """Per majority label, the row numbers of each of its groups."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    labels = np.asarray(labels)
    by_label: dict[int, list[np.ndarray]] = {}
    for number in range(len(names)):
        rows = np.flatnonzero(inverse == number)
        majority = int(np.bincount(labels[rows] + 1).argmax()) - 1  # +1: rows without a label have -1
        by_label.setdefault(majority, []).append(rows)
    return [by_label[label] for label in sorted(by_label)]
