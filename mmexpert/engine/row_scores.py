"""Metrics of folds over bootstrap draws of their groups, for one run or for two runs that are drawn alike."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from mmexpert.engine.oof import FoldRows, labels_of, probabilities_of
from mmexpert.metrics.classification import group_rows
from mmexpert.metrics.drawn import counted_metrics, probability_metrics
from mmexpert.metrics.statistics import DRAWS, group_counts, group_draws

SEED = 0  # of the bootstrap: the same rows give the same interval
_GROUP = "group_"
_LEAST_DRAWS, _CELLS = 200, 2 * 10**8  # rows x classes x draws that take some seconds: for more there are fewer draws
_BLOCK_CELLS = 2**20  # rows x draws at a time: 8 MiB a matrix
Score = Callable[[int, np.ndarray], float]
"""score(number of a fold in its list, row numbers with repeats) -> value"""
Strata = list[tuple[Sequence[str], Sequence[int]]]
Known = list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]
"""(true labels [n], predicted labels [n], probabilities [n, K] or None) of each fold"""


def bootstrap_intervals(folds: Sequence[FoldRows], names: Sequence[str], k: Sequence[int]) -> dict[str, tuple[float, float]]:
    """95 % intervals over groups of what rows alone decide: metrics of classes and their group_...; or R@K of each direction and RSum.

    A draw without a value (no negative left) is left out.
    """
    found = {}
    for name, draws in drawn_means(folds, names, k).items():
        low, high = np.percentile(draws[~np.isnan(draws)], [2.5, 97.5])
        found[name] = (float(low), float(high))
    return found


def drawn_means(
    folds: Sequence[FoldRows], names: Sequence[str], k: Sequence[int], wanted: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """By metric, without its part: the mean over folds in each draw of their groups. wanted: names, None = all that rows decide.

    group_X is the metric X of one row a group, with the mean probabilities of its rows. A fold without a value in a draw is not in that
    mean; where none has one it is NaN, and a metric that never has one is not there. Of folds that hold more than a few thousand rows
    there are fewer draws, 200 at least.
    """
    if not folds or (strata := drawn_from(folds, names)) is None:
        return {}
    columns = folds[0].rows[0]
    if not names or "predicted" not in columns:
        scores = _recalls(folds, directions_of(folds), k)
        return {name: group_draws(strata, score, SEED) for name, score in scores.items() if wanted is None or name in wanted}
    chances = [probabilities_of(fold, names) if f"p_{names[0]}" in columns else None for fold in folds]
    found: dict[str, np.ndarray] = {}
    if wanted is None or any(not name.startswith(_GROUP) for name in wanted):
        rows = [(labels_of(fold, names), labels_of(fold, names, "predicted"), p) for fold, p in zip(folds, chances, strict=True)]
        found = _class_means(rows, strata, len(names), wanted)
    if chances[0] is not None and (wanted is None or any(name.startswith(_GROUP) for name in wanted)):
        votes = [group_rows(p, labels, groups)[:2] for p, (groups, labels) in zip(chances, strata, strict=True)]
        votes = [(truth, means.argmax(1), means) for means, truth in votes if len(truth)]
        own = [([str(number) for number in range(len(truth))], truth) for truth, _, _ in votes]
        asked = None if wanted is None else [name.removeprefix(_GROUP) for name in wanted if name.startswith(_GROUP)]
        found |= {f"{_GROUP}{name}": draws for name, draws in _class_means(votes, own, len(names), asked).items()}
    return found if wanted is None else {name: draws for name, draws in found.items() if name in wanted}


def _class_means(known: Known, strata: Strata, classes: int, wanted: Collection[str] | None) -> dict[str, np.ndarray]:
    """Metrics of classes by name: means over folds [draws]."""
    if not known or _nothing_to_draw(strata):
        return {}
    draws = max(_LEAST_DRAWS, min(DRAWS, _CELLS // (classes * sum(len(truth) for truth, _, _ in known))))
    sums: dict[str, np.ndarray] = {}
    there: dict[str, np.ndarray] = {}
    for (truth, predicted, chances), (counts, owner) in zip(known, group_counts(strata, SEED, draws), strict=True):
        blocks = []
        for some in np.array_split(counts, -(-draws * len(truth) // _BLOCK_CELLS)):
            weight = some[:, owner].astype(float)
            blocks.append(counted_metrics(truth, predicted, classes, weight))
            if chances is not None:
                blocks[-1] |= probability_metrics(chances, truth, predicted, weight, wanted)
        for name in blocks[0]:
            values = np.concatenate([block[name] for block in blocks])
            sums[name] = sums.get(name, 0) + np.nan_to_num(values)
            there[name] = there.get(name, 0) + ~np.isnan(values)
    return {name: np.where(there[name], sums[name] / np.maximum(there[name], 1), np.nan) for name in sums if there[name].any()}


def drawn_from(folds: Sequence[FoldRows], names: Sequence[str]) -> Strata | None:
    """(groups, labels) of each fold's rows; None where a group a class (folds of whole days) leaves nothing to draw."""
    strata = [([row["group"] for row in fold.rows], labels_of(fold, names)) for fold in folds]
    return None if _nothing_to_draw(strata) else strata


def _nothing_to_draw(strata: Strata) -> bool:
    """Whether every class of every fold is one group: no width would read as certainty."""
    of_class = [set(zip(np.asarray(labels).tolist(), groups, strict=True)) for groups, labels in strata]
    return all(len(pairs) == len({label for label, _ in pairs}) for pairs in of_class)


def directions_of(folds: Sequence[FoldRows]) -> list[str]:
    """Directions of retrieval, from the columns rank_DIRECTION."""
    return [name.removeprefix("rank_") for name in folds[0].rows[0] if name.startswith("rank_")]


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
