"""Which rows of other data stand for the stored folds of a run without classes."""

import pytest

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.folds import Fold
from mmexpert.other_data import is_other, own_part
from mmexpert.types import ClassTable, ConfigError, RunFolderError

ROWS = {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}
INFO = {"external": ["e"], "left_out": ["f"], "folds": [{"fold": 1, "repeat": 1} | ROWS]}


def clips(classes=None, **splits):
    """A data set of the ids in each split; `none` is no split."""
    records = [Record(i, "" if split == "none" else split, i, (i,), 0) for split, ids in splits.items() for i in ids]
    return RecordDataset("clips", records, "instance", classes)


def test_other_data_is_known_by_its_ids_whatever_their_splits():
    assert not is_other(clips(train="abc", test="def"), INFO)
    assert is_other(clips(train="abc", test="de"), INFO) and is_other(clips(train="abc", test="defg"), INFO)


@pytest.mark.parametrize(
    "there, split, part, rows",
    [
        ({"train": "xy", "valid": "z", "test": "uv"}, None, "test", ["u", "v"]),
        ({"train": "xy", "valid": "z", "test": "uv"}, "valid", "valid", ["z"]),
        ({"valid": "zw"}, None, "valid", ["w", "z"]),  # a composed set of which dataset.split=val is read
        ({"none": "zx"}, None, "test", ["x", "z"]),
    ],
)
def test_the_datas_own_part_is_scored_and_all_rows_where_it_has_no_parts(there, split, part, rows, caplog):
    dataset = clips(**there)
    found, fold = own_part(dataset, split, INFO)
    assert found == part and [dataset.records[i].id for i in fold.parts(dataset)[part]] == rows
    assert fold.train and "trained or chosen on" not in caplog.text


def test_rows_whose_ids_were_trained_on_are_warned_of(caplog):
    own_part(clips(test="adz"), None, INFO)
    assert "1 of 3 rows have ids that the run was trained or chosen on (such as a)" in caplog.text


def test_a_part_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(ConfigError, match="split=test: the other data has no such part; it has train, valid$"):
        own_part(clips(train="x", valid="y"), None, INFO)
    with pytest.raises(ConfigError, match="split=valid: .* its records name no parts: leave split out to take all its rows"):
        own_part(clips(none="x"), "valid", INFO)


def test_a_run_with_classes_names_the_record_and_the_way_to_predict_it():
    classes = ClassTable(names=("one",), texts=(("one",),), counts=(1,))
    with pytest.raises(RunFolderError, match=r"other data than the run's \(x\).* leave checkpoint= out"):
        own_part(clips(classes, test="dx"), "test", INFO)


def test_a_fold_over_other_rows_names_the_record_that_is_missing():
    with pytest.raises(RunFolderError, match="fold 1: its record 'd' is not in this data set: give the run's own data"):
        Fold(1, 1, ["a"], ["c"], ["d"]).parts(clips(train="abc"))
