"""Which samples train, choose and test: the folds of a run, written once and read ever after.

Splits are over groups (patients, sessions), checked for leaks before the first step, and depend on no file order.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mmexpert.data.records import Record, RecordDataset
from mmexpert.types import ConfigError, DataError

log = logging.getLogger(__name__)


class Splitter(Protocol):
    """scikit-learn's protocol: a new method is a YAML that names another splitter."""

    def split(self, X: Any, y: Any, groups: Any) -> Any:  # noqa: N803
        """Pairs of (training, test) positions."""


@dataclass(frozen=True)
class CvSettings:
    """splitter: None (the data set's own parts, else a grouped cut by fractions) or a scikit-learn splitter with n_splits.

    inner_val: share of the training part that chooses the checkpoint; 0 needs selection=last or outer. selection: inner | last |
    outer (optimistic, and stamped so). fold: None, a number from 1, or a list. small_classes: error | skip | allow. fractions: of
    train, valid and test, where there is no splitter.
    """

    method: str
    splitter: Splitter | None
    n_splits: int
    seed: int
    inner_val: float
    selection: str
    fold: int | list[int] | None
    small_classes: str
    same_init: bool
    fractions: list[float] | None = None

    def __post_init__(self) -> None:
        if self.selection not in ("inner", "last", "outer"):
            raise ConfigError(f"cv.selection={self.selection}: choose inner, last or outer")
        if self.small_classes not in ("error", "skip", "allow"):
            raise ConfigError(f"cv.small_classes={self.small_classes}: choose error, skip or allow")
        wrong = self.splitter is not None and (self.inner_val == 0) == (self.selection == "inner")
        if not 0 <= self.inner_val < 1 or wrong:
            raise ConfigError(f"cv.inner_val={self.inner_val} with cv.selection={self.selection}: inner needs a share above 0, last and outer need 0")
        if self.splitter is None and (self.fractions is None or len(self.fractions) != 3 or abs(sum(self.fractions) - 1) > 1e-6 or min(self.fractions) < 0):
            raise ConfigError(f"cv.fractions={self.fractions}: shares of train, valid and test whose sum is 1")


@dataclass(frozen=True)
class Fold:
    """Ids of each part; number from 1, 0 for a run without folds."""

    number: int
    train: list[str]
    valid: list[str]
    test: list[str]

    def parts(self, dataset: RecordDataset) -> dict[str, list[int]]:
        """Indices into the data set's records by part."""
        index = {record.id: i for i, record in enumerate(dataset.records)}
        return {name: [index[sample] for sample in getattr(self, name)] for name in ("train", "valid", "test")}


def make_folds(dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """All folds of a run, checked. Raises DataError or ConfigError with counts and names."""
    records = dataset.records  # sorted by id
    folds = [_own_parts(records, settings)] if settings.splitter is None else _cross(dataset, settings)
    for fold in folds:
        check_fold(fold, dataset)
    return folds


def chosen_folds(folds: list[Fold], settings: CvSettings) -> list[Fold]:
    """The folds that cv.fold names; all where it is null."""
    if settings.fold is None:
        return folds
    wanted = settings.fold if isinstance(settings.fold, list) else [settings.fold]
    unknown = [number for number in wanted if number not in [fold.number for fold in folds]]
    if unknown:
        raise ConfigError(f"cv.fold={settings.fold}: there are folds 1 to {len(folds)}")
    return [fold for fold in folds if fold.number in wanted]


def fold_seed(seed: int, fold: Fold, same_init: bool) -> int:
    """The seed of a fold's weights, order and augmentation; fold 3 alone equals fold 3 of the whole run."""
    if fold.number == 0 or same_init:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(0, fold.number)).generate_state(1)[0])


def rows_fingerprint(records: Sequence[Record]) -> str:
    """SHA-256 over the sorted lines `id TAB label TAB group`: what splits depend on."""
    lines = sorted(f"{record.id}\t{record.label}\t{record.group}\n" for record in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folds_info(dataset: RecordDataset, settings: CvSettings, folds: list[Fold]) -> dict[str, Any]:
    """The content of folds_info.json: ids, never row numbers."""
    records = {record.id: record for record in dataset.records}
    names = dataset.classes.names if dataset.classes else ()

    def counts(ids: list[str]) -> dict[str, int]:
        labels = Counter(records[sample].label for sample in ids)
        return {name: labels[k] for k, name in enumerate(names)} if names else {"rows": len(ids)}

    parts = ("train", "valid", "test")
    return {
        "format": 1,
        "dataset": {
            "name": dataset.name,
            "rows_fingerprint": rows_fingerprint(dataset.records),
            "rows": len(dataset.records),
            "groups": len({record.group for record in dataset.records}),
            "classes": counts(list(records)) if names else {},
        },
        "method": settings.method,
        "n_splits": settings.n_splits if settings.splitter is not None else 1,
        "n_repeats": 1,
        "seed": settings.seed,
        "inner_val": settings.inner_val,
        "folds": [
            {
                "fold": fold.number,
                "repeat": 0,
                **{part: getattr(fold, part) for part in parts},
                "counts": {part: counts(getattr(fold, part)) for part in parts},
                "groups": {part: len({records[sample].group for sample in getattr(fold, part)}) for part in parts},
            }
            for fold in folds
        ],
    }


def check_fold(fold: Fold, dataset: RecordDataset) -> None:
    """Parts are disjoint in ids and in groups; every class is in the training part. Raises DataError with names."""
    records = {record.id: record for record in dataset.records}
    owner: dict[str, str] = {}
    parts = ("train", "test") if fold.valid == fold.test else ("train", "valid", "test")  # selection=outer: valid is the test part
    for part in parts:
        for sample in getattr(fold, part):
            group = records[sample].group
            if owner.setdefault(group, part) != part:
                raise DataError(
                    f"fold {fold.number}: the group {group!r} is in {owner[group]} and in {part} (record {sample}): rows of one group "
                    "know each other; give the record another split or group"
                )
    if not fold.train:
        raise DataError(f"fold {fold.number}: the training part is empty; {len(fold.valid)} rows are valid, {len(fold.test)} test")
    if dataset.classes is not None:
        there = {records[sample].label for sample in fold.train}
        missing = [name for k, name in enumerate(dataset.classes.names) if k not in there]
        if missing:
            raise DataError(f"fold {fold.number}: no training row of the class {', '.join(missing)}; use fewer folds")


def _own_parts(records: Sequence[Record], settings: CvSettings) -> Fold:
    """The data set's parts; a valid part is cut out of train where there is none, everything where there are no parts at all."""
    by_part: dict[str, list[Record]] = {"train": [], "valid": [], "test": []}
    for record in records:
        by_part[record.split or "train"].append(record)
    train, valid, test = by_part["train"], by_part["valid"], by_part["test"]
    if not valid and not test:
        shares = settings.fractions
        if shares[2] > 0:
            train, test = _cut(train, shares[2], settings.seed)
        if shares[1] > 0:
            train, valid = _cut(train, shares[1] / (shares[0] + shares[1]), settings.seed)
    elif not valid and settings.inner_val > 0:
        train, valid = _cut(train, settings.inner_val, settings.seed)
    return Fold(0, *([record.id for record in part] for part in (train, valid, test)))


def _cut(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(rest, part of about the share), grouped, stratified by label where there are labels."""
    from sklearn.model_selection import StratifiedGroupKFold

    splits = max(2, round(1 / share))
    groups = [record.group for record in records]
    if len(set(groups)) < splits:
        raise DataError(
            f"{len(set(groups))} groups ({', '.join(sorted(set(groups))[:5])}) can not be cut into {splits} parts: set cv.fractions or "
            "cv.inner_val to a larger share, or give the records splits of their own"
        )
    splitter = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
    rest, part = next(splitter.split(np.zeros(len(records)), [record.label for record in records], groups))
    return [records[i] for i in rest], [records[i] for i in part]


def _cross(dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """Own train and valid parts are put together; an own test part stays outside all folds."""
    records = [record for record in dataset.records if record.split != "test"]
    records = _large_classes(records, dataset, settings)
    labels, groups = [record.label for record in records], [record.group for record in records]
    if len(set(groups)) < settings.n_splits:
        raise DataError(
            f"cv.n_splits={settings.n_splits}, but there are {len(set(groups))} groups: {', '.join(sorted(set(groups))[:10])}; "
            f"use at most {len(set(groups))} folds, or a finer dataset.group"
        )
    folds = []
    for number, (train, test) in enumerate(settings.splitter.split(np.zeros(len(records)), labels, groups), 1):
        outer, held_out = [records[i] for i in train], [records[i] for i in test]
        valid: list[Record] = held_out if settings.selection == "outer" else []
        if settings.selection == "inner":
            outer, valid = _cut(outer, settings.inner_val, settings.seed)
        folds.append(Fold(number, *([record.id for record in part] for part in (outer, valid, held_out))))
    covered = Counter(sample for fold in folds for sample in fold.test)
    if set(covered.values()) != {1} or len(covered) != len(records):
        raise DataError(f"cv={settings.method}: the test parts do not cover every row once")
    return folds


def _large_classes(records: list[Record], dataset: RecordDataset, settings: CvSettings) -> list[Record]:
    """Classes with fewer groups than folds: StratifiedGroupKFold says nothing and makes folds without them."""
    if dataset.classes is None:
        return records
    groups = {k: len({record.group for record in records if record.label == k}) for k in range(len(dataset.classes.names))}
    small = {dataset.classes.names[k]: count for k, count in groups.items() if 0 < count < settings.n_splits}
    if not small or settings.small_classes == "allow":
        return records
    if settings.small_classes == "error":
        raise DataError(
            f"cv.n_splits={settings.n_splits}, but these classes have fewer groups: {small}; use fewer folds, or "
            "cv.small_classes=skip (their rows leave the run) or allow"
        )
    log.warning("cv.small_classes=skip: the rows of %s leave the run", small)
    return [record for record in records if dataset.classes.names[record.label] not in small]
