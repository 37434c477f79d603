"""Rows that no fold has trained on: predicted by the mean probability of the fold models, scored once."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.files import csv_cell, write_atomic
from mmexpert.engine.oof import FoldRows, Row, labels_of, probabilities_of, rows_text
from mmexpert.engine.row_scores import bootstrap_intervals
from mmexpert.metrics.classification import chance_lines, classification_metrics, confusion_counts, group_rows, per_class_rows
from mmexpert.types import RunFolderError

FILE = "external_predictions.csv"


def external_summary(
    folder: Path, info: dict[str, Any], metrics: Sequence[dict[str, Any]], numbers: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """What the finished folds (metrics.json and number of each) make of the data set's own test part.

    Writes external_predictions.csv where there are classes; other tasks have the mean over the fold models of each figure. `rows`
    alone where the part has not been scored.
    """
    found: dict[str, Any] = {"rows": len(info["external"])}
    paths = [folder / f"fold_{number}" / FILE for number in numbers]
    if not info["external"] or not paths or not all(path.exists() for path in paths):
        return found
    if names:
        ordered = any(key.endswith("/quadratic_kappa") for one in metrics for key in one)
        rows = mean_rows([_read(path, info["external"]) for path in paths], names)
        write_atomic(folder / FILE, rows_text(rows))
        return found | {"models": len(paths), "by": "mean probability of the fold models"} | figures(rows, names, ordered)
    keys = [key for key in metrics[0] if key.startswith("external/") and all(isinstance(one.get(key), (int, float)) for one in metrics)]
    means = {key.removeprefix("external/"): float(np.mean([one[key] for one in metrics])) for key in keys}
    chance = metrics[0].get("protocol", {}).get("external", {}).get("chance", {})
    return found | {"models": len(paths), "by": "mean of the fold models' figures", "metrics": means, "chance": chance}


def mean_rows(models: Sequence[Sequence[Row]], names: Sequence[str]) -> list[Row]:
    """Rows of predictions as text, the same ids in all: probabilities averaged over the models, the class of the largest; by id."""
    ordered = [sorted(rows, key=lambda row: row["id"]) for rows in models]
    mean = np.mean([[[float(row[f"p_{name}"]) for name in names] for row in rows] for rows in ordered], axis=0)
    return [
        row
        | {"predicted": str(csv_cell(names[int(chances.argmax())]))}
        | {f"p_{name}": str(float(p)) for name, p in zip(names, chances, strict=True)}
        for row, chances in zip(ordered[0], mean, strict=True)
    ]


def figures(rows: Sequence[Row], names: Sequence[str], ordered: bool) -> dict[str, Any]:
    """metrics and group_metrics (one vote a group) of rows of predictions, with bootstrap intervals over groups and chance lines, in
    both of which `group_` stands before a vote's. ordered: as ClassTable has it."""
    fold = FoldRows(0, 1, list(rows), (0, len(rows)))
    labels, chances = labels_of(fold, names), probabilities_of(fold, names)
    means, truth, mixed = group_rows(chances, labels, [row["group"] for row in fold.rows])
    voted = {f"group_{name}": value for name, value in chance_lines(truth, len(names), ordered).items()} if len(truth) else {}
    scores, votes = classification_metrics(chances, labels, ordered), classification_metrics(means, truth, ordered) if len(truth) else {}
    known = {*scores, *(f"group_{name}" for name in votes)}
    return {
        "groups": len({row["group"] for row in fold.rows}),
        "groups_with_two_labels": mixed,
        "metrics": scores,
        "group_metrics": votes,
        "ci95_bootstrap": {name: bounds for name, bounds in bootstrap_intervals([fold], names, ()).items() if name in known},
        "chance": chance_lines(labels, len(names), ordered) | voted,
    }


def tables(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """confusion and per_class of rows of predictions."""
    fold = FoldRows(0, 1, list(rows), (0, len(rows)))
    labels, chances = labels_of(fold, names), probabilities_of(fold, names)
    counts = confusion_counts(chances.argmax(1), labels, len(names))
    confusion = [{"truth": name, **dict(zip(names, line.tolist(), strict=True))} for name, line in zip(names, counts, strict=True)]
    return {"confusion": confusion, "per_class": per_class_rows(chances, labels, names)}


def line(external: dict[str, Any], headline: str) -> str:
    """`external: 40 rows, mean probability of the 5 fold models: balanced_acc 0.812, chance 0.125`; empty where nothing is scored."""
    name = headline.rpartition("/")[2]
    value = external.get("metrics", {}).get(name)
    if value is None:
        return ""
    bounds, chance = external.get("ci95_bootstrap", {}).get(name), external["chance"].get(name)
    interval = f", 95 % over groups {bounds[0]:.3f} .. {bounds[1]:.3f}" if bounds else ""
    beside = f", chance {chance:.3f}" if chance is not None else ""
    return f"external: {external['rows']} rows, {external['models']} models, {external['by']}: {name} {value:.3f}{interval}{beside}"


def _read(path: Path, expected: Sequence[str]) -> list[Row]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != len(expected) or len({row["id"] for row in rows}) != len(rows):
        raise RunFolderError(f"{path} has {len(rows)} rows, the data set's own test part {len(expected)}; run the fold again")
    return rows
