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
from mmexpert.types import RunFolderError

Row = dict[str, str]
_FIGURES = ("p_", "rank_", "gallery")  # columns of numbers; other ones, such as ids and a table's further columns, stay as they are


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
        | {name: _short(cell) if name.startswith(_FIGURES) else cell for name, cell in row.items()}
        for fold in folds
        for row in fold.rows
    ]
    return rows_text(sorted(rows, key=lambda row: (int(row["repeat"]), row["id"])))


def rows_text(rows: Sequence[Row]) -> str:
    """A CSV file of rows that were read from one: their cells have been through csv_cell, and "-0.1" must stay a number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def text_rows(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """Rows of predictions as a file would give them back."""
    return list(csv.DictReader(io.StringIO(csv_text(rows), newline="")))


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
        for row, label, probabilities in zip(fold.rows, labels_of(fold, names), probabilities_of(fold, names), strict=True):
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


def labels_of(fold: FoldRows, names: Sequence[str], column: str = "label") -> np.ndarray:
    """int64 [n]; -1 where rows have no label."""
    if not names or column not in fold.rows[0]:
        return np.full(len(fold.rows), -1)
    number = {str(csv_cell(name)): label for label, name in enumerate(names)}
    return np.array([number[row[column]] for row in fold.rows])


def probabilities_of(fold: FoldRows, names: Sequence[str]) -> np.ndarray:
    """float [n, K], rows in the file's order."""
    return np.array([[float(row[f"p_{name}"]) for name in names] for row in fold.rows])


def _short(cell: str) -> str:
    """A fraction with 7 significant digits; every other cell as it is."""
    if "." not in cell and "e" not in cell:
        return cell
    try:
        return f"{float(cell):.7g}"
    except ValueError:
        return cell
