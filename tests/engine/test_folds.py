"""Folds never let a group straddle, cover every row, depend on no order, and stay what folds_info.json says."""

import functools
import json
import os
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine import folds_file
from mmexpert.engine.folds import CvSettings, Fold, check_folds, chosen_folds, fold_seed, make_folds
from mmexpert.engine.folds_file import FILE, folds_info, rows_fingerprint, settle_folds
from mmexpert.engine.splitting import check_cover, folds_of
from mmexpert.types import ClassTable, ConfigError, DataError, RunFolderError, StorageError

STRATIFIED = functools.partial(StratifiedGroupKFold, shuffle=True)
GROUPED = functools.partial(GroupKFold, shuffle=True)
FOLDS = {
    "method": "stratified_group", "splitter": STRATIFIED, "n_splits": 5, "n_repeats": 1, "seed": 42, "inner_val": 0.15,
    "selection": "inner", "fold": None, "fractions": None, "small_classes": "error", "same_init": False, "headline": None,
    "over": "groups", "max_folds": 50, "file": None, "workers": 1, "refit": False, "inner_splits": None, "grid": None,
}  # fmt: skip
NONE = FOLDS | {"method": "none", "splitter": None, "n_splits": 1, "fractions": [0.7, 0.15, 0.15]}


def settings(**changed):
    return CvSettings(**FOLDS | changed)


def single(**changed):
    return CvSettings(**NONE | changed)


def dataset(records, names=()):
    classes = ClassTable(tuple(names), tuple((name,) for name in names), tuple(0 for _ in names)) if names else None
    return RecordDataset("fake", records, "instance", classes)


def grouped(groups=20, rows=3, classes=2, split=""):
    """groups x rows records; group g has the class g % classes."""
    return [
        Record(f"g{g:03d}/{k}", split, f"g{g:03d}", captions=("a",), label=g % classes if classes else -1)
        for g in range(groups)
        for k in range(rows)
    ]


def parts_of(fold):
    return [part for part in (fold.train, fold.valid, fold.test, fold.external) if part]


def random_layout(seed):
    """Groups of 1..6 rows, some of two classes; 12 groups or more with each class."""
    rng = random.Random(seed)
    classes = rng.choice([0, 2, 3])
    records = []
    for g in range(rng.randint(12, 18) * max(classes, 1)):
        for k in range(rng.randint(1, 6)):
            label = (g % classes if rng.random() < 0.9 else rng.randrange(classes)) if classes else -1
            records.append(Record(f"{g}-{k}", rng.choice(["train", "valid"]) if seed % 2 else "", f"group {g}", ("a",), label))
    return records, [f"class {k}" for k in range(classes)]


@pytest.mark.parametrize("method", [STRATIFIED, GROUPED])
def test_no_group_is_in_two_parts_and_every_row_is_tested_once_over_200_random_layouts(method):
    refused = 0
    for seed in range(100):
        records, names = random_layout(seed)
        group_of = {record.id: record.group for record in records}
        try:
            folds = make_folds(dataset(records, names), settings(splitter=method, seed=seed))
        except DataError as error:  # GroupKFold may put all of a class outside a training part, and must then say so
            assert method is GROUPED and "no training row of the class" in str(error)
            refused += 1
            continue
        assert [fold.number for fold in folds] == [1, 2, 3, 4, 5]
        assert Counter(sample for fold in folds for sample in fold.test) == dict.fromkeys(group_of, 1)
        for fold in folds:
            assert fold.valid
            assert sorted(sample for part in parts_of(fold) for sample in part) == sorted(group_of)
            groups = [{group_of[sample] for sample in part} for part in parts_of(fold)]
            assert sum(map(len, groups)) == len(set.union(*groups))
    assert refused < 10


def share_right(train, test, label_of):
    """Accuracy of a table group -> label made from the training rows; of groups that it lacks the commonest label is said."""
    table = {sample.split("/")[0]: label_of[sample] for sample in train}
    commonest = Counter(label_of[sample] for sample in train).most_common(1)[0][0]
    return float(np.mean([table.get(sample.split("/")[0], commonest) == label_of[sample] for sample in test]))


def test_a_label_that_is_a_function_of_the_group_is_at_chance_in_grouped_folds_and_known_in_random_ones():
    records = grouped(groups=40, rows=4)
    label_of = {record.id: record.label for record in records}
    folds = make_folds(dataset(records, "ab"), settings())
    assert np.mean([share_right(fold.train + fold.valid, fold.test, label_of) for fold in folds]) == pytest.approx(0.5, abs=0.1)
    names = np.random.default_rng(0).permutation(sorted(label_of)).tolist()
    assert np.mean([share_right(names[:k] + names[k + 32 :], names[k : k + 32], label_of) for k in range(0, 160, 32)]) > 0.9


def test_folds_do_not_depend_on_the_order_of_the_rows():
    records = grouped()
    shuffled = random.Random(1).sample(records, len(records))
    for chosen in (settings(), settings(splitter=GROUPED), single()):
        assert make_folds(dataset(records, "ab"), chosen) == make_folds(dataset(shuffled, "ab"), chosen)
    assert folds_of(records, STRATIFIED, 5, 0, "") == folds_of(shuffled, STRATIFIED, 5, 0, "")


def test_another_seed_gives_other_folds_and_the_same_seed_the_same():
    rows = dataset(grouped(), "ab")
    assert make_folds(rows, settings(seed=1)) == make_folds(rows, settings(seed=1)) != make_folds(rows, settings(seed=2))


def test_classes_are_spread_evenly_over_stratified_folds():
    labels = {record.id: record.label for record in grouped(groups=20, classes=2)}
    for fold in make_folds(dataset(grouped(groups=20, classes=2), "ab"), settings()):
        assert Counter(labels[sample] for sample in fold.test) == {0: 6, 1: 6}


def test_the_outer_test_parts_are_scikit_learns():
    records = sorted(grouped(groups=23), key=lambda record: record.id)
    x, y, g = np.zeros(len(records)), [r.label for r in records], [r.group for r in records]
    for method in (GroupKFold, StratifiedGroupKFold):
        expected = [[records[i].id for i in test] for _, test in method(5, shuffle=True, random_state=42).split(x, y, g)]
        folds = make_folds(dataset(records, "ab"), settings(splitter=functools.partial(method, shuffle=True)))
        assert [fold.test for fold in folds] == expected


def test_the_inner_part_is_the_first_of_as_many_splits_as_its_share_says_by_the_same_splitter():
    rows = dataset(grouped(groups=35, classes=0))
    for fold in make_folds(rows, settings(splitter=GROUPED, inner_val=0.25)):
        groups = [len({sample.split("/")[0] for sample in part}) for part in (fold.train, fold.valid, fold.test)]
        assert groups == [21, 7, 7]  # 35 groups: 7 tested; of the 28 others a quarter chooses


def test_one_day_trains_and_the_other_tests_in_both_directions():
    records = [Record(f"{day}/{k}", "", day, ("a",), k % 2) for day in ("28 June", "30 June") for k in range(6)]
    folds = make_folds(dataset(records, "ab"), settings(splitter=GROUPED, n_splits=2, inner_val=0, selection="last"))
    days = [({sample.split("/")[0] for sample in fold.train}, {sample.split("/")[0] for sample in fold.test}) for fold in folds]
    assert sorted(days, key=str) == [({"28 June"}, {"30 June"}), ({"30 June"}, {"28 June"})]
    assert all(fold.valid == [] for fold in folds)


def test_the_sets_own_test_part_stays_outside_all_folds():
    records = grouped(groups=20, split="train") + [Record(f"own/{k}", "test", "own", ("a",), k % 2) for k in range(4)]
    for fold in make_folds(dataset(records, "ab"), settings()):
        assert fold.external == ["own/0", "own/1", "own/2", "own/3"]
        assert not set(fold.external) & set(fold.train + fold.valid + fold.test)


def test_an_inner_part_that_chooses_nothing_is_warned_of_and_inner_val_0_trains_on_it(caplog):
    rows = dataset(grouped(), "ab")
    wasteful = make_folds(rows, settings(selection="last"))
    assert "15 % of each training part are held out and choose nothing; cv.inner_val=0 trains on them" in caplog.text
    caplog.clear()
    for fold, held_out in zip(make_folds(rows, settings(selection="last", inner_val=0)), wasteful, strict=True):
        assert sorted(fold.train) == sorted(held_out.train + held_out.valid) and not fold.valid
    assert "held out" not in caplog.text and make_folds(rows, settings()) and "held out" not in caplog.text


def test_selection_outer_validates_on_the_test_part():
    for fold in make_folds(dataset(grouped(), "ab"), settings(selection="outer", inner_val=0)):
        assert fold.valid == fold.test


def test_repeats_number_on_and_split_anew():
    folds = make_folds(dataset(grouped(), "ab"), settings(n_splits=2, n_repeats=3))
    assert [(fold.number, fold.repeat) for fold in folds] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    second = make_folds(dataset(grouped(), "ab"), settings(n_splits=2, seed=43))
    assert [fold.test for fold in folds[2:4]] == [fold.test for fold in second]


def test_equal_repeats_are_refused():
    records = [Record(f"{group}/{k}", "", group, ("a",), k % 2) for group in "xy" for k in range(4)]
    with pytest.raises(ConfigError, match="repeats 1 and 2 are equal folds"):
        make_folds(dataset(records, "ab"), settings(splitter=GROUPED, n_splits=2, n_repeats=2, inner_val=0, selection="last"))


def test_a_sets_own_parts_are_kept_and_only_a_missing_valid_part_is_cut_from_train():
    own = [Record(f"{split}{k}", split, f"{split}{k}", ("a",)) for split in ("train", "valid", "test") for k in range(14)]
    (fold,) = make_folds(dataset(own), single())
    assert (fold.number, [len(part) for part in parts_of(fold)]) == (0, [14, 14, 14])
    (fold,) = make_folds(dataset([record for record in own if record.split != "valid"]), single())
    assert [len(part) for part in parts_of(fold)] == [12, 2, 14] and all(name.startswith("train") for name in fold.train + fold.valid)
    (fold,) = make_folds(dataset([record for record in own if record.split != "test"]), single())
    assert (len(fold.train), len(fold.valid), fold.test) == (14, 14, [])


@pytest.mark.parametrize("fractions", [[0.7, 0.15, 0.15], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.2, 0.0, 0.8]])
def test_a_set_without_parts_is_cut_by_the_fractions(fractions):
    chosen = single(fractions=fractions, selection="inner" if fractions[1] else "last")
    (fold,) = make_folds(dataset(grouped(groups=100, rows=1), "ab"), chosen)
    shares = [len(part) / 100 for part in (fold.train, fold.valid, fold.test)]
    assert shares == pytest.approx(fractions, abs=0.02)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"selection": "best"}, "cv.selection=best: choose inner, last or outer"),
        ({"small_classes": "drop"}, "choose error, merge, skip or allow"),
        ({"inner_val": 0}, "set cv.selection=last, or a share above 0"),
        ({"inner_val": 1.5}, "is a share, 0 to below 1"),
        ({"selection": "outer"}, "cv.selection=outer has no inner part"),
        ({"n_splits": 1}, "cv.n_splits=1 is 2 or more"),
        ({"n_repeats": 0}, "cv.n_repeats=0 is 1 or more"),
        ({"fractions": [1, 0, 0]}, "shares belong to cv=none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n_splits": 5}, "cv.n_splits=5: cv=none makes no folds"),
        ({"fold": 1}, "cv.fold=1: cv=none makes no folds"),
        ({"same_init": True}, "cv.same_init=True: cv=none makes no folds"),
        ({"small_classes": "skip"}, "cv.small_classes=skip: cv=none makes no folds"),
        ({"selection": "outer"}, "cv.selection=outer needs folds"),
        ({"fractions": [0.5, 0.5]}, "shares of train"),
        ({"fractions": [0.5, 0.6, 0.1]}, "whose sum is 1"),
    ],
)
def test_keys_of_folds_are_refused_rather_than_ignored_where_there_are_none(changed, message):
    with pytest.raises(ConfigError, match=message):
        single(**changed)


def test_nothing_to_choose_by_is_refused():
    own = [Record(f"{split}{k}", split, f"{split}{k}", ("a",)) for split in ("train", "test") for k in range(4)]
    with pytest.raises(ConfigError, match="no record is in a valid part"):
        make_folds(dataset(own), single(inner_val=0))


def test_too_few_groups_are_told_with_their_number_and_names():
    with pytest.raises(DataError, match=r"5 folds need 5 groups or more, there are 3 \(g000, g001, g002\): use fewer folds"):
        make_folds(dataset(grouped(groups=3, classes=0)), settings(splitter=GROUPED))


def test_too_few_groups_for_the_inner_part_are_told_with_both_numbers():
    with pytest.raises(DataError, match=r"0.15 is one of 7 equal parts of whole groups, .* 7 groups or more; there are 4 .*cv.inner_val"):
        make_folds(dataset(grouped(groups=5, classes=0)), settings(splitter=GROUPED))


@pytest.mark.parametrize("groups", [3, 4, 5, 6])
def test_too_few_groups_for_the_fractions_are_told_with_shares_that_fit(groups):
    rows = dataset(grouped(groups=groups, classes=0))
    with pytest.raises(DataError, match=rf"7 groups or more; there are {groups} .*such as cv.fractions=\[") as told:
        make_folds(rows, single())
    shares = [float(share) for share in re.search(r"cv.fractions=\[(.*?)\]", str(told.value))[1].split(",")]
    (fold,) = make_folds(rows, single(fractions=shares))
    assert all(parts_of(fold))


def test_two_groups_can_not_be_three_parts():
    with pytest.raises(DataError, match="there are 2 .*train, valid and test need a group each"):
        make_folds(dataset(grouped(groups=2, classes=0)), single())


def small_class_records():
    return grouped(groups=20, rows=2) + [Record(f"rare{g}", "", f"rare{g}", ("a",), 2) for g in range(3)]


def test_a_class_with_fewer_groups_than_folds_is_refused_with_its_count():
    with pytest.raises(DataError, match=r"cv.n_splits=5, but these classes have fewer groups: \{'c': 3\}"):
        make_folds(dataset(small_class_records(), "abc"), settings())


def test_small_classes_are_skipped_and_listed_or_allowed(caplog):
    rows = dataset(small_class_records(), "abc")
    skipped = make_folds(rows, settings(small_classes="skip"))
    assert not any("rare" in sample for fold in skipped for part in parts_of(fold) for sample in part)
    assert folds_info(rows, settings(small_classes="skip"), skipped)["left_out"] == ["rare0", "rare1", "rare2"]
    assert "3 rows leave the run" in caplog.text
    allowed = make_folds(rows, settings(small_classes="allow"))
    assert sum("rare" in sample for fold in allowed for sample in fold.test) == 3
    assert "cv.small_classes=allow" in caplog.text


def test_a_class_that_no_row_would_train_is_refused_by_name():
    records = grouped(groups=20) + [Record("only/0", "", "only", ("a",), 2)]
    with pytest.raises(DataError, match="no training row of the class c: use fewer folds"):
        make_folds(dataset(records, "abc"), settings(small_classes="allow"))


def test_a_group_in_two_parts_is_refused_by_name():
    records = [Record("a", "train", "patient 7", ("x",)), Record("b", "test", "patient 7", ("x",)), Record("c", "valid", "p", ("x",))]
    with pytest.raises(DataError, match=r"the group 'patient 7' is in train and in test \(record b\)"):
        make_folds(dataset(records), single())
    leaking = grouped(groups=20, split="train") + [Record("g003/own", "test", "g003", ("a",), 1)]
    with pytest.raises(DataError, match="the group 'g003' is in .* and in external"):
        make_folds(dataset(leaking, "ab"), settings())


def test_an_id_in_two_parts_and_an_empty_part_are_refused():
    rows = dataset(grouped(groups=2, classes=0))
    with pytest.raises(DataError, match="is in train and in valid"):
        check_folds([Fold(1, 1, ["g000/0"], ["g000/0"], ["g001/0"])], rows)
    with pytest.raises(DataError, match=r"fold 1: a part is empty \(1 train, 0 valid, 0 test\)"):
        check_folds([Fold(1, 1, ["g000/0"], [], [])], rows)


def test_test_parts_that_leave_out_or_repeat_a_row_are_refused():
    check_cover([(1, ["a", "b"]), (1, ["c"])], ["a", "b", "c"])
    for tests in ([(1, ["a", "b"])], [(1, ["a", "b"]), (1, ["b", "c"])], [(1, ["a", "b", "c"]), (2, ["a", "b"])]):
        with pytest.raises(DataError, match="are not in exactly one test part"):
            check_cover(tests, ["a", "b", "c"])


def test_chosen_folds_are_those_of_cv_fold_and_an_unknown_number_is_an_error():
    folds = make_folds(dataset(grouped(), "ab"), settings())
    assert [fold.number for fold in chosen_folds(folds, settings(fold=[4, 2]))] == [2, 4]
    assert chosen_folds(folds, settings(fold=3)) == [folds[2]]
    with pytest.raises(ConfigError, match=r"cv.fold=6: there are folds 1 to 5"):
        chosen_folds(folds, settings(fold=6))


def test_the_seed_of_a_fold_is_numpys_spawned_one_unless_all_begin_alike():
    fold = Fold(3, 2, [], [], [])
    assert fold_seed(42, fold, False) == int(np.random.SeedSequence(42, spawn_key=(2, 3)).generate_state(1)[0])
    assert fold_seed(42, fold, True) == fold_seed(42, Fold(0, 1, [], [], []), False) == 42


def test_parts_are_indices_of_the_records():
    rows = dataset(grouped(groups=3, rows=1, classes=0))
    assert Fold(1, 1, ["g002/0", "g000/0"], [], ["g001/0"]).parts(rows) == {"train": [2, 0], "valid": [], "test": [1]}


def test_the_fingerprint_of_the_rows_is_the_sha256_of_their_sorted_lines():
    import hashlib

    records = [Record("b", "", "p1", label=1), Record("a", "train", "p2", label=0)]
    assert rows_fingerprint(records) == hashlib.sha256(b"a\t0\tp2\nb\t1\tp1\n").hexdigest()


def test_folds_info_holds_ids_counts_and_groups(tmp_path):
    rows = dataset(grouped(groups=20, rows=2), "ab")
    folds = settle_folds(tmp_path, rows, settings())
    stored = json.loads((tmp_path / FILE).read_text())
    assert stored["dataset"] == {
        "name": "fake", "rows_fingerprint": rows_fingerprint(rows.records), "rows": 40, "groups": 20, "classes": {"a": 20, "b": 20},
    }  # fmt: skip
    keys = ("format", "method", "n_splits", "n_repeats", "seed", "inner_val")
    assert [stored[key] for key in keys] == [1, "stratified_group", 5, 1, 42, 0.15]
    third = stored["folds"][2]
    assert (third["fold"], third["repeat"], third["test"]) == (3, 1, folds[2].test)
    assert third["counts"]["test"] == {"a": 4, "b": 4} and third["groups"]["test"] == 4


def test_an_existing_file_is_used_as_it_is_even_where_the_splitter_would_now_say_otherwise(tmp_path):
    rows = dataset(grouped(), "ab")
    first = settle_folds(tmp_path, rows, settings())
    another_library = settings(splitter=functools.partial(lambda **given: StratifiedGroupKFold(given["n_splits"])))
    assert make_folds(rows, another_library) != first
    assert settle_folds(tmp_path, rows, another_library) == first


@pytest.mark.parametrize("changed", [{"seed": 43}, {"n_splits": 4}, {"inner_val": 0.3}, {"method": "group"}, {"n_repeats": 2}])
def test_folds_of_other_settings_are_refused_with_the_keys(tmp_path, changed):
    rows = dataset(grouped(), "ab")
    settle_folds(tmp_path, rows, settings())
    (key, now), stored = next(iter(changed.items())), FOLDS
    with pytest.raises(RunFolderError, match=f"{key}: stored {stored[key]!r}, now {now!r}"):
        settle_folds(tmp_path, rows, settings(**changed))


def test_a_changed_label_group_or_row_is_refused_with_the_numbers_of_rows(tmp_path):
    records = grouped()
    settle_folds(tmp_path, dataset(records, "ab"), settings())
    first = records[0]
    for changed in (
        [Record(first.id, "", first.group, ("a",), 1), *records[1:]],
        [Record(first.id, "", "other", ("a",), first.label), *records[1:]],
        records[1:],
    ):
        with pytest.raises(RunFolderError, match="rows_fingerprint .*stored 60 rows in 20 groups"):
            settle_folds(tmp_path, dataset(changed, "ab"), settings())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "folds": [{}]}'])
def test_a_damaged_file_is_told_and_never_replaced(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(RunFolderError, match="resume=never"):
        settle_folds(tmp_path, dataset(grouped(), "ab"), settings())
    assert (tmp_path / FILE).read_text() == content


def test_a_group_that_is_in_the_sets_own_test_part_too_is_told_with_what_to_do():
    own_test = [replace(record, id=f"test/{record.id}", split="test") for record in grouped()]
    with pytest.raises(DataError, match="in external .*keep the data set's own test part out of dataset.root"):
        make_folds(dataset([*grouped(), *own_test], "ab"), settings())


def test_a_file_whose_parts_share_a_group_is_refused(tmp_path):
    rows = dataset(grouped(), "ab")
    settle_folds(tmp_path, rows, settings())
    stored = json.loads((tmp_path / FILE).read_text())
    stored["folds"][0]["train"].append(stored["folds"][0]["test"][0])
    (tmp_path / FILE).write_text(json.dumps(stored))
    with pytest.raises(DataError, match="rows of one group know each other"):
        settle_folds(tmp_path, rows, settings())


def test_half_a_temporary_file_of_a_killed_process_does_no_harm(tmp_path):
    (tmp_path / f".{FILE}.tmp-1").write_text('{"form')
    assert len(settle_folds(tmp_path, dataset(grouped(), "ab"), settings())) == 5


def test_a_kill_before_the_file_has_its_name_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folds_file.os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        settle_folds(tmp_path, dataset(grouped(), "ab"), settings())
    assert not (tmp_path / FILE).exists()


def test_the_process_that_comes_second_reads_the_folds_of_the_first(tmp_path, monkeypatch):
    rows = dataset(grouped(), "ab")
    theirs = make_folds(rows, settings(splitter=lambda **given: StratifiedGroupKFold(given["n_splits"])))
    link = os.link

    def overtaken(source, target):
        target.write_text(json.dumps(folds_info(rows, settings(), theirs)))
        link(source, target)

    monkeypatch.setattr(folds_file.os, "link", overtaken)
    assert settle_folds(tmp_path, rows, settings()) == theirs != make_folds(rows, settings())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="not written"):
        settle_folds(tmp_path / "absent", dataset(grouped(), "ab"), settings())


@pytest.mark.parametrize(
    "method, count",
    [
        ("none", 1),
        ("group", 5),
        ("stratified_group", 5),
        ("kfold", 5),
        ("stratified", 5),
        ("repeated", 15),
        ("leave_one_group_out", 40),
        ("nested", 5),
    ],
)
def test_every_yaml_of_the_group_makes_folds(method, count):
    from mmexpert.command_line import composed
    from mmexpert.config import check, instantiate

    plain = check(composed(f"cv={method}", *(["cv.grid=['seed=1']"] if method == "nested" else [])))
    chosen = instantiate(plain["cv"], "cv")
    folds = make_folds(dataset(grouped(groups=40), "ab"), chosen)
    assert chosen.method == method and len(folds) == count
