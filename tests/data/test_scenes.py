"""The embedded scenes as data sets: rows of image-text and of composed retrieval, the same from any worker; the files of the script."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.encoders.tokenizer import build_vocabulary
from mmexpert.metrics.composed import group_ranks, rank_targets
from mmexpert.simulate.scenes import WORDS
from mmexpert.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"images": {"train": 40, "valid": 10, "test": 5}, "transform": {"side": 32}}
FEW = {"triplets": {"train": 30, "valid": 12, "test": 4}, "transform": {"side": 32}}


def tokens(texts):
    return {"input_ids": torch.tensor([[sum(map(ord, text))] for text in texts]), "attention_mask": torch.ones(len(texts), 1).long()}


def loaders(dataset, workers):
    parts = {part: dataset.part(part) for part in ("train", "valid", "test")}
    plan = PlanSettings(batch_size=8, eval_batch_size=6, accumulation=1, processes=1, rank=0, drop_last=True)
    collate = Collate(tokens, 1, "batch", 1)
    return Loaders(dataset, parts, collate, plan, WorkerSettings(workers, 2 if workers else None, False, 60), 0, torch.device("cpu"))


@pytest.fixture
def scenes(build):
    return build("scenes", **SMALL)


@pytest.fixture
def composed_scenes(build):
    return build("composed_scenes", **FEW)


def run_script(*arguments):
    return subprocess.run([sys.executable, ROOT / "scripts" / "make_scenes.py", *map(str, arguments)], capture_output=True, text=True)


def test_training_has_an_item_a_picture_and_evaluation_every_caption(scenes):
    assert [len(scenes.part(part)) for part in ("train", "valid", "test")] == [40, 50, 25]
    sample = scenes[(scenes.part("train")[3], 0, 0)]
    assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == np.float32
    record = scenes.records[scenes.part("train")[3]]
    drawn = [scenes[(scenes.part("train")[3], epoch, 0)]["text"] for epoch in range(60)]
    assert set(drawn) == set(record.captions)
    assert len({int(scenes.keys[i]) for i in scenes.part("valid")}) == 10


def test_all_captions_make_pairs_and_the_first_is_always_the_same(build):
    assert len(build("scenes", **SMALL, captions="all").part("train")) == 200
    first = build("scenes", **SMALL, captions="first")
    index = first.part("train")[0]
    assert {first[(index, epoch, 0)]["text"] for epoch in range(20)} == {first.records[index].captions[0]}


def test_the_pixels_are_the_simulators_normalised(scenes):
    index = scenes.part("valid")[0]
    record = scenes.records[index]
    pixels = scenes.pictures[record.source].astype(np.float64) / 255
    np.testing.assert_allclose(scenes[(index, -1, 0)]["image"], ((pixels - 0.5) / 0.25).transpose(2, 0, 1), atol=1e-6)


def test_shuffled_captions_belong_to_other_pictures_in_training_only(build, scenes):
    shuffled = build("scenes", **SMALL, shuffle_captions=True)
    moved = [a.captions != b.captions for a, b in zip(scenes.records, shuffled.records, strict=True) if a.split == "train"]
    assert np.mean(moved) > 0.8
    assert [r.captions for r in shuffled.records if r.split != "train"] == [r.captions for r in scenes.records if r.split != "train"]
    assert {r.captions for r in shuffled.records} == {r.captions for r in scenes.records}
    assert shuffled.fingerprint() != scenes.fingerprint()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers is the point
@pytest.mark.parametrize("name", ["scenes", "composed_scenes"])
def test_batches_are_equal_from_none_and_four_workers(request, name):
    dataset = request.getfixturevalue(name)
    found = []
    for workers in (0, 4):
        opened = loaders(dataset, workers)
        found.append([batch for window in opened.train(1, 0) for batch in window] + list(opened.part("valid")))
        opened.close()
    assert len(found[0]) == len(found[1]) > 4
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for role in one.keys() - {"text"}:
            assert torch.equal(one[role], other[role]), role
        assert torch.equal(one["text"]["input_ids"], other["text"]["input_ids"])


def test_scenes_and_edits_have_one_vocabulary_of_whole_words(scenes, composed_scenes):
    found = [build_vocabulary(dataset.vocabulary_texts(dataset.part("train")), 2000) for dataset in (scenes, composed_scenes)]
    assert found[0] == found[1] and set(WORDS) <= set(found[0])


def test_a_mirror_that_makes_captions_false_is_warned_of(build, scenes):
    warned = build("scenes", **SMALL | {"transform": {"side": 32, "flip": 0.5}}).exclusions.warnings
    assert len(warned) == 1 and "say left or right" in warned[0] and not scenes.exclusions.warnings


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("scenes", {"images": {"train": 0}}, "train 1 or more"),
        ("scenes", {"images": {"valid": -1}}, "each 0 or more"),
        ("scenes", {"images": 120}, "dataset.images.train=N sets one"),
        ("scenes", {"captions": "second"}, "choose random, first, all"),
        ("composed_scenes", {"captions": 3}, "choose 1 or 2"),
        ("composed_scenes", {"extra": -1}, "extra=-1"),
    ],
)
def test_a_wrong_key_is_named_before_anything_is_drawn(build, name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_relative_rows_hold_what_the_model_and_the_evaluator_read(composed_scenes):
    train, valid = composed_scenes.part("train"), composed_scenes.part("valid")
    row = composed_scenes[(train[2], 0, 0)]
    assert row.keys() == {"reference", "target", "text", "id", "reference_key", "positive_key"} and row["id"] == train[2]
    gallery = composed_scenes.pictures("train")
    for role, key in (("reference", "reference_key"), ("target", "positive_key")):
        shown = gallery[(row[key], -1, 0)]
        assert shown.keys() == {"image", "id"} and shown["id"] == row[key]
        np.testing.assert_array_equal(shown["image"], row[role])
    row = composed_scenes[(valid[0], -1, 0)]
    assert row.keys() == {"text", "id", "reference_key", "positive_key", "members"}
    assert row["members"].dtype == np.int64 and (np.diff(row["members"]) > 0).all() and len(row["members"]) == 6
    assert {row["reference_key"], row["positive_key"]} < set(row["members"].tolist())


def test_picture_ids_are_positions_in_the_sorted_names_and_no_scene_is_in_two_parts(composed_scenes):
    names = {part: [record.id for record in composed_scenes.pictures(part).records] for part in ("train", "valid", "test")}
    for part, found in names.items():
        assert found == sorted(set(found))
        assert composed_scenes.galleries(part)[""].tolist() == list(range(len(found)))
    assert not set(names["train"]) & set(names["valid"]) and not set(names["valid"]) & set(names["test"])


def test_two_captions_are_joined_as_in_fashion_iq_and_training_draws_all_four_variants(build, composed_scenes):
    two = build("composed_scenes", **FEW, captions=2)
    index = two.part("train")[0]
    first = composed_scenes.records[index].source.text
    evaluated, record = two[(index, -1, 0)]["text"], two.records[index]
    assert evaluated == f"{first.capitalize()} and {record.captions[3][0].lower()}{record.captions[3][1:]}"
    draws = [two[(index, epoch, 0)]["text"] for epoch in range(200)]
    assert set(draws) == set(record.captions) and len(set(draws)) == 4
    assert all(abs(draws.count(text) - 50) < 4 * np.sqrt(200 * 3 / 16) for text in record.captions)


def test_a_grouped_cv_is_refused_since_galleries_belong_to_the_parts(composed_scenes):
    with pytest.raises(ConfigError, match="choose cv=none"):
        composed_scenes.require_groups()


def test_the_script_writes_the_queries_groups_and_galleries_of_the_data_set_in_both_layouts(build, tmp_path):
    assert run_script("--out", tmp_path / "made", "--images", 12, "--task", "composed", "--captions", 2).returncode == 0
    dataset = build("composed_scenes", triplets={"train": 12, "valid": 12, "test": 12})
    pictures = dataset.pictures("valid")
    queries = [record.source for record in dataset.records if record.split == "valid"]
    read = {
        name: json.loads((tmp_path / "made" / name).read_text())
        for name in ("captions/cap.rc2.val.json", "captions/cap.dress.val.json", "captions/cap.rc2.test1.json")
    }
    paths = json.loads((tmp_path / "made" / "image_splits" / "split.rc2.val.json").read_text())
    assert list(paths) == json.loads((tmp_path / "made" / "image_splits" / "split.dress.val.json").read_text())
    assert list(paths) == [record.id for record in pictures.records]
    for row, pair, query in zip(read["captions/cap.rc2.val.json"], read["captions/cap.dress.val.json"], queries, strict=True):
        assert (row["reference"], row["target_hard"], row["caption"]) == (query.reference, query.target, query.text)
        assert tuple(row["img_set"]["members"]) == query.members
        assert (pair["candidate"], pair["target"], pair["captions"][0]) == (query.reference, query.target, query.text)
    assert all("target_hard" not in row for row in read["captions/cap.rc2.test1.json"])
    for name, path in paths.items():
        stored = np.asarray(Image.open(tmp_path / "made" / path))
        assert (stored == pictures.pixels[pictures.ids[name]]).all()


def ranked(dataset):
    """((reference, target), rank, rank in the group) of every valid query, with features made of names."""
    names = [record.id for record in dataset.pictures("valid").records]
    gallery = torch.stack([noise(name) for name in names])
    rows = [dataset[(i, -1, 0)] for i in dataset.part("valid")]
    told = [(names[row["reference_key"]], names[row["positive_key"]]) for row in rows]
    references, targets = (torch.tensor([row[key] for row in rows]) for key in ("reference_key", "positive_key"))
    query = torch.stack([noise(reference) + noise(f"query {reference}") for reference, _ in told])
    rank, group = rank_targets(query, gallery, targets, references).rank, torch.zeros(len(rows))
    if "members" in rows[0]:
        group = group_ranks(query, gallery, targets, references, torch.stack([torch.as_tensor(row["members"]) for row in rows]))
    return sorted(zip(told, rank.tolist(), group.tolist(), strict=True))


def noise(name):
    digest = hashlib.shake_256(name.encode()).digest(64)
    return torch.tensor(list(digest), dtype=torch.float32) - 127.5


@pytest.mark.parametrize(("name", "changes"), [("cirr", {}), ("fashion_iq", {"categories": ["dress"]})])
def test_both_layouts_read_back_to_equal_queries_groups_and_ranks(build, tmp_path, name, changes):
    assert run_script("--out", tmp_path / "made", "--images", 12, "--task", "composed", "--captions", 2).returncode == 0
    drawn = build("composed_scenes", triplets={"train": 12, "valid": 12, "test": 12}, captions=1 if name == "cirr" else 2)
    read = build(name, root=tmp_path / "made", missing_file=tmp_path / "missing.txt", transform={"side": 32}, **changes)
    one, other = ranked(drawn), ranked(read)
    if name == "fashion_iq":  # has no groups
        one = [(told, rank, 0.0) for told, rank, _ in one]
    assert one == other and len(one) == 12 and len({rank for _, rank, _ in one}) > 3
    texts = [
        {(r.source.reference, r.source.target): r.source.text for r in dataset.records if r.split != "test"} for dataset in (drawn, read)
    ]
    assert texts[0] == texts[1]
    ids = [
        {record.id: dataset.pictures("valid").ids[record.id] for record in dataset.pictures("valid").records} for dataset in (drawn, read)
    ]
    assert ids[0] == ids[1]


def test_the_script_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    refused = run_script("--out", tmp_path, "--images", 2)
    assert refused.returncode == 1 and "is not an empty folder" in refused.stderr
