"""folds_info.json: created once, before training, by one process; read ever after. A resume never splits anew."""

import errno
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.files import fsync_path, strict_json, write_atomic
from mmexpert.engine.folds import PARTS, CvSettings, Fold, check_folds, make_folds, warn_of_shared_groups
from mmexpert.types import RunFolderError, StorageError

log = logging.getLogger(__name__)
FILE = "folds_info.json"
_MUST_AGREE = ("method", "n_splits", "n_repeats", "seed", "inner_val")
_LINKS_REFUSED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # exFAT, some network shares


def settle_folds(folder: Path, dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """The folds of the run in a folder: those of its file, else new ones, which are written first.

    Raises RunFolderError with the keys that differ where the file was made for other rows or settings; StorageError.
    """
    path = folder / FILE
    if not path.exists():
        content = strict_json(folds_info(dataset, settings, make_folds(dataset, settings)), indent=1)
        _create(path, content)  # another process may have been first: its folds are read below
    stored = read_folds_info(path)
    _compare(path, stored, folds_info(dataset, settings, []))
    folds = stored_folds(stored)
    check_folds(folds, dataset, settings.over)
    if settings.over == "rows":
        warn_of_shared_groups(folds, dataset)
    return folds


def write_class_table(folder: Path, dataset: RecordDataset) -> None:
    """classes.json of a run: names in label order, texts, rows; nothing where there are no classes. Raises StorageError."""
    if dataset.classes is not None:
        write_atomic(folder / "classes.json", strict_json(asdict(dataset.classes), indent=1))


def read_folds_info(path: Path) -> dict[str, Any]:
    """The parsed file. Raises RunFolderError where it is missing, damaged or of another format."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} can not be read ({error.strerror}): the folder holds no run with folds") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}): resume=never starts afresh and keeps this folder") from error
    if not isinstance(stored, dict) or stored.get("format") != 1:
        raise RunFolderError(f"{path} is not a folds file of format 1: resume=never starts afresh and keeps this folder")
    try:
        stored_folds(stored)
        missing = {"rows_fingerprint", "rows", "groups", "classes"} - stored["dataset"].keys() | {"left_out"} - stored.keys()
    except (KeyError, TypeError, AttributeError) as error:
        missing = {repr(error)}
    if missing:
        raise RunFolderError(f"{path} is damaged ({', '.join(sorted(missing))} missing): resume=never starts afresh and keeps this folder")
    return stored


def stored_folds(info: dict[str, Any]) -> list[Fold]:
    """The folds of a parsed file."""
    return [Fold(row["fold"], row["repeat"], *(list(row[part]) for part in PARTS), list(info["external"])) for row in info["folds"]]


def rows_fingerprint(records: Sequence[Record]) -> str:
    """SHA-256 over the sorted lines `id TAB label TAB group`: what splits depend on."""
    lines = sorted(f"{record.id}\t{record.label}\t{record.group}\n" for record in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folds_info(dataset: RecordDataset, settings: CvSettings, folds: list[Fold]) -> dict[str, Any]:
    """The content of the file: ids, never row numbers; rows and groups of each part counted."""
    records = {record.id: record for record in dataset.records}
    names = dataset.classes.names if dataset.classes else ()

    def counts(ids: Sequence[str]) -> dict[str, int]:
        labels = Counter(records[sample].label for sample in ids)
        return {name: labels[label] for label, name in enumerate(names)} if names else {"rows": len(ids)}

    external = folds[0].external if folds else []
    placed = {sample for fold in folds for part in PARTS for sample in getattr(fold, part)} | set(external)
    return {
        "format": 1,
        "dataset": {
            "name": dataset.name,
            "rows_fingerprint": rows_fingerprint(dataset.records),
            "rows": len(records),
            "groups": len({record.group for record in dataset.records}),
            "classes": counts(list(records)) if names else {},
        },
        **{key: getattr(settings, key) for key in _MUST_AGREE},
        "external": external,
        "merged": list(dataset.merged),  # class names that cv.small_classes=merge made one class `other`
        "left_out": sorted(records.keys() - placed),  # of small classes
        "folds": [
            {
                "fold": fold.number,
                "repeat": fold.repeat,
                **{part: getattr(fold, part) for part in PARTS},
                "counts": {part: counts(getattr(fold, part)) for part in PARTS},
                "groups": {part: len({records[sample].group for sample in getattr(fold, part)}) for part in PARTS},
            }
            for fold in folds
        ],
    }


def _create(path: Path, content: str) -> None:
    """Gives whole content a name that must be free; leaves the file alone that another process has just made."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # exclusive, and never half a file under the name, as O_EXCL and a kill would leave
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _LINKS_REFUSED:
                raise
            os.rename(temporary, path)  # two at once write the same bytes: folds depend on the rows and settings alone
        fsync_path(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: not written ({error.strerror}); free space or check the folder's rights") from error
    finally:
        temporary.unlink(missing_ok=True)


def _compare(path: Path, stored: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [f"{key}: stored {stored.get(key)!r}, now {now[key]!r}" for key in _MUST_AGREE if stored.get(key) != now[key]]
    before, after = stored["dataset"], now["dataset"]
    if before["rows_fingerprint"] != after["rows_fingerprint"]:
        rows = [f"{where['rows']} rows in {where['groups']} groups, {where['rows_fingerprint'][:12]}" for where in (before, after)]
        differing.append(f"rows_fingerprint (ids, labels, groups): stored {rows[0]}, now {rows[1]}")
    if differing:
        raise RunFolderError(f"{path} holds other folds: {'; '.join(differing)}. Choose another name=, or resume=never to start afresh")
