"""folds_info.json: created once, before training; read ever after. A resume never splits anew in silence."""

import json
import os
from pathlib import Path

from mmexpert.data.records import RecordDataset
from mmexpert.engine.files import strict_json
from mmexpert.engine.folds import CvSettings, Fold, folds_info
from mmexpert.types import RunFolderError, StorageError

FILE = "folds_info.json"


def fix_folds(folder: Path, dataset: RecordDataset, settings: CvSettings, folds: list[Fold]) -> None:
    """Writes the folds, or checks that those of the file are these. Raises RunFolderError with the keys that differ."""
    path = folder / FILE
    now = folds_info(dataset, settings, folds)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        _compare(path, now)
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(strict_json(now, indent=1))
        file.flush()
        os.fsync(file.fileno())


def _compare(path: Path, now: dict) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}): remove it, or start afresh with resume=never") from error
    keys = ("method", "n_splits", "n_repeats", "seed", "inner_val")
    differing = {key: (stored.get(key), now[key]) for key in keys if stored.get(key) != now[key]}
    if stored["dataset"]["rows_fingerprint"] != now["dataset"]["rows_fingerprint"]:
        differing["rows_fingerprint"] = (stored["dataset"]["rows"], now["dataset"]["rows"])
    if differing:
        raise RunFolderError(f"{path} holds other folds: {differing} (stored, now); choose another name=, or resume=never")
    if stored["folds"] != now["folds"]:
        raise RunFolderError(f"{path}: the same settings now give other folds (another scikit-learn?); resume=never starts afresh")
