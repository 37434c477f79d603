"""FashionIQ: captions, variants, galleries, every row check, on tiny folders and on the real annotations."""

from collections import Counter

import numpy as np
import pytest
from composed_sets import SIDE, change_json, fashion_iq, write_fashion_iq
from composed_vector import SHARED

from mmexpert.data.fashion_iq import clean, evaluation_text, read_fashion_iq, training_texts
from mmexpert.types import ConfigError, DataError

needs_annotations = pytest.mark.skipif(not (SHARED / "fashioniq").is_dir(), reason=f"the real annotations are not in {SHARED}")


@pytest.fixture
def root(tmp_path):
    return write_fashion_iq(tmp_path / "set")


def test_captions_are_cleaned_and_joined_as_published():
    assert clean("Is DARKER. ").capitalize() == "Is darker"
    assert evaluation_text("Is DARKER. ", " has, no sleeves?") == "Is darker and has, no sleeves"
    assert evaluation_text("", "is red") == " and is red"
    assert evaluation_text("is red", " . ") == "Is red and "
    assert training_texts("is Red.", "Has dots") == ("Is red and Has dots", "Has dots and is Red", "Is red", "Has dots")
    assert training_texts("", "is Red.") == ("Is red",)
    assert training_texts("is Red.", " ?") == ("Is red",)


def test_the_four_variants_are_equally_likely_and_evaluation_is_fixed(root, tmp_path):
    dataset = fashion_iq(root, tmp_path)
    record = dataset.records[dataset.part("train")[0]]
    counts = Counter(dataset.text(record, epoch, 0) for epoch in range(4000))
    assert set(counts) == set(record.captions) and len(counts) == 4
    sigma = (4000 * 0.25 * 0.75) ** 0.5
    assert all(abs(count - 1000) < 4 * sigma for count in counts.values())
    assert dataset.text(record, 3, 0) == dataset.text(record, 3, 0)
    assert dataset.text(record, -1, 0) == record.source.text


def test_rows_hold_what_each_mode_promises(root, tmp_path):
    dataset = fashion_iq(root, tmp_path)
    train, valid = dataset.part("train"), dataset.part("valid")
    row = dataset[(train[0], 0, 0)]
    assert set(row) == {"reference", "target", "text", "id", "reference_key", "positive_key"}
    assert row["reference"].shape == row["target"].shape == (3, SIDE, SIDE)
    row = dataset[(valid[0], -1, 0)]
    assert set(row) == {"text", "id", "reference_key", "positive_key"}
    query, names = dataset.records[valid[0]].source, dataset.annotations["valid"].names
    assert list(names) == sorted(names)
    assert (names[row["reference_key"]], names[row["positive_key"]]) == (query.reference, query.target)
    pictures = dataset.pictures("valid")
    classic = pictures[(3, -1, 0)]
    assert set(classic) == {"image", "id"} and names[classic["id"]] == pictures.records[3].id
    np.testing.assert_array_equal(classic["image"], dataset.picture("valid", names[classic["id"]]))


def test_the_test_split_has_no_targets(root, tmp_path):
    dataset = fashion_iq(root, tmp_path, split="test")
    assert len(dataset.part("test")) == len(dataset) == 12
    assert set(dataset[(0, -1, 0)]) == {"text", "id", "reference_key"}


def test_each_category_has_its_own_gallery_and_a_picture_may_be_in_two(root, tmp_path):
    whole, used = fashion_iq(root, tmp_path), fashion_iq(root, tmp_path, gallery="union")
    names = np.array(whole.annotations["valid"].names)
    galleries = {category: set(names[ids]) for category, ids in whole.galleries("valid").items()}
    assert {category: len(found) for category, found in galleries.items()} == {"dress": 8, "shirt": 8}
    assert galleries["dress"] & galleries["shirt"] == {"valdress0"} and len(names) == 15
    assert {category: len(ids) for category, ids in used.galleries("valid").items()} == {"dress": 7, "shirt": 7}
    assert whole.annotations["valid"].position == used.annotations["valid"].position
    assert whole.fingerprint() != used.fingerprint()


def test_the_published_layout_is_found_and_a_wrong_root_named(tmp_path):
    write_fashion_iq(tmp_path / "outer" / "fashionIQ_dataset")
    assert len(fashion_iq(tmp_path / "outer", tmp_path)) == 24
    with pytest.raises(DataError, match="no folder captions/ beside image_splits/"):
        fashion_iq(tmp_path, tmp_path)


def spoil(index, key, value):
    def change(rows):
        rows[index][key] = value

    return change


FAULTS = {
    "missing key": (lambda rows: rows[2].pop("candidate"), "row 2: the key 'candidate' is missing"),
    "one caption": (spoil(1, "captions", ["is red"]), "row 1: captions is .*exactly two"),
    "three captions": (spoil(1, "captions", ["a", "b", "c"]), "row 1: captions is .*exactly two"),
    "caption no text": (spoil(1, "captions", ["a", 3]), "row 1: captions is .*exactly two"),
    "unknown target": (spoil(4, "target", "B00"), "row 4: target 'B00' is not in the split file of dress val"),
    "unknown reference": (spoil(5, "candidate", "valshirt3"), "row 5: candidate 'valshirt3' is not in the split file of dress val"),
    "row no dict": (lambda rows: rows.__setitem__(0, "x"), "row 0: a str, expected a dict"),
    "name no text": (spoil(0, "target", 7), "row 0: target is 7"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_each_row_fault_is_named_with_file_and_row(root, tmp_path, change, message):
    change_json(root / "captions/cap.dress.val.json", change)
    with pytest.raises(DataError, match=message) as caught:
        fashion_iq(root, tmp_path)
    assert "cap.dress.val.json" in str(caught.value)


def test_all_faults_are_told_at_once(root):
    for index in (1, 4):
        change_json(root / "captions/cap.dress.val.json", spoil(index, "target", "B00"))
    with pytest.raises(DataError, match="2 faults") as caught:
        read_fashion_iq(str(root), ["dress"], "val", "split")
    assert "row 1" in str(caught.value) and "row 4" in str(caught.value)


def test_oddities_are_warned_of_with_their_count(root, tmp_path):
    change_json(root / "captions/cap.dress.val.json", lambda rows: rows.extend([rows[0], rows[0]]))
    change_json(root / "captions/cap.dress.val.json", lambda rows: rows[3].update(target=rows[3]["candidate"]))
    change_json(root / "image_splits/split.dress.val.json", lambda names: names.extend(names[:3]))
    dataset = fashion_iq(root, tmp_path)
    told = "\n".join(dataset.exclusions.warnings)
    assert "2 repeated queries" in told
    assert "1 queries whose reference is their target" in told
    assert "3 names repeated in a split file" in told
    assert len(dataset.galleries("valid")["dress"]) == 8


def test_wrong_keys_are_refused(root, tmp_path):
    with pytest.raises(ConfigError, match="dataset.gallery=all"):
        fashion_iq(root, tmp_path, gallery="all")
    with pytest.raises(ConfigError, match="dataset.categories"):
        fashion_iq(root, tmp_path, categories=["dress", "shoes"])
    with pytest.raises(ConfigError, match="dataset.split=test1"):
        fashion_iq(root, tmp_path, split="test1")
    with pytest.raises(ConfigError, match="cv=none"):
        fashion_iq(root, tmp_path).require_groups()


def test_a_file_of_one_row_is_a_data_set(root, tmp_path):
    change_json(root / "captions/cap.dress.val.json", lambda rows: rows.__delitem__(slice(1, None)))
    assert len(fashion_iq(root, tmp_path, categories=["dress"]).part("valid")) == 1


@needs_annotations
@pytest.mark.parametrize(
    "category, split, queries, pictures", [("dress", "train", 5985, 11452), ("dress", "val", 2017, 3817), ("shirt", "val", 2038, 6346)]
)
def test_the_real_annotations_have_their_published_sizes(category, split, queries, pictures):
    found = read_fashion_iq(str(SHARED / "fashioniq"), [category], split, "split")
    assert (len(found.queries), len(found.galleries[category])) == (queries, pictures)
    alone = sum(len(query.variants) == 1 for query in found.queries)
    assert alone == (1 if (category, split) != ("dress", "val") else 0)


@needs_annotations
def test_union_galleries_of_the_real_annotations():
    found = read_fashion_iq(str(SHARED / "fashioniq"), ["dress", "shirt"], "val", "union")
    assert {name: len(names) for name, names in found.galleries.items()} == {"dress": 2628, "shirt": 3089}
