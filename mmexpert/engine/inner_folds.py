"""cv=nested: folds within a training part, and the entry of the grid that does best on them (cross-validation.md section 6)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.records import RecordDataset
from mmexpert.engine.cv_settings import CvSettings
from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.folds import Fold, check_folds
from mmexpert.engine.splitting import folds_of
from mmexpert.types import DataError, RunFolderError

FILE = "selected.json"


def inner_folds(dataset: RecordDataset, fold: Fold, settings: CvSettings, entry: int) -> list[Fold]:
    """The inner folds of an outer training part (its own valid part included) for an entry of the grid, from 1.

    The same for every entry, weights and order too: entries are compared on equal terms. The held-out part of each is its valid part;
    there is no test part. Raises DataError where a part can not be trained on.
    """
    own = {*fold.train, *fold.valid}
    rows = [record for record in dataset.records if record.id in own]
    remedy = "use fewer cv.inner_splits, or fewer cv.n_splits"
    pairs = folds_of(rows, settings.splitter, settings.inner_splits, settings.seed + fold.repeat - 1, remedy)
    found = [
        Fold(
            fold.number,
            fold.repeat,
            [record.id for record in train],
            [record.id for record in held],
            [],
            inner=number,
            place=f"fold_{fold.number}/inner/c{entry}_j{number}",
        )
        for number, (train, held) in enumerate(pairs, 1)
    ]
    check_folds(found, dataset, settings.over)
    outside = {*fold.test, *fold.external}
    for one in found:
        if met := outside & {*one.train, *one.valid}:
            raise DataError(f"fold {fold.number}, inner fold {one.inner}: {len(met)} test rows are in it, such as {min(met)}")
    return found


def chosen_entry(scores: Sequence[Sequence[float | None]], mode: str) -> int:
    """Number, from 0, of the entry with the best mean over its inner folds; of equals the first. A fold without a value is the worst."""
    worst = np.inf if mode == "min" else -np.inf
    means = [float(np.mean([worst if value is None or not np.isfinite(value) else value for value in row])) for row in scores]
    return int(np.argmin(means) if mode == "min" else np.argmax(means))


def write_selected(folder: Path, grid: Sequence[str], scores: Sequence[Sequence[float | None]], chosen: int, monitor: str) -> None:
    """selected.json of an outer fold: the entries, the monitored value of each on each inner fold, the number of the chosen, from 1."""
    content = {"overrides": list(grid), "monitor": monitor, "scores": [list(row) for row in scores], "chosen": chosen + 1}
    write_atomic(folder / FILE, strict_json(content, indent=1))


def read_selected(folder: Path) -> dict[str, Any] | None:
    """selected.json of an outer fold; None where the fold has not chosen yet. Raises RunFolderError for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["overrides"][stored["chosen"] - 1]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunFolderError(f"{path} is damaged ({error!r}): remove it, and the same command chooses again") from error
    return stored


def wins(folder: Path, numbers: Sequence[int], grid: Sequence[str]) -> dict[str, Any]:
    """How often each entry won among the finished folds, and which won in each: for cv_summary.json."""
    chosen = {number: selected["chosen"] for number in numbers if (selected := read_selected(folder / f"fold_{number}")) is not None}
    counts = [sum(entry == number for entry in chosen.values()) for number in range(1, len(grid) + 1)]
    return {"grid": list(grid), "wins": counts, "chosen": {str(number): grid[entry - 1] for number, entry in chosen.items()}}
