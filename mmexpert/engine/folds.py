"""The folds of a run: which samples train, choose and test. Checked for leaks before the first step; independent of file order.

Splits are over groups (patients, sessions): rows of one group know each other.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.cv_settings import CvSettings
from mmexpert.engine.given_folds import read_given
from mmexpert.engine.splitting import check_cover, check_repeats, cut, folds_of, own_parts, small_classes
from mmexpert.types import ConfigError, DataError, RunFolderError

log = logging.getLogger(__name__)
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Fold:
    """Ids of each part. number: from 1, over all repeats; 0 for a run without folds. repeat: from 1.

    external: the data set's own test part, which no fold trains on; empty where there is none, and without folds. inner: 0, or the
    number of a fold within the training part (cv=nested). place: its folder below the run's where that is no fold_NUMBER.
    """

    number: int
    repeat: int
    train: list[str]
    valid: list[str]
    test: list[str]
    external: list[str] = field(default_factory=list)
    inner: int = 0
    place: str = ""

    def parts(self, dataset: RecordDataset) -> dict[str, list[int]]:
        """Indices into the data set's records of train, valid and test, and of external where there is one. Raises RunFolderError."""
        index = {record.id: i for i, record in enumerate(dataset.records)}
        names = (*PARTS, "external") if self.external else PARTS
        try:
            return {name: [index[sample] for sample in getattr(self, name)] for name in names}
        except KeyError as error:
            raise RunFolderError(f"{_called(self)}: its record {error} is not in this data set: give the run's own data") from error

    def folder(self, run: Path) -> Path:
        """Where its files lie: the run's own folder without folds."""
        return run / (self.place or (f"fold_{self.number}" if self.number else ""))

    def prefix(self, count: int) -> str:
        """What its lines begin with: `[fold 2/5] `; nothing without folds."""
        if not self.number and not self.place:
            return ""
        inside = f" {self.place.rpartition('/')[2]}" if self.inner else ""
        return f"[fold {self.number}/{count}{inside}] " if self.number else f"[{self.place}] "


def make_folds(dataset: RecordDataset, settings: CvSettings) -> list[Fold]:
    """All folds of a run, checked. Raises DataError or ConfigError with counts and names."""
    records = dataset.records  # sorted by id: folds depend on no file order
    if settings.splitter is not None and settings.over == "groups":
        dataset.require_groups()
    folds = [_single(records, settings)] if settings.splitter is None else _cross(records, dataset, settings)
    check_folds(folds, dataset, settings.over)
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
    key = (fold.repeat, fold.number, fold.inner) if fold.inner else (fold.repeat, fold.number)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def check_folds(folds: list[Fold], dataset: RecordDataset, over: str = "groups") -> None:
    """Parts are disjoint in ids and (over=groups) in groups, none is empty that is needed, every class is trained on. Raises DataError."""
    records = {record.id: record for record in _units(dataset.records, over)}
    used = {records[sample].label for fold in folds for part in (*PARTS, "external") for sample in getattr(fold, part)}
    for fold in folds:
        _check_parts(fold, records)
        if not fold.train or (fold.number and not fold.test and not fold.inner):
            counts = ", ".join(f"{len(getattr(fold, part))} {part}" for part in PARTS)
            raise DataError(f"{_called(fold)}: a part is empty ({counts}): use fewer folds, or other shares")
        if dataset.classes is not None:
            there = {records[sample].label for sample in fold.train}
            missing = [name for label, name in enumerate(dataset.classes.names) if label in used - there]
            if missing:
                raise DataError(
                    f"{_called(fold)}: no training row of the class {', '.join(missing)}: use fewer folds, or leave its rows out "
                    "(cv.small_classes=skip)"
                )


def warn_of_shared_groups(folds: list[Fold], dataset: RecordDataset) -> None:
    """Names the groups of each test part that are trained on too: where folds are over rows that is no error."""
    group_of = {record.id: record.group for record in dataset.records}
    for fold in folds:
        ids, tested = set(fold.test), {group_of[sample] for sample in fold.test}
        shared = sorted(tested & {group_of[sample] for sample in [*fold.train, *fold.valid] if sample not in ids})
        if shared:
            names = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
            log.warning(
                "fold %d: %d of the %d groups of the test part are trained on too (%s): rows of one group know each other, so the "
                "figures are too good; choose cv=group or cv=stratified_group", fold.number, len(shared), len(tested), names,
            )  # fmt: skip


def _check_parts(fold: Fold, records: dict[str, Record]) -> None:
    owner: dict[str, str] = {}
    parts = ["train", "test", "external"] if fold.valid == fold.test else [*PARTS, "external"]  # selection=outer: valid is the test part
    for part in parts:
        for sample in getattr(fold, part):
            group = records[sample].group
            if owner.setdefault(group, part) != part:
                away = ", or keep the data set's own test part out of dataset.root" if part == "external" else ""
                raise DataError(
                    f"{_called(fold)}: the group {group!r} is in {owner[group]} and in {part} (record {sample}): rows of one group "
                    f"know each other; give the record another split or group{away}"
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
    kept = _units(_without_small_classes(records, dataset, settings), settings.over)
    if dataset.classes is None and settings.method.startswith("stratified"):
        log.warning("cv=%s: the records have no labels to spread evenly; the folds are those of groups or rows alone", settings.method)
    external = _ids(record for record in kept if record.split == "test")
    if settings.file is not None:
        named = {sample for entry in read_given(Path(settings.file)) for part in PARTS for sample in entry[part]}
        external = [sample for sample in external if sample not in named]
    outside = set(external)
    rows = [record for record in kept if record.id not in outside]
    cuts = list(_given(rows, settings) if settings.file is not None else _split(rows, settings))
    folds = [_fold(number, repeat, parts, external, settings) for number, (repeat, *parts) in enumerate(cuts, 1)]
    if settings.selection == "last" and settings.inner_val > 0 and any(not valid for _, _, valid, _ in cuts):
        log.warning(
            "cv.selection=last: %g %% of each training part are held out and choose nothing; cv.inner_val=0 trains on them",
            100 * settings.inner_val,
        )
    tests = [(fold.repeat, fold.test) for fold in folds]
    check_cover(tests, _ids(rows))
    check_repeats(tests)
    return folds


def _split(rows: list[Record], settings: CvSettings) -> Iterator[tuple[int, list[Record], list[Record], list[Record]]]:
    """(repeat, train, nothing, test) of each fold of the splitter; one a group in the order of their names where n_splits is None."""
    groups = len({record.group for record in rows})
    if settings.n_splits is None and groups > settings.max_folds:
        raise ConfigError(f"cv={settings.method}: {groups} groups are more folds than cv.max_folds={settings.max_folds}; choose cv=group")
    for repeat in range(1, settings.n_repeats + 1):
        remedy = "use fewer folds (cv.n_splits), or a finer dataset.group"
        pairs = folds_of(rows, settings.splitter, settings.n_splits or max(2, groups), settings.seed + repeat - 1, remedy)
        for train, test in pairs if settings.n_splits else sorted(pairs, key=lambda pair: pair[1][0].group):
            yield repeat, train, [], test


def _given(rows: list[Record], settings: CvSettings) -> Iterator[tuple[int, list[Record], list[Record], list[Record]]]:
    """(repeat, train, valid, test) of each fold of cv.file; rows of small classes that leave the run leave its parts too."""
    entries, known = read_given(Path(settings.file)), {record.id: record for record in rows}
    left_out = settings.small_classes == "skip"
    if len(entries) > settings.max_folds:
        raise ConfigError(f"cv.file={settings.file}: {len(entries)} folds are more than cv.max_folds={settings.max_folds}")
    for number, entry in enumerate(entries, 1):
        for part in PARTS:
            unknown = [] if left_out else [sample for sample in entry[part] if sample not in known]
            if unknown:
                raise DataError(
                    f"cv.file={settings.file}, fold {number}: {len(unknown)} of {len(entry[part])} ids of {part} are no records of this "
                    f"data set, the first is {unknown[0]!r}, a record is {rows[0].id!r}: correct the file, or the dataset"
                )
        yield entry["repeat"], *([known[sample] for sample in entry[part] if sample in known] for part in PARTS)


def _fold(number: int, repeat: int, parts: list[list[Record]], external: list[str], settings: CvSettings) -> Fold:
    train, valid, test = parts
    if settings.selection == "outer":
        if valid and _ids(valid) != _ids(test):
            raise ConfigError(f"cv.selection=outer: cv.file={settings.file} has valid parts of its own; choose cv.selection=inner")
        valid = test
    elif settings.inner_val > 0 and not valid:
        remedy = "set cv.inner_val to a larger share, or use fewer folds"
        train, valid = cut(train, settings.inner_val, settings.splitter, settings.seed + repeat - 1, remedy)
    return Fold(number, repeat, _ids(train), _ids(valid), _ids(test), external)


def _units(records: list[Record], over: str) -> list[Record]:
    """The records, each a group of its own where folds are over rows."""
    return [replace(record, group=record.id) for record in records] if over == "rows" else records


def _without_small_classes(records: list[Record], dataset: RecordDataset, settings: CvSettings) -> list[Record]:
    if dataset.classes is None:
        return records
    small = classes_below(records, dataset, settings)
    if not small:
        return records
    if settings.small_classes in ("error", "merge"):
        raise DataError(
            f"cv.n_splits={settings.n_splits}, but these classes have fewer {settings.over}: {small}: use fewer folds, or "
            "cv.small_classes=merge (one class `other`), skip (their rows leave the run) or allow (folds without them)"
        )
    if settings.small_classes == "allow":
        log.warning("cv.small_classes=allow: fewer %s than folds in %s; some test parts lack these classes", settings.over, small)
        return records
    kept = [record for record in records if dataset.classes.names[record.label] not in small]
    log.warning("cv.small_classes=skip: %d rows leave the run, listed in folds_info.json: %s", len(records) - len(kept), small)
    return kept


def classes_below(records: list[Record], dataset: RecordDataset, settings: CvSettings) -> dict[str, int]:
    """Groups (or rows) of each class that has fewer than there are folds; fewer than 2 where a fold is a group or comes from a file."""
    rows = _units([record for record in records if settings.file is not None or record.split != "test"], settings.over)
    return small_classes(rows, dataset.classes.names, settings.n_splits or 2)


def _ids(records: Iterable[Record]) -> list[str]:
    return [record.id for record in records]


def _called(fold: Fold) -> str:
    return f"fold {fold.number}{f', inner fold {fold.inner}' if fold.inner else ''}" if fold.number else "this run"
