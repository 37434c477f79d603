"""Out-of-fold predictions: every row as seen by the model that was trained without it and without its group."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.files import csv_cell, csv_text
from mmexpert.metrics.classification import chance_lines, classification_metrics, confusion_counts, per_class_rows
from mmexpert.metrics.statistics import group_bootstrap
from mmexpert.types import RunFolderError

_SEED = 0  # of the bootstrap: the same rows give the same interval
Row = dict[str, str]


@dataclass(frozen=True)
class FoldRows:
    """predictions.csv of a finished fold, cells as text. sizes: rows of its training and its test part."""

    number: int
    repeat: int
    rows: list[Row]
    sizes: tuple[int, int]


def read_rows(folder: Path, fold: dict[str, Any]) -> FoldRows:
    """The predictions of a fold of folds_info.json. Raises RunFolderError where they are not those of its test part, each row once."""
    path = folder / f"fold_{fold['fold']}" / "predictions.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise RunFolderError(
            f"{path}: {error.strerror}, but status.json calls the fold done; remove its folder and run it again"
        ) from error
    found, expected = sorted(row["id"] for row in rows), sorted(str(csv_cell(sample)) for sample in fold["test"])
    if found != expected:
        odd = sorted(set(found) ^ set(expected)) or [sample for sample, after in zip(found, found[1:], strict=False) if sample == after]
        raise RunFolderError(f"{path} has {len(found)} rows, the fold's test part {len(expected)}; the first that differs is {odd[0]!r}")
    return FoldRows(fold["fold"], fold["repeat"], rows, (len(fold["train"]), len(fold["test"])))


def oof_text(folds: Sequence[FoldRows]) -> str:
    """oof_predictions.csv: id, group, repeat, fold, then the folds' own columns; by repeat and id; fractions with 7 digits."""
    rows = [
        {"id": row["id"], "group": row["group"], "repeat": str(fold.repeat), "fold": str(fold.number)}
        | {k: _short(v) for k, v in row.items()}
        for fold in folds
        for row in fold.rows
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")  # cells have been through csv_cell; "-0.1" must stay a number
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (int(row["repeat"]), row["id"])))
    return text.getvalue()


def pooled_tables(folds: Sequence[FoldRows], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(acc, macro_f1, confusion, chance over all rows; {file name: text} of confusion.csv and per_class.csv).

    A row predicted in several repeats counts once, with its mean probabilities. No auroc or map: probabilities of different models
    are on no common scale.
    """
    if not folds or f"p_{names[0]}" not in folds[0].rows[0]:
        return {}, {}
    sums: dict[str, np.ndarray] = {}
    labels: dict[str, int] = {}
    for fold in folds:
        for row, label, probabilities in zip(fold.rows, _labels(fold, names), _probabilities(fold, names), strict=True):
            sums[row["id"]] = sums.get(row["id"], 0) + probabilities
            labels[row["id"]] = int(label)
    order = sorted(sums)
    truth, probabilities = np.array([labels[sample] for sample in order]), np.array([sums[sample] for sample in order])
    probabilities /= probabilities.sum(1, keepdims=True)
    counts = confusion_counts(probabilities.argmax(1), truth, len(names))
    scores = classification_metrics(probabilities, truth)
    values = {name: scores[name] for name in ("acc", "macro_f1")} | {"confusion": counts.tolist(), "rows": len(order)}
    confusion = [{"truth": name, **dict(zip(names, line.tolist(), strict=True))} for name, line in zip(names, counts, strict=True)]
    files = {"confusion.csv": csv_text(confusion), "per_class.csv": csv_text(per_class_rows(probabilities, truth, names))}
    return values | {"chance": chance_lines(truth, len(names))["acc"]}, files


def bootstrap_intervals(folds: Sequence[FoldRows], names: Sequence[str], k: Sequence[int]) -> dict[str, tuple[float, float]]:
    """95 % intervals over groups of what rows alone decide: acc, balanced_acc, macro_f1; or R@K of each direction and RSum."""
    if not folds:
        return {}
    columns = folds[0].rows[0]
    if names and "predicted" in columns:
        return _intervals(folds, names, _class_scores(folds, names))
    directions = [name.removeprefix("rank_") for name in columns if name.startswith("rank_")]
    return _intervals(folds, names, _recalls(folds, directions, k))


def _intervals(folds: Sequence[FoldRows], names: Sequence[str], scores: dict[str, Any]) -> dict[str, tuple[float, float]]:
    strata = [([row["group"] for row in fold.rows], _labels(fold, names)) for fold in folds]
    of_class = [set(zip(labels.tolist(), groups, strict=True)) for groups, labels in strata]
    if all(len(pairs) == len({label for label, _ in pairs}) for pairs in of_class):
        return {}  # a group a class (folds of whole days) leaves nothing to draw: no width would read as certainty
    return {name: group_bootstrap(strata, score, _SEED) for name, score in scores.items()}


def _class_scores(folds: Sequence[FoldRows], names: Sequence[str]) -> dict[str, Any]:
    cells = [_labels(fold, names) * len(names) + _labels(fold, names, "predicted") for fold in folds]

    def counted(number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = np.bincount(cells[number][rows], minlength=len(names) ** 2).reshape(len(names), -1)
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


def _recalls(folds: Sequence[FoldRows], directions: Sequence[str], k: Sequence[int]) -> dict[str, Any]:
    """The gallery stays whole: only queries are drawn."""
    ranks = {name: [np.array([float(row[f"rank_{name}"] or "nan") for row in fold.rows]) for fold in folds] for name in directions}

    def recall(name: str, limit: int, number: int, rows: np.ndarray) -> float:
        drawn = ranks[name][number][rows]
        drawn = drawn[~np.isnan(drawn)]  # a second caption of a clip is no query of its own
        return 100 * float((drawn <= limit).mean()) if len(drawn) else 0.0

    scores: dict[str, Any] = {
        f"{name}_R@{limit}": lambda number, rows, name=name, limit=limit: recall(name, limit, number, rows)
        for name in directions
        for limit in k
    }
    summed = [(name, limit) for name in directions for limit in k if limit in (1, 5, 10)]
    scores["RSum"] = lambda number, rows: sum(recall(name, limit, number, rows) for name, limit in summed)
    return scores


def _labels(fold: FoldRows, names: Sequence[str], column: str = "label") -> np.ndarray:
    """int64 [n]; -1 where rows have no label."""
    if not names or column not in fold.rows[0]:
        return np.full(len(fold.rows), -1)
    number = {str(csv_cell(name)): label for label, name in enumerate(names)}
    return np.array([number[row[column]] for row in fold.rows])


def _probabilities(fold: FoldRows, names: Sequence[str]) -> np.ndarray:
    return np.array([[float(row[f"p_{name}"]) for name in names] for row in fold.rows])


def _short(cell: str) -> str:
    """A fraction with 7 significant digits; every other cell as it is."""
    if "." not in cell and "e" not in cell:
        return cell
    try:
        return f"{float(cell):.7g}"
    except ValueError:
        return cell
