"""Every way to make folds: over rows, one a group, repeated, from a file; and what each refuses or warns of."""

import csv
import functools
import io
import json
import logging

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, StratifiedGroupKFold

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.class_merge import merge_classes, without_small
from mmexpert.engine.folds import CvSettings, make_folds
from mmexpert.engine.folds_file import FILE, folds_info, settle_folds
from mmexpert.types import ClassTable, ConfigError, DataError

FOLDS = {
    "method": "group", "splitter": functools.partial(GroupKFold, shuffle=True), "n_splits": 5, "n_repeats": 1, "seed": 42,
    "inner_val": 0.15, "selection": "inner", "fold": None, "fractions": None, "small_classes": "error", "same_init": False,
    "headline": None, "over": "groups", "max_folds": 50, "file": None, "workers": 1, "refit": False, "inner_splits": None, "grid": None,
}  # fmt: skip
ROWS = {"method": "kfold", "splitter": functools.partial(KFold, shuffle=True), "over": "rows"}
FILED = {"method": "file", "splitter": functools.partial(StratifiedGroupKFold, shuffle=True), "n_splits": None}


def settings(**changed):
    return CvSettings(**FOLDS | changed)


def dataset(groups=20, rows=2, classes=2, extra=(), split=""):
    names = tuple("abcdef"[:classes])
    table = ClassTable(names, tuple((f"an {name}", f"one {name}") for name in names), (0,) * classes)
    records = [Record(f"g{g:02d}/{k}", split, f"g{g:02d}", ("x",), g % min(classes, 2)) for g in range(groups) for k in range(rows)]
    return RecordDataset("fake", [*records, *extra], "label", table)


def test_folds_over_rows_are_scikit_learns_and_name_the_groups_that_straddle_once_a_fold(tmp_path, caplog):
    data = dataset()
    folds = settle_folds(tmp_path, data, settings(**ROWS, inner_val=0.0, selection="last"))
    ids = [record.id for record in data.records]
    expected = [[ids[i] for i in test] for _, test in KFold(5, shuffle=True, random_state=42).split(ids)]
    assert [fold.test for fold in folds] == expected
    shared = {sample[:3] for sample in folds[0].test} & {sample[:3] for sample in folds[0].train}
    (line,) = [line for line in caplog.messages if line.startswith("fold 1: ")]
    assert f"{len(shared)} of the" in line and sorted(shared)[0] in line and "cv=stratified_group" in line


def test_folds_over_rows_of_single_row_groups_warn_of_nothing(tmp_path, caplog):
    settle_folds(tmp_path, dataset(rows=1), settings(**ROWS))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_stored_folds_file_over_rows_is_read_again(tmp_path):
    chosen = settings(**ROWS)
    assert settle_folds(tmp_path, dataset(), chosen) == settle_folds(tmp_path, dataset(), chosen)


def test_leaving_one_group_out_is_scikit_learns_in_the_order_of_the_groups():
    data = dataset(groups=9)
    folds = make_folds(data, settings(method="leave_one_group_out", n_splits=None))
    groups = [record.group for record in data.records]
    expected = [[data.records[i].id for i in test] for _, test in LeaveOneGroupOut().split(groups, groups=groups)]
    assert [fold.test for fold in folds] == expected and all(fold.valid for fold in folds)


def test_more_groups_than_max_folds_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="20 groups are more folds than cv.max_folds=19; choose cv=group"):
        make_folds(dataset(), settings(method="leave_one_group_out", n_splits=None, max_folds=19))
    with pytest.raises(ConfigError, match="cv.n_splits=5 x cv.n_repeats=11 are more folds than cv.max_folds=50"):
        settings(n_repeats=11)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n_splits": None, "n_repeats": 2}, "the same in every repeat"),
        ({"file": "x.csv"}, "cv.file=x.csv with cv=group: give a path with cv=file"),
        (FILED, "cv.file=None with cv=file"),
        ({"over": "columns"}, "cv.over=columns: choose groups or rows"),
        ({"workers": 0}, "cv.workers=0: choose 1, more, or auto"),
        ({"grid": ["seed=1"]}, "cv.inner_splits and cv.grid belong to cv=nested"),
        ({"method": "nested", "inner_splits": 1, "grid": ["seed=1"]}, "cv.inner_splits=1: 2 or more"),
        ({"method": "nested", "inner_splits": 3, "grid": ["seed=1", "seed=1"]}, "a list of different override strings"),
        (
            {"method": "nested", "inner_splits": 3, "grid": [""], "selection": "outer", "inner_val": 0.0},
            "which cv=nested is there to avoid",
        ),
        ({"method": "nested", "inner_splits": 3, "grid": [""], "refit": True}, "each fold of cv=nested has a winner of its own"),
    ],
)
def test_keys_that_do_not_fit_the_method_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


def as_csv(folds):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "fold"])
    writer.writerows([sample, fold.number] for fold in folds for sample in fold.test)
    return text.getvalue()


FORMS = {
    "folds_info.json": lambda data, chosen, folds: json.dumps(folds_info(data, chosen, folds)),
    "test.json": lambda data, chosen, folds: json.dumps([{"train": fold.train + fold.valid, "test": fold.test} for fold in folds]),
    "val.json": lambda data, chosen, folds: json.dumps([{"train": fold.train + fold.valid, "val": fold.test} for fold in folds]),
    "three.json": lambda data, chosen, folds: json.dumps([{"train": f.train, "val": f.valid, "test": f.test} for f in folds]),
    "folds.csv": lambda data, chosen, folds: as_csv(folds),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_file_gives_the_folds_that_it_was_written_from(form, tmp_path):
    data, chosen = dataset(), settings()
    folds = make_folds(data, chosen)
    (tmp_path / form).write_text(FORMS[form](data, chosen, folds))
    given = make_folds(data, settings(**FILED, file=str(tmp_path / form)))
    assert [fold.test for fold in given] == [fold.test for fold in folds]
    if form in ("folds_info.json", "three.json"):
        assert given == folds
    for fold in given:
        assert fold.valid and not set(fold.valid) & set(fold.test) and len(fold.train + fold.valid + fold.test) == 40


def test_a_csv_with_repeats_numbers_its_folds_on(tmp_path):
    data = dataset(groups=4, rows=1)
    fold_of = {1: (1, 1, 2, 2), 2: (1, 2, 2, 1)}
    rows = [f"g0{g}/0,{repeat},{fold_of[repeat][g]}" for repeat in (2, 1) for g in range(4)]
    (tmp_path / "f.csv").write_text("\n".join(["id,repeat,fold", *rows]))
    folds = make_folds(data, settings(**FILED, file=str(tmp_path / "f.csv"), inner_val=0.0, selection="last", small_classes="allow"))
    assert [(fold.number, fold.repeat) for fold in folds] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert folds[0].test == ["g00/0", "g01/0"] and folds[2].test == ["g00/0", "g03/0"]


def rows_of_all(**changed):
    folds = [{"train": [f"g{g:02d}/{k}" for g in range(20) for k in range(2) if g % 2 != n], "test": []} for n in range(2)]
    for n, fold in enumerate(folds):
        fold["test"] = [f"g{g:02d}/{k}" for g in range(20) for k in range(2) if g % 2 == n]
    folds[0] |= changed
    return json.dumps(folds)


@pytest.mark.parametrize(
    "content, message",
    [
        (rows_of_all(test=["g00/0"]), "repeat 1: 19 of 40 rows are not in exactly one test part, the first is 'g00/1'"),
        (
            rows_of_all(test=["nobody"]),
            "fold 1: 1 of 1 ids of test are no records of this data set, the first is 'nobody', a record is 'g00/0'",
        ),
        (rows_of_all(test=None), "fold 1: `test` is no list of ids"),
        (rows_of_all(train=["g01/0", "g01/0"]), "an id occurs twice in `train`: 'g01/0'"),
        (rows_of_all(train=["g00/0", "g01/0"]), "fold 1: the group 'g00' is in train and in test"),
        ("[]", "there are no folds in it"),
        ("{}", "a JSON object without the list `folds`"),
        ("[1", "is no JSON"),
        ("id,part\na,1\n", "the columns are id, part, expected id, fold"),
        ("id,fold\na,one\n", "line 2: fold 'one'"),
        ("id,fold\na,1\na,2\n", "line 3: the id 'a' stands twice in repeat 1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_place_and_reason(content, message, tmp_path):
    (tmp_path / "given").write_text(content)
    with pytest.raises(DataError, match=message):
        make_folds(dataset(), settings(**FILED, file=str(tmp_path / "given"), inner_val=0.0, selection="last", small_classes="allow"))
    with pytest.raises(DataError, match="can not be read"):
        make_folds(dataset(), settings(**FILED, file=str(tmp_path / "absent")))


def test_an_own_test_part_that_the_file_leaves_out_stays_outside(tmp_path):
    own = [Record("own/0", "test", "own", ("x",), 0)]
    data, plain = dataset(extra=own), dataset()
    (tmp_path / "f.csv").write_text(as_csv(make_folds(plain, settings())))
    folds = make_folds(data, settings(**FILED, file=str(tmp_path / "f.csv")))
    assert all(fold.external == ["own/0"] for fold in folds)


RARE = [Record(f"rare{label}{k}", "", f"rare{label}{k}", ("x",), label) for label in (2, 3) for k in range(3)]


def test_merged_classes_are_one_class_other_with_all_their_texts_and_one_key(tmp_path):
    data = without_small(dataset(classes=4, extra=RARE), settings(small_classes="merge"))
    assert data.classes.names == ("a", "b", "other") and data.classes.texts[2] == ("an c", "one c", "an d", "one d")
    rare = [(record.label, key) for record, key in zip(data.records, data.keys, strict=True) if record.id.startswith("rare")]
    assert len(rare) == 6 and len(set(rare)) == 1 and rare[0][0] == 2
    folds = settle_folds(tmp_path, data, settings(small_classes="merge", splitter=FILED["splitter"]))
    assert all(any(sample.startswith("rare") for sample in fold.test) for fold in folds)
    info = json.loads((tmp_path / FILE).read_text())
    assert info["merged"] == ["c", "d"] and info["dataset"]["classes"] == {"a": 20, "b": 20, "other": 6}
    again = merge_classes(dataset(classes=4, extra=RARE), info["merged"])  # as `evaluate` does it
    assert again.records == data.records and np.array_equal(again.keys, data.keys)


def test_a_class_other_that_is_still_too_small_is_refused_and_no_small_class_changes_nothing():
    data = dataset(classes=3, extra=RARE[:3])
    with pytest.raises(DataError, match=r"fewer groups: \{'other': 3\}"):
        make_folds(without_small(data, settings(small_classes="merge")), settings(small_classes="merge"))
    plain = dataset()
    assert without_small(plain, settings(small_classes="merge")) is plain


def test_a_class_of_one_group_can_not_be_left_out():
    data = dataset(classes=3, extra=RARE[:1])
    with pytest.raises(DataError, match=r"fewer groups: \{'c': 1\}"):
        make_folds(data, settings(method="leave_one_group_out", n_splits=None))
