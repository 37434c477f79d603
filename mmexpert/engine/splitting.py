"""Which records go where, always whole groups at a time: a data set's own parts, cuts, cross-validation. Knows no files."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmexpert.data.records import Record
from mmexpert.types import ConfigError, DataError

Splitter = Callable[..., Any]
"""A scikit-learn splitter's class, given n_splits and random_state: a new method is a YAML that names another one."""
Records = list[Record]


def folds_of(records: Sequence[Record], splitter: Splitter, n_splits: int, seed: int, remedy: str) -> list[tuple[Records, Records]]:
    """(training side, test side) of each of n_splits parts; the order of the rows does not matter.

    Raises DataError with the number of groups and the remedy where there are fewer groups than parts.
    """
    rows = sorted(records, key=lambda record: record.id)
    groups = [record.group for record in rows]
    names = sorted(set(groups))
    if len(names) < n_splits:
        raise DataError(f"{n_splits} folds need {n_splits} groups or more, there are {_told(names)}: {remedy}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The groups parameter is ignored")  # folds over rows: check_folds names the groups
        warnings.filterwarnings("ignore", message="The least populated class")  # small_classes counts groups, and refuses or says so
        try:
            splits = list(splitter(n_splits=n_splits, random_state=seed).split(np.zeros(len(rows)), [r.label for r in rows], groups))
        except ValueError as error:  # such as every class smaller than n_splits
            raise DataError(f"{n_splits} equal parts of {len(rows)} rows in {len(names)} groups: {error}; {remedy}") from error
    return [([rows[i] for i in train], [rows[i] for i in test]) for train, test in splits]


def cut(records: Sequence[Record], share: float, splitter: Splitter, seed: int, remedy: str) -> tuple[Records, Records]:
    """(rest, part): the first part of round(1 / share) splits. Beyond one half the rest is what is cut out.

    Raises DataError where there are fewer groups than that.
    """
    if share > 0.5:
        part, rest = cut(records, 1 - share, splitter, seed, remedy)
        return rest, part
    parts, names = round(1 / share), sorted({record.group for record in records})
    if len(names) < parts:
        raise DataError(
            f"a share of {share:.2g} is one of {parts} equal parts of whole groups, which takes {parts} groups or more; there are "
            f"{_told(names)}: {remedy}"
        )
    return folds_of(records, splitter, parts, seed, remedy)[0]


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def own_parts(records: Sequence[Record], fractions: Sequence[float], inner_val: float, seed: int) -> dict[str, Records]:
    """train, valid and test as the records say, stratified by label where something has to be cut.

    A valid part is cut from train (share inner_val) where only a test part is there; all three by fractions where there is none.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    def splitter(**given: int) -> Any:
        return StratifiedGroupKFold(shuffle=True, **given)

    train, valid, test = ([r for r in records if (r.split or "train") == part] for part in ("train", "valid", "test"))
    if not valid and not test:
        remedy = _other_shares(len({record.group for record in train}))
        if fractions[2] > 0:
            train, test = cut(train, fractions[2], splitter, seed, remedy)
        if fractions[1] > 0:
            train, valid = cut(train, fractions[1] / (fractions[0] + fractions[1]), splitter, seed, remedy)
    elif not valid and inner_val > 0:
        remedy = "set cv.inner_val to a larger share, or cv.inner_val=0 with cv.selection=last"
        train, valid = cut(train, inner_val, splitter, seed, remedy)
    return {"train": train, "valid": valid, "test": test}


def _other_shares(groups: int) -> str:
    """What to do where so many groups can not be cut by cv.fractions."""
    if groups < 3:
        return "train, valid and test need a group each; give the records other groups, or splits of their own"
    share = -(-100 // groups) / 100  # of one group, rounded up
    return (
        f"set larger shares of train, valid, test, such as cv.fractions=[{1 - 2 * share:.2g},{share:g},{share:g}], or give the records "
        "splits of their own"
    )


def small_classes(records: Sequence[Record], names: Sequence[str], n_splits: int) -> dict[str, int]:
    """Groups of each class that has fewer of them than there are folds: splitters make folds without it and hardly say so."""
    groups: dict[int, set[str]] = {}
    for record in records:
        groups.setdefault(record.label, set()).add(record.group)
    counts = {name: len(groups.get(label, ())) for label, name in enumerate(names)}
    return {name: count for name, count in counts.items() if count < n_splits}


def check_cover(tests: Sequence[tuple[int, Sequence[str]]], rows: Sequence[str]) -> None:
    """tests: (repeat, ids of a test part). Every row is tested once in each repeat. Raises DataError with counts."""
    for repeat in sorted({number for number, _ in tests}):
        counts = Counter(sample for number, ids in tests if number == repeat for sample in ids)
        odd = [sample for sample in rows if counts[sample] != 1]
        if odd or len(counts) != len(set(rows)):
            raise DataError(
                f"repeat {repeat}: {len(odd)} of {len(rows)} rows are not in exactly one test part, the first is "
                f"{(odd or sorted(set(counts) - set(rows)))[0]!r}: choose a splitter whose test parts cover the rows once"
            )


def check_repeats(tests: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Raises ConfigError where two repeats have the same test parts: they would be counted as independent."""
    seen: dict[frozenset[frozenset[str]], int] = {}
    for repeat in sorted({number for number, _ in tests}):
        parts = frozenset(frozenset(ids) for number, ids in tests if number == repeat)
        if (first := seen.setdefault(parts, repeat)) != repeat:
            raise ConfigError(f"cv.n_repeats: repeats {first} and {repeat} are equal folds, there are too few groups for so many repeats")
