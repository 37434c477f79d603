"""The summary over folds: made from whatever folds are done, as often as one likes, always the same."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.files import csv_text, strict_json, write_atomic
from mmexpert.engine.status import read_status
from mmexpert.metrics.classification import chance_lines, classification_metrics, confusion_counts, per_class_rows
from mmexpert.metrics.statistics import corrected_interval, group_bootstrap
from mmexpert.types import RunFolderError

_COUNTED = ("acc", "macro_f1")  # pooled over folds; probabilities of different models are on no common scale, so no map or auroc


def aggregate(folder: Path) -> dict[str, Any]:
    """Writes cv_summary.json, cv_summary.md, oof_predictions.csv, and per_class.csv and confusion.csv where there are classes.

    Raises RunFolderError for a folder without folds, or with folds of different configurations.
    """
    if not (folder / "folds_info.json").exists():
        raise RunFolderError(f"{folder} has no folds_info.json: it is no cross-validation")
    info = json.loads((folder / "folds_info.json").read_text(encoding="utf-8"))
    numbers = [fold["fold"] for fold in info["folds"]]
    statuses = {number: read_status(folder / f"fold_{number}") for number in numbers}
    done = [number for number, status in statuses.items() if status is not None and status.state == "done"]
    hashes = {statuses[number].config_hash for number in done}
    if len(hashes) > 1:
        raise RunFolderError(f"{folder}: folds of {len(hashes)} configurations: {[(n, statuses[n].config_hash[:8]) for n in done]}")
    metrics = {number: json.loads((folder / f"fold_{number}" / "metrics.json").read_text(encoding="utf-8")) for number in done}
    predictions = {number: _read_csv(folder / f"fold_{number}" / "predictions.csv") for number in done}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    ratio = _test_to_train(info, done)
    names = list(info["dataset"]["classes"])
    summary: dict[str, Any] = {
        "format": 1,
        "state": "done" if len(done) == len(numbers) else "partial",
        "folds_done": done,
        "folds_missing": [number for number in numbers if number not in done],
        "selection": config["cv"]["selection"],
        "optimistic": config["cv"]["selection"] == "outer",
        "groups": info["dataset"]["groups"],
        "rows_fingerprint": info["dataset"]["rows_fingerprint"],
        "headline": "test/balanced_acc" if names else config["trainer"]["monitor"],
        "metrics": _over_folds(metrics, predictions, names, ratio),
        "pooled": _pooled(folder, predictions, names),
        "warnings": ["chosen on the reported folds: optimistic"] if config["cv"]["selection"] == "outer" else [],
        "config": config,
    }
    write_atomic(folder / "cv_summary.json", strict_json(summary, indent=1))
    write_atomic(folder / "cv_summary.md", summary_table(summary))
    _write_oof(folder, predictions)
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """Markdown: one line per metric, chance beside it, then the warnings."""
    lines = [f"{len(summary['folds_done'])} folds, {summary['groups']} groups, selection {summary['selection']}, state {summary['state']}", ""]
    lines += ["| metric | mean | sd | min | max | 95 % corrected | 95 % bootstrap | chance |", "|---|---|---|---|---|---|---|---|"]
    for name, row in summary["metrics"].items():
        cells = [f"{row[key]:.3f}" if row[key] is not None else "" for key in ("mean", "sd", "min", "max")]
        cells += [f"{row[key][0]:.3f} .. {row[key][1]:.3f}" if row.get(key) else "" for key in ("ci95_corrected", "ci95_bootstrap")]
        chance = row.get("chance")
        lines.append(f"| {name} | " + " | ".join([*cells, f"{chance:.3f}" if chance is not None else ""]) + " |")
    return "\n".join([*lines, "", *summary["warnings"]]) + "\n"


def _over_folds(
    metrics: dict[int, dict[str, Any]], predictions: dict[int, list[dict[str, str]]], names: list[str], ratio: float
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    keys = [key for key in next(iter(metrics.values()), {}) if key.startswith(("test/", "valid/"))]
    for key in keys:
        values = [row[key] for row in metrics.values() if isinstance(row.get(key), (int, float))]
        if len(values) != len(metrics):
            continue
        chances = [row["protocol"].get("test", {}).get("chance", {}).get(key.removeprefix("test/")) for row in metrics.values()]
        known = [value for value in chances if value is not None]
        found[key] = {
            "folds": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "median": float(np.median(values)),
            "min": min(values),
            "max": max(values),
            "n": len(values),
            "ci95_corrected": corrected_interval(values, ratio),
            "chance": float(np.mean(known)) if known else None,
        }
    if names and "test/acc" in found:
        found["test/acc"]["ci95_bootstrap"] = _accuracy_interval(list(predictions.values()), names)
    return found


def _accuracy_interval(folds: list[list[dict[str, str]]], names: list[str]) -> tuple[float, float]:
    hits = [np.array([row["predicted"] == row["label"] for row in rows], float) for rows in folds]
    strata = [([row["group"] for row in rows], [names.index(row["label"]) for row in rows]) for rows in folds]
    return group_bootstrap(strata, lambda number, rows: float(hits[number][rows].mean()), seed=0)


def _pooled(folder: Path, predictions: dict[int, list[dict[str, str]]], names: list[str]) -> dict[str, Any]:
    rows = [row for fold in predictions.values() for row in fold]
    if not names or not rows:
        return {}
    labels = np.array([names.index(row["label"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    counts = confusion_counts(probabilities.argmax(1), labels, len(names))
    confusion = [{"truth": name, **dict(zip(names, line.tolist(), strict=True))} for name, line in zip(names, counts, strict=True)]
    write_atomic(folder / "confusion.csv", csv_text(confusion))
    write_atomic(folder / "per_class.csv", csv_text(per_class_rows(probabilities, labels, names)))
    scores = classification_metrics(probabilities, labels)
    return {name: scores[name] for name in _COUNTED} | {"confusion": counts.tolist(), "chance": chance_lines(labels, len(names))["acc"]}


def _write_oof(folder: Path, predictions: dict[int, list[dict[str, str]]]) -> None:
    rows = []
    for fold, entries in predictions.items():
        rows += [{"id": row["id"], "group": row["group"], "repeat": 0, "fold": fold, **row} for row in entries]
    write_atomic(folder / "oof_predictions.csv", csv_text(sorted(rows, key=lambda row: row["id"])))


def _test_to_train(info: dict[str, Any], done: list[int]) -> float:
    """Mean over folds of n_test / n_train, train without the inner valid part."""
    ratios = [len(fold["test"]) / len(fold["train"]) for fold in info["folds"] if fold["fold"] in done]
    return float(np.mean(ratios)) if ratios else 0.0


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
