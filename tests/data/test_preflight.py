"""Missing pictures are named before the first step; leaving them out is counted and marks every figure."""

import os

import pytest
from composed_sets import cirr, fashion_iq, write_cirr, write_fashion_iq

from mmexpert.types import DataError


@pytest.fixture
def root(tmp_path):
    return write_fashion_iq(tmp_path / "set")


def test_a_removed_picture_is_named_with_count_folder_pattern_and_list(root, tmp_path):
    (root / "images/valdress2.jpg").unlink()
    with pytest.raises(DataError, match="1 of 28 pictures are not in .*images .*NAME.jpg or NAME.png.*valdress2") as caught:
        fashion_iq(root, tmp_path)
    assert "allow_missing=true" in str(caught.value)
    assert (tmp_path / "missing_images.txt").read_text() == "valdress2\n"


def test_the_message_names_ten_and_the_list_all(root, tmp_path):
    for path in list((root / "images").glob("val*")):
        path.unlink()
    with pytest.raises(DataError) as caught:
        fashion_iq(root, tmp_path)
    assert str(caught.value).count("val") == 10
    assert len((tmp_path / "missing_images.txt").read_text().split()) == 15


def test_allow_missing_drops_what_needs_the_picture_and_marks_the_part(root, tmp_path):
    whole = fashion_iq(root, tmp_path)
    (root / "images/valdress2.jpg").unlink()  # target of query 1, reference of query 2
    (root / "images/trainshirt4.jpg").unlink()
    dataset = fashion_iq(root, tmp_path, allow_missing=True)
    assert len(dataset.part("valid")) == 12 - 2 and len(dataset.part("train")) == 12 - 2
    assert dataset.partial("valid") == {"partial": True, "gallery_missing": 1, "queries_dropped": 2, "train_dropped": 2}
    assert whole.partial("valid") == {}
    assert "results are partial" in "\n".join(dataset.exclusions.warnings)
    names = dataset.annotations["valid"].names
    assert "valdress2" not in {names[i] for i in dataset.galleries("valid")["dress"]}
    kept = dataset.records[dataset.part("valid")[-1]].id
    row = {r.id: i for i, r in enumerate(whole.records)}[kept]
    assert whole.keys[row] == dataset.keys[dataset.part("valid")[-1]]  # ids do not move
    assert dataset.fingerprint() != whole.fingerprint()


def test_a_gallery_picture_that_no_query_names_is_needed_in_evaluation_alone(root, tmp_path):
    (root / "images/traindress7.png").unlink()
    assert fashion_iq(root, tmp_path).partial("valid") == {}
    (root / "images/valdress7.png").unlink()
    with pytest.raises(DataError, match="valdress7"):
        fashion_iq(root, tmp_path)
    assert fashion_iq(root, tmp_path, gallery="union").partial("valid") == {}
    partial = fashion_iq(root, tmp_path, allow_missing=True).partial("valid")
    assert partial == {"partial": True, "gallery_missing": 1, "queries_dropped": 0, "train_dropped": 0}


def test_a_group_that_lacks_a_member_is_dropped(tmp_path):
    root = write_cirr(tmp_path / "cirr_dataset", pictures=12)
    (root / "dev/val-001.png").unlink()  # member of groups 0 and 1
    dataset = cirr(root, tmp_path, allow_missing=True)
    assert dataset.partial("valid") == {"partial": True, "gallery_missing": 1, "queries_dropped": 2, "train_dropped": 0}


def test_no_query_left_is_an_error_even_where_missing_is_allowed(root, tmp_path):
    for path in list((root / "images").glob("val*")):
        path.unlink()
    with pytest.raises(DataError, match="no valid query is left"):
        fashion_iq(root, tmp_path, allow_missing=True)


def test_a_picture_that_does_not_decode_is_an_error_and_never_dropped(root, tmp_path):
    (root / "images/valdress0.jpg").write_bytes(b"no picture")
    dataset = fashion_iq(root, tmp_path, allow_missing=True)
    pictures = dataset.pictures("valid")
    index = [record.id for record in pictures.records].index("valdress0")
    with pytest.raises(DataError, match="valdress0"):
        pictures[(index, -1, 0)]


def test_the_deep_check_decodes_every_picture_of_both_parts(root, tmp_path):
    dataset = fashion_iq(root, tmp_path)
    assert dataset.deep_check() == []
    (root / "images/valdress0.jpg").write_bytes(b"no picture")  # in two galleries
    (root / "images/traindress1.png").write_bytes((root / "images/traindress1.png").read_bytes()[:60])
    assert sorted(finding.record for finding in dataset.deep_check()) == ["traindress1", "valdress0"]


def test_folders_are_listed_once_and_pictures_not_touched(root, tmp_path, monkeypatch):
    listed = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or listdir(path))
    monkeypatch.setattr("mmexpert.data.composed_records.open_picture", None)
    fashion_iq(root, tmp_path)
    assert listed == [str(root / "images")]
