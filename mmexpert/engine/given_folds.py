"""Folds that a file gives (cv.file): a folds_info.json, a JSON list of folds, or a CSV of ids and fold numbers."""

import csv
import json
from pathlib import Path
from typing import Any

from mmexpert.types import DataError

Given = dict[str, Any]
"""{"repeat": from 1, "train", "valid", "test": sorted ids} of a fold"""


def read_given(path: Path) -> list[Given]:
    """The folds of a file, by its content. Raises DataError with file, place, what was found and what was expected.

    folds_info.json: as it is. A list of {"train", "test" or "val"}: val is the test part where there is no test, else the valid part;
    "repeat" may stand beside them. CSV with the columns id, fold and perhaps repeat: the fold tests the row, the repeat's other rows train.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cv.file={path} can not be read ({error}): give a folds_info.json, a JSON list of folds or a CSV") from error
    folds = _from_json(path, text) if text.lstrip()[:1] in ("{", "[") else _from_csv(path, text)
    if len(folds) < 1:
        raise DataError(f"cv.file={path}: there are no folds in it")
    return folds


def _from_json(path: Path, text: str) -> list[Given]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise DataError(f"cv.file={path} is no JSON ({error})") from error
    entries = parsed.get("folds") if isinstance(parsed, dict) else parsed
    if not isinstance(entries, list):
        raise DataError(f"cv.file={path}: a JSON object without the list `folds`; expected a folds_info.json or a list of folds")
    return [_entry(path, number, entry) for number, entry in enumerate(entries, 1)]


def _entry(path: Path, number: int, entry: Any) -> Given:
    where = f"cv.file={path}, fold {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{where} is a {type(entry).__name__}, expected {{'train': [ids], 'test' or 'val': [ids]}}")
    valid = entry.get("valid", entry.get("val", []))
    if "test" not in entry and "val" in entry:  # nnU-Net's splits: val is what is left out
        test, valid = valid, []
    else:
        test = entry.get("test")
    parts = {"train": entry.get("train"), "valid": valid, "test": test}
    for part, ids in parts.items():
        if not isinstance(ids, list) or not all(isinstance(sample, str) for sample in ids):
            raise DataError(f"{where}: `{part}` is no list of ids as strings; it has the keys {', '.join(map(str, entry))}")
        if len(set(ids)) < len(ids):
            raise DataError(f"{where}: an id occurs twice in `{part}`: {next(sample for sample in ids if ids.count(sample) > 1)!r}")
    repeat = entry.get("repeat", 1)
    if not isinstance(repeat, int) or repeat < 1:
        raise DataError(f"{where}: repeat is {repeat!r}, expected a number from 1")
    return {"repeat": repeat} | {part: sorted(ids) for part, ids in parts.items()}


def _from_csv(path: Path, text: str) -> list[Given]:
    reader = csv.DictReader(text.splitlines())
    if not {"id", "fold"} <= set(reader.fieldnames or ()):
        raise DataError(f"cv.file={path}: the columns are {', '.join(reader.fieldnames or ())}, expected id, fold and perhaps repeat")
    fold_of: dict[int, dict[str, int]] = {}
    for line, row in enumerate(reader, 2):
        try:
            repeat, fold = int(row.get("repeat") or 1), int(row["fold"])
        except (TypeError, ValueError):
            repeat, fold = 0, 0
        if repeat < 1 or row["fold"] is None or not str(row["fold"]).strip().isdigit():
            raise DataError(f"cv.file={path}, line {line}: fold {row['fold']!r} and repeat {row.get('repeat')!r}; expected whole numbers")
        if row["id"] in fold_of.setdefault(repeat, {}):
            raise DataError(f"cv.file={path}, line {line}: the id {row['id']!r} stands twice in repeat {repeat}")
        fold_of[repeat][row["id"]] = fold
    return [
        {
            "repeat": repeat,
            "train": sorted(sample for sample, number in rows.items() if number != fold),
            "valid": [],
            "test": sorted(sample for sample, number in rows.items() if number == fold),
        }
        for repeat, rows in sorted(fold_of.items())
        for fold in sorted(set(rows.values()))
    ]
