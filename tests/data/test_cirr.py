"""CIRR: every row check, groups, paths, on tiny folders and on the real annotations."""

import json

import pytest
from composed_sets import SIDE, change_json, cirr, write_cirr
from composed_vector import SHARED

from mmexpert.data.cirr import read_cirr
from mmexpert.types import DataError

needs_annotations = pytest.mark.skipif(not (SHARED / "cirr").is_dir(), reason=f"the real annotations are not in {SHARED}")
CAPTIONS = "cirr/captions/cap.rc2.val.json"
SPLIT = "cirr/image_splits/split.rc2.val.json"


@pytest.fixture
def root(tmp_path):
    return write_cirr(tmp_path / "cirr_dataset", pictures=12)


def spoil(index, key, value):
    return lambda rows: rows[index].__setitem__(key, value)


def members(index, change):
    return lambda rows: change(rows[index]["img_set"]["members"])


FAULTS = {
    "missing key": (lambda rows: rows[2].pop("caption"), "row 2: the key 'caption' is missing"),
    "no group": (spoil(2, "img_set", {"id": 1}), "row 2: .*six distinct names"),
    "five members": (members(1, lambda names: names.pop()), "row 1: pairid 101: .*six distinct names"),
    "seven members": (members(1, lambda names: names.append("val-011")), "row 1: pairid 101: .*six distinct"),
    "repeated member": (members(1, lambda names: names.__setitem__(5, names[4])), "row 1: pairid 101: .*six distinct names"),
    "no reference": (members(3, lambda names: names.__setitem__(0, "val-011")), "row 3: pairid 103: the reference 'val-003' is not among"),
    "no target": (members(3, lambda names: names.__setitem__(3, "val-011")), "row 3: pairid 103: the target 'val-006' is not among"),
    "unknown member": (members(0, lambda names: names.__setitem__(5, "dev-9")), "row 0: pairid 100: 'dev-9' is not in the split file"),
    "unknown target": (spoil(0, "target_hard", "dev-9"), "row 0: pairid 100: 'dev-9' is not in the split file"),
    "text pairid": (spoil(4, "pairid", "104"), "row 4: pairid is '104', expected an integer"),
    "true pairid": (spoil(4, "pairid", True), "row 4: pairid is True"),
    "pairid twice": (spoil(4, "pairid", 100), "row 4: the pairid 100 is also that of row 0"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_each_row_fault_is_named_with_file_and_row(root, tmp_path, change, message):
    change_json(root / CAPTIONS, change)
    with pytest.raises(DataError, match=message) as caught:
        cirr(root, tmp_path)
    assert "cap.rc2.val.json" in str(caught.value)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", 3])
def test_a_path_that_leads_out_of_the_image_root_is_refused(root, tmp_path, path):
    change_json(root / SPLIT, lambda names: names.update({"val-000": path}))
    with pytest.raises(DataError, match="row val-000: "):
        cirr(root, tmp_path)


def test_a_repeated_name_is_kept_once_and_warned_of(root, tmp_path):
    text = (root / SPLIT).read_text(encoding="utf-8")
    (root / SPLIT).write_text(text[:-1] + ', "val-000": "./dev/other.png"}', encoding="utf-8")
    dataset = cirr(root, tmp_path)
    assert "1 names repeated in a split file" in "\n".join(dataset.exclusions.warnings)
    assert dataset.files["valid"]["val-000"].name == "val-000.png"


def test_rows_hold_groups_in_evaluation_and_pictures_in_training(root, tmp_path):
    dataset = cirr(root, tmp_path)
    row = dataset[(dataset.part("train")[0], 0, 0)]
    assert set(row) == {"reference", "target", "text", "id", "reference_key", "positive_key"}
    assert row["reference"].shape == (3, SIDE, SIDE) and row["text"] == "Make it 0 times larger."
    row = dataset[(dataset.part("valid")[2], -1, 0)]
    assert set(row) == {"text", "id", "reference_key", "positive_key", "members"}
    assert row["members"].tolist() == [2, 3, 4, 5, 6, 7] and (row["reference_key"], row["positive_key"]) == (2, 5)
    secret = cirr(root, tmp_path, split="test1")
    assert set(secret[(0, -1, 0)]) == {"text", "id", "reference_key", "members"}


@pytest.mark.parametrize("inner", ["", "cirr"])
def test_pictures_are_found_beside_the_annotations_folder(root, tmp_path, inner):
    dataset = cirr(root / inner, tmp_path)
    assert dataset.files["train"]["train-000"] == root / "train/3/train-000.png"
    assert len(cirr(root / inner, tmp_path, image_root=str(root))) == 12


def test_broken_files_are_named(root, tmp_path):
    (root / CAPTIONS).write_text('[{"pairid": 1,', encoding="utf-8")
    with pytest.raises(DataError, match="cap.rc2.val.json, line 1"):
        cirr(root, tmp_path)
    (root / CAPTIONS).write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(DataError, match="an empty list, expected a list of queries"):
        cirr(root, tmp_path)


@needs_annotations
def test_the_real_annotations_have_their_published_sizes():
    found = read_cirr(str(SHARED / "cirr"), "val")
    assert (len(found.queries), len(found.names)) == (4181, 2297)
    assert all(len(set(query.members)) == 6 for query in found.queries)
    assert found.paths["dev-244-0-img0"] == ("./dev/dev-244-0-img0.png",)
