"""Intervals of means over folds and groups, and tests of paired differences. Seeded: the same rows give the same interval."""

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
    low, high = np.percentile(group_draws(folds, metric, seed), [2.5, 97.5])
    return float(low), float(high)


def group_draws(folds: Sequence[tuple[Sequence[str], Sequence[int]]], metric: Callable[[int, np.ndarray], float], seed: int) -> np.ndarray:
    """float [DRAWS]: the means that group_bootstrap takes its percentiles of. A metric of two runs sees the same drawn rows of both."""
    rng = np.random.default_rng(seed)
    prepared = [_strata(groups, labels) for groups, labels in folds]
    means = []
    for _ in range(DRAWS):
        values = []
        for number, strata in enumerate(prepared):
            drawn = [members[i] for members in strata for i in rng.integers(len(members), size=len(members))]
            values.append(metric(number, np.concatenate(drawn)))
        means.append(np.mean(values))
    return np.array(means)


def group_counts(folds: Sequence[tuple[Sequence[str], Sequence[int]]], seed: int, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws like those of group_draws as counts: per fold (int [draws, G] how often each group is drawn, int [n] group of each row)."""
    rng, found = np.random.default_rng(seed), []
    for groups, labels in folds:
        strata, owner = _strata(groups, labels), np.zeros(len(labels), np.int64)
        for number, rows in enumerate(rows for members in strata for rows in members):
            owner[rows] = number
        counts = []
        for size in map(len, strata):
            drawn = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]  # a range of numbers for each draw
            counts.append(np.bincount(drawn.ravel(), minlength=size * draws).reshape(draws, size))
        found.append((np.concatenate(counts, axis=1), owner))
    return found


def corrected_p(differences: Sequence[float], test_to_train: float) -> float | None:
    """Two-sided p of the mean of J paired differences, t = mean / (s sqrt(1/J + rho)) with J - 1 degrees (Nadeau and Bengio 1999).

    Where all differences are equal there is no spread to judge by: 1 if they are 0, else None. None for one difference too.
    """
    from scipy.stats import t

    count = len(differences)
    spread = float(np.std(differences, ddof=1)) if count > 1 else 0.0
    if spread <= 1e-12 * max(1.0, float(np.max(np.abs(differences)))):  # equal but for rounding
        return 1.0 if count > 1 and not np.any(differences) else None
    value = float(np.mean(differences)) / (spread * math.sqrt(1 / count + test_to_train))
    return float(2 * t.sf(abs(value), count - 1))


def bootstrap_p(draws: np.ndarray) -> float:
    """2 min(share <= 0, share >= 0) of drawn differences: at least 1 / draws, at most 1."""
    share = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    return min(1.0, max(2 * share, 1 / len(draws)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p (McNemar 1947) from the rows that only one of two models has right; 1 where there are none."""
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number (Holm 1979): times what is left, never below a smaller one's. None stays, and counts as one."""
    order = sorted((index for index, value in enumerate(values) if value is not None), key=lambda index: values[index])
    adjusted, largest = list(values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


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
