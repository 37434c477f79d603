"""Metrics of a fold as functions of some of its rows: what a bootstrap draws over, for one run or for two runs at once."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mmexpert.engine.oof import FoldRows, labels_of, probabilities_of
from mmexpert.metrics.classification import average_precision, classification_metrics, group_rows
from mmexpert.metrics.statistics import group_bootstrap

SEED = 0  # of the bootstrap: the same rows give the same interval
Score = Callable[[int, np.ndarray], float]
"""score(number of a fold in its list, row numbers with repeats) -> value"""
Strata = list[tuple[Sequence[str], Sequence[int]]]


def bootstrap_intervals(folds: Sequence[FoldRows], names: Sequence[str], k: Sequence[int]) -> dict[str, tuple[float, float]]:
    """95 % intervals over groups of what rows alone decide: acc, balanced_acc, macro_f1; or R@K of each direction and RSum."""
    if not folds or (strata := drawn_from(folds, names)) is None:
        return {}
    columns = folds[0].rows[0]
    scores = _guessed(folds, names) if names and "predicted" in columns else _recalls(folds, directions_of(folds), k)
    return {name: group_bootstrap(strata, score, SEED) for name, score in scores.items()}


def drawn_from(folds: Sequence[FoldRows], names: Sequence[str]) -> Strata | None:
    """(groups, labels) of each fold's rows; None where a group a class (folds of whole days) leaves nothing to draw."""
    strata = [([row["group"] for row in fold.rows], labels_of(fold, names)) for fold in folds]
    of_class = [set(zip(labels.tolist(), groups, strict=True)) for groups, labels in strata]
    if all(len(pairs) == len({label for label, _ in pairs}) for pairs in of_class):
        return None  # no width would read as certainty
    return strata


def row_score(name: str, folds: Sequence[FoldRows], names: Sequence[str], k: Sequence[int]) -> tuple[Score, Strata] | None:
    """A metric, without its part, as a function of drawn rows, and what to draw them from; None where rows do not decide it.

    group_X is the metric X of one row a group, with the mean probabilities of its rows.
    """
    if (strata := drawn_from(folds, names)) is None:
        return None
    columns = folds[0].rows[0]
    if not names or "predicted" not in columns:
        scores = _recalls(folds, directions_of(folds), k)
        return (scores[name], strata) if name in scores else None
    if name in (scores := _guessed(folds, names)):
        return scores[name], strata
    if f"p_{names[0]}" not in columns:
        return None
    known = [(probabilities_of(fold, names), labels_of(fold, names)) for fold in folds]
    if name.startswith("group_"):
        known = [group_rows(*rows, groups)[:2] for rows, (groups, _) in zip(known, strata, strict=True)]
        strata = [([str(number) for number in range(len(truth))], truth) for _, truth in known]
        name = name.removeprefix("group_")
        if name in (scores := _class_scores([(truth, means.argmax(1)) for means, truth in known], len(names))):
            return scores[name], strata
    if not all(len(truth) for _, truth in known) or name not in classification_metrics(*known[0]):
        return None
    return partial(_from_probabilities, name, known), strata


def directions_of(folds: Sequence[FoldRows]) -> list[str]:
    """Directions of retrieval, from the columns rank_DIRECTION."""
    return [name.removeprefix("rank_") for name in folds[0].rows[0] if name.startswith("rank_")]


def _from_probabilities(name: str, known: Sequence[tuple[np.ndarray, np.ndarray]], number: int, rows: np.ndarray) -> float:
    probabilities, labels = known[number][0][rows], known[number][1][rows]
    if name == "map":  # alone: all metrics of 2,000 draws take minutes
        return float(np.mean([average_precision(probabilities[:, label], labels == label) for label in np.unique(labels)]))
    if name == "nll":
        return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())
    value = classification_metrics(probabilities, labels)[name]
    return float("nan") if value is None else value


def _guessed(folds: Sequence[FoldRows], names: Sequence[str]) -> dict[str, Score]:
    return _class_scores([(labels_of(fold, names), labels_of(fold, names, "predicted")) for fold in folds], len(names))


def _class_scores(known: Sequence[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, Score]:
    """known: (true, predicted) labels of each fold."""
    cells = [truth * classes + predicted for truth, predicted in known]

    def counted(number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = np.bincount(cells[number][rows], minlength=classes**2).reshape(classes, -1)
        used = counts.sum(1) > 0
        return counts.diagonal()[used], counts.sum(1)[used], counts.sum(0)[used]

    def acc(number: int, rows: np.ndarray) -> float:
        return float(counted(number, rows)[0].sum() / len(rows))

    def balanced_acc(number: int, rows: np.ndarray) -> float:
        right, true, _ = counted(number, rows)
        return float((right / true).mean())

    def macro_f1(number: int, rows: np.ndarray) -> float:
        right, true, guessed = counted(number, rows)
        return float((2 * right / (true + guessed)).mean())

    return {"acc": acc, "balanced_acc": balanced_acc, "macro_f1": macro_f1}


def _recalls(folds: Sequence[FoldRows], directions: Sequence[str], k: Sequence[int]) -> dict[str, Score]:
    """The gallery stays whole: only queries are drawn."""
    ranks = {name: [np.array([float(row[f"rank_{name}"] or "nan") for row in fold.rows]) for fold in folds] for name in directions}

    def recall(name: str, limit: int, number: int, rows: np.ndarray) -> float:
        drawn = ranks[name][number][rows]
        drawn = drawn[~np.isnan(drawn)]  # a second caption of a clip is no query of its own
        return 100 * float((drawn <= limit).mean()) if len(drawn) else 0.0

    scores: dict[str, Score] = {
        f"{name}_R@{limit}": lambda number, rows, name=name, limit=limit: recall(name, limit, number, rows)
        for name in directions
        for limit in k
    }
    summed = [(name, limit) for name in directions for limit in k if limit in (1, 5, 10)]
    scores["RSum"] = lambda number, rows: sum(recall(name, limit, number, rows) for name, limit in summed)
    return scores
