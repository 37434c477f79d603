"""The folds of a run: which samples train, choose and test. Checked for leaks before the first step; independent of file order.

Splits are over groups (patients, sessions): rows of one group know each other.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.splitting import Splitter, check_cover, check_repeats, cut, folds_of, own_parts, small_classes
from mmexpert.types import ConfigError, DataError

log = logging.getLogger(__name__)
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class CvSettings:
    """splitter: None (the data set's own parts, else a grouped cut by fractions), or what makes a scikit-learn splitter.

    seed: of the splits; repeat r has seed + r - 1. inner_val: share of the training part that chooses the checkpoint. selection:
    inner | last (epoch) | outer (the test part chooses: optimistic, and stamped so). fold: None, a number from 1, or a list.
    small_classes: error | skip | allow. headline: a metric's name, None = balanced_acc with classes, else the monitored one.
    """

    method: str
    splitter: Splitter | None
    n_splits: int
    n_repeats: int
    seed: int
    inner_val: float
    selection: str
    fold: int | list[int] | None
    fractions: list[float] | None
    small_classes: str
    same_init: bool
    headline: str | None

    def __post_init__(self) -> None:
        if self.selection not in ("inner", "last", "outer"):
            raise ConfigError(f"cv.selection={self.selection}: choose inner, last or outer")
        if self.small_classes not in ("error", "skip", "allow"):
            raise ConfigError(f"cv.small_classes={self.small_classes}: choose error, skip or allow")
        if not 0 <= self.inner_val < 1 or self.seed < 0:
            raise ConfigError(f"cv.inner_val={self.inner_val} is a share, 0 to below 1; cv.seed={self.seed} is 0 or above")
        self._check_single() if self.splitter is None else self._check_folds()

    def _check_single(self) -> None:
        shares = self.fractions or []
        if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0 or shares[0] == 0:
            raise ConfigError(f"cv.fractions={self.fractions}: shares of train (above 0), valid and test whose sum is 1")
        given = {"n_splits": 1, "n_repeats": 1, "fold": None, "small_classes": "error", "same_init": False, "headline": None}
        for key, only in given.items():  # nothing is accepted and ignored
            if getattr(self, key) != only:
                raise ConfigError(f"cv.{key}={getattr(self, key)}: cv={self.method} makes no folds; choose cv=group or cv=stratified_group")
        if self.selection == "outer":
            raise ConfigError(f"cv.selection=outer needs folds; with cv={self.method} choose inner or last")

    def _check_folds(self) -> None:
        if self.n_splits < 2 or self.n_repeats < 1:
            raise ConfigError(f"cv.n_splits={self.n_splits} is 2 or more, cv.n_repeats={self.n_repeats} is 1 or more")
        if self.fractions is not None:
            raise ConfigError(f"cv.fractions={self.fractions}: shares belong to cv=none; with cv={self.method} set cv.n_splits")
        if self.selection == "inner" and self.inner_val == 0:
            raise ConfigError("cv.inner_val=0 leaves nothing that chooses the checkpoint: set cv.selection=last, or a share above 0")
        if self.selection == "outer" and self.inner_val > 0:
            raise ConfigError(f"cv.selection=outer has no inner part: set cv.inner_val=0 (it is {self.inner_val})")


@dataclass(frozen=True)
class Fold:
    """Ids of each part. number: from 1, over all repeats; 0 for a run without folds. repeat: from 1.

    external: the data set's own test part, which no fold trains on; empty where there is none, and without folds.
    """

    number: int
    repeat: int
    train: list[str]
    valid: list[str]
    test: list[str]
    external: list[str] = field(default_factory=list)

    def parts(self, dataset: RecordDataset) -> dict[str, list[int]]:
        """Indices into the data set's records of train, valid and test."""
        index = {record.id: i for i, record in enumerate(dataset.records)}
        return {name: [index[sample] for sample in getattr(self, name)] for name in PARTS}


def make_folds(dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """All folds of a run, checked. Raises DataError or ConfigError with counts and names."""
    records = dataset.records  # sorted by id: folds depend on no file order
    folds = [_single(records, settings)] if settings.splitter is None else _cross(records, dataset, settings)
    check_folds(folds, dataset)
    return folds


def chosen_folds(folds: list[Fold], settings: CvSettings) -> list[Fold]:
    """The folds that cv.fold names; all where it is null. Raises ConfigError for a number that there is not."""
    if settings.fold is None:
        return folds
    wanted = settings.fold if isinstance(settings.fold, list) else [settings.fold]
    unknown = [number for number in wanted if number not in [fold.number for fold in folds]]
    if unknown or not wanted:
        raise ConfigError(f"cv.fold={settings.fold}: there are folds 1 to {len(folds)}")
    return [fold for fold in folds if fold.number in wanted]


def fold_seed(seed: int, fold: Fold, same_init: bool) -> int:
    """The seed of a fold's weights, order and augmentation; fold 3 alone equals fold 3 of the whole run."""
    if fold.number == 0 or same_init:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(fold.repeat, fold.number)).generate_state(1)[0])


def check_folds(folds: list[Fold], dataset: RecordDataset) -> None:
    """Parts are disjoint in ids and groups, none is empty that is needed, every class of the run is trained on. Raises DataError."""
    records = {record.id: record for record in dataset.records}
    used = {records[sample].label for fold in folds for part in (*PARTS, "external") for sample in getattr(fold, part)}
    for fold in folds:
        _check_parts(fold, records)
        if not fold.train or (fold.number and not fold.test):
            counts = ", ".join(f"{len(getattr(fold, part))} {part}" for part in PARTS)
            raise DataError(f"fold {fold.number}: a part is empty ({counts}): use fewer folds, or other shares")
        if dataset.classes is not None:
            there = {records[sample].label for sample in fold.train}
            missing = [name for label, name in enumerate(dataset.classes.names) if label in used - there]
            if missing:
                raise DataError(
                    f"fold {fold.number}: no training row of the class {', '.join(missing)}: use fewer folds, or leave its rows out "
                    "(cv.small_classes=skip)"
                )


def _check_parts(fold: Fold, records: dict[str, Record]) -> None:
    owner: dict[str, str] = {}
    parts = ["train", "test", "external"] if fold.valid == fold.test else [*PARTS, "external"]  # selection=outer: valid is the test part
    for part in parts:
        for sample in getattr(fold, part):
            group = records[sample].group
            if owner.setdefault(group, part) != part:
                raise DataError(
                    f"fold {fold.number}: the group {group!r} is in {owner[group]} and in {part} (record {sample}): rows of one group "
                    "know each other; give the record another split or group"
                )


def _single(records: list[Record], settings: CvSettings) -> Fold:
    parts = own_parts(records, settings.fractions or (), settings.inner_val, settings.seed)
    if not parts["valid"] and settings.selection == "inner":
        raise ConfigError(
            "no record is in a valid part that could choose the checkpoint: set cv.selection=last, cv.inner_val above 0 where only a test "
            "part is there, or cv.fractions with a valid share"
        )
    return Fold(0, 1, *(_ids(parts[name]) for name in PARTS))


def _cross(records: list[Record], dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """Own train and valid parts are put together; an own test part stays outside all folds."""
    kept = _without_small_classes(records, dataset, settings)
    external, rows = _ids(record for record in kept if record.split == "test"), [record for record in kept if record.split != "test"]
    folds: list[Fold] = []
    for repeat in range(1, settings.n_repeats + 1):
        seed = settings.seed + repeat - 1
        remedy = "use fewer folds (cv.n_splits), or a finer dataset.group"
        for train, test in folds_of(rows, settings.splitter, settings.n_splits, seed, remedy):
            valid = test if settings.selection == "outer" else []
            if settings.inner_val > 0:
                train, valid = cut(
                    train, settings.inner_val, settings.splitter, seed, "set cv.inner_val to a larger share, or use fewer folds"
                )
            folds.append(Fold(len(folds) + 1, repeat, _ids(train), _ids(valid), _ids(test), external))
    tests = [(fold.repeat, fold.test) for fold in folds]
    check_cover(tests, _ids(rows))
    check_repeats(tests)
    return folds


def _without_small_classes(records: list[Record], dataset: RecordDataset, settings: CvSettings) -> list[Record]:
    if dataset.classes is None:
        return records
    small = small_classes([record for record in records if record.split != "test"], dataset.classes.names, settings.n_splits)
    if not small:
        return records
    if settings.small_classes == "error":
        raise DataError(
            f"cv.n_splits={settings.n_splits}, but these classes have fewer groups: {small}: use fewer folds, or cv.small_classes=skip "
            "(their rows leave the run) or allow (folds without them)"
        )
    if settings.small_classes == "allow":
        log.warning("cv.small_classes=allow: fewer groups than folds in %s; some test parts lack these classes", small)
        return records
    kept = [record for record in records if dataset.classes.names[record.label] not in small]
    log.warning("cv.small_classes=skip: %d rows leave the run, listed in folds_info.json: %s", len(records) - len(kept), small)
    return kept


def _ids(records: Iterable[Record]) -> list[str]:
    return [record.id for record in records]
