"""Pictures with captions from files: five forms of one data set, each fault by file and record, splits that stay, positives by caption."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmexpert.data.findings import DataFaults
from mmexpert.losses.clip import ClipLoss
from mmexpert.metrics.retrieval import retrieval_metrics
from mmexpert.types import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {  # quotes, commas, blanks at the ends, a caption twice, two images with one caption
    "images/a.png": ["A red dog", 'a "quoted", dog', "A red dog"],
    "images/b.png": ["  two cats  "],
    "images/c.png": ["Two  cats.", "naïve cats"],
    "images/d.png": ["a lone bird"],
}
FORMS = ("data.json", "data.jsonl", "data.csv", "data.tsv", "folders")


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)


def pictures(root, names=tuple(TEXTS)):
    for number, name in enumerate(names):
        picture(root / name, number)
    return root


def write(root, form, texts=None):
    """The texts in one form; a list in JSON, a row a caption in tables."""
    texts = TEXTS if texts is None else texts
    records = [{"image_path": name, "caption": captions} for name, captions in texts.items()]
    if form == "data.json":
        (root / form).write_text(json.dumps(records), encoding="utf-8")
    elif form == "data.jsonl":
        (root / form).write_text("".join(json.dumps(record) + "\n\n" for record in records), encoding="utf-8")
    elif form == "folders":
        (root / "captions").mkdir()
        for name, captions in texts.items():
            (root / "captions" / f"{Path(name).stem}.txt").write_text("\r\n".join(captions) + "\n\n", encoding="utf-8")
    else:
        with (root / form).open("w", encoding="utf-8-sig" if form == "data.csv" else "utf-8", newline="") as stream:
            table = csv.writer(stream, delimiter="\t" if form == "data.tsv" else ",")
            table.writerow(("image_path", "caption"))
            table.writerows((name, caption) for name, captions in texts.items() for caption in captions)
    return root


def records_json(root, *records):
    (root / "data.json").write_text(json.dumps(list(records)), encoding="utf-8")
    return root


@pytest.fixture
def image_text(build):
    return lambda root, **changes: build("image_text", root=root, transform={"side": 16}, **changes)


def told(dataset):
    return [(r.id, r.item, r.split, r.captions, r.group, r.size) for r in dataset.records]


def test_five_forms_of_one_data_set_give_equal_records_keys_and_fingerprints(image_text, tmp_path):
    found = [image_text(write(pictures(tmp_path / form), form), split={"valid": 0.4}) for form in FORMS]
    for dataset in found:
        assert told(dataset) == told(found[0]) and dataset.fingerprint() == found[0].fingerprint()
        assert (dataset.keys == found[0].keys).all()
    captions = {}
    for record in found[0].records:
        captions.setdefault(record.item or record.id, []).extend(record.captions)
    assert captions["images/a.png"] == ["A red dog", 'a "quoted", dog'] and captions["images/b.png"] == ["two cats"]
    assert len(captions) == 4 and any("1 captions repeat" in warning for warning in found[0].exclusions.warnings)


def test_the_script_writes_one_data_set_in_all_layouts(image_text, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "make_scenes.py", "--out", tmp_path / "s", "--images", "60", "--layout", "all"]
    subprocess.run(command, check=True, capture_output=True)
    assert len({image_text(tmp_path / "s", index=form).fingerprint() for form in FORMS}) == 1
    with pytest.raises(DataError, match=r"holds data.json, data.jsonl, data.csv, data.tsv, folders; say which one"):
        image_text(tmp_path / "s")


def test_karpathys_json_is_known_by_its_shape_and_restval_is_train(image_text, tmp_path):
    pictures(tmp_path, ["coco/a.png", "coco/b.png", "coco/c.png"])
    images = [
        {"filename": f"{name}.png", "filepath": "coco", "split": split, "sentences": [{"raw": f"one {name}"}, {"raw": f"two {name}"}]}
        for name, split in (("a", "train"), ("b", "restval"), ("c", "val"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    dataset = image_text(tmp_path, index="dataset_coco.json")
    assert [(r.id, r.split, r.captions) for r in dataset.records] == [
        ("coco/a.png", "train", ("one a", "two a")),
        ("coco/b.png", "train", ("one b", "two b")),
        ("coco/c.png#0", "valid", ("one c",)),
        ("coco/c.png#1", "valid", ("two c",)),
    ]


def test_other_names_of_columns_and_split_names_are_understood(image_text, tmp_path):
    pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png", "e.png"])
    rows = ["file,says,part", "a.png,x,train", "b.png,y,dev", "c.png,z,VAL", "d.png,v,validation", "e.png,w,test"]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    dataset = image_text(tmp_path, columns={"image": "file", "caption": "says", "split": "part"})
    assert [record.split for record in dataset.records] == ["train", "valid", "valid", "valid", "test"]
    records_json(tmp_path, *({"filename": name, "captions": [name]} for name in ("a.png", "b.png")))
    assert len(image_text(tmp_path, index="data.json")) == 2


def test_folders_by_split_are_read(image_text, tmp_path):
    for part in ("train", "val", "test"):
        picture(tmp_path / part / "images" / "x.JPG", 0)
        (tmp_path / part / "captions").mkdir()
        (tmp_path / part / "captions" / "x.txt").write_text(f"in {part}")
    dataset = image_text(tmp_path)
    assert [(r.id, r.split) for r in dataset.records] == [
        ("test/images/x.JPG", "test"),
        ("train/images/x.JPG", "train"),
        ("val/images/x.JPG", "valid"),
    ]
    assert sum("has the bytes of" in warning for warning in dataset.exclusions.warnings) == 2


def test_the_split_is_the_hash_of_the_path_and_stays_when_images_are_added(image_text, tmp_path):
    names = [f"{i:03d}.png" for i in range(60)]
    pictures(tmp_path, names)
    shares = {"valid": 0.3, "test": 0.2, "seed": 5}
    few, all_of_them = (
        {r.item or r.id: r.split for r in image_text(records_json(tmp_path, *rows), split=shares).records}
        for rows in ([{"image": name, "caption": name} for name in chosen] for chosen in (names[::2], names))
    )
    assert few == {name: all_of_them[name] for name in names[::2]}
    for name, split in all_of_them.items():
        u = int.from_bytes(hashlib.sha256(f"5:{name}".encode()).digest()[:8], "little") / 2**64
        assert split == ("test" if u < 0.2 else "valid" if u < 0.5 else "train")


def test_where_only_train_is_told_valid_is_cut_out_of_it(image_text, tmp_path):
    names = [f"{i:03d}.png" for i in range(60)]
    pictures(tmp_path, names)
    records_json(tmp_path, *({"image": name, "caption": name, "split": "test" if i < 9 else "train"} for i, name in enumerate(names)))
    found = {r.id: r.split for r in image_text(tmp_path, split={"valid": 0.3, "test": 0.5}).records}
    assert all(found[name] == "test" for name in names[:9])
    for name in names[9:]:
        u = int.from_bytes(hashlib.sha256(f"0:{name}".encode()).digest()[:8], "little") / 2**64
        assert found[name] == ("valid" if u < 0.3 else "train")


def test_images_that_share_a_caption_are_positives_of_each_other_by_text_alone(image_text, tmp_path):
    texts = TEXTS | {"images/d.png": ["a lone bird", "NAÏVE cats!"]}  # b - c by one caption, c - d by another
    write(pictures(tmp_path), "data.json", texts)
    for positives, groups in (("text", [{"a"}, {"b", "c", "d"}]), ("instance", [{"a"}, {"b"}, {"c"}, {"d"}])):
        dataset = image_text(tmp_path, positives=positives, captions="all")
        found = {}
        for record, key in zip(dataset.records, dataset.keys.tolist(), strict=True):
            found.setdefault(key, set()).add(Path(record.item or record.id).stem)
        assert sorted(found.values(), key=min) == groups
    assert any("occur with several images" in warning for warning in dataset.exclusions.warnings)


@pytest.mark.parametrize(("positives", "pushed", "recall"), [("text", False, 100.0), ("instance", True, 50.0)])
def test_a_caption_at_two_images_is_neither_pushed_apart_nor_a_miss_with_positives_text(image_text, tmp_path, positives, pushed, recall):
    texts = {"images/a.png": ["a dog"], "images/b.png": ["A dog."], "images/c.png": ["a cat"], "images/d.png": ["a cow"]}
    keys = torch.from_numpy(image_text(write(pictures(tmp_path), "data.json", texts), positives=positives, split={"valid": 0.0}).keys)
    scores = torch.zeros(4, 4, requires_grad=True)
    loss = ClipLoss(0.07, True, "out", "both").from_scores(scores, keys[:, None] == keys)["loss_clip"]
    (gradient,) = torch.autograd.grad(loss, scores)
    assert bool(gradient[0, 1] > 0) is bool(gradient[1, 0] > 0) is pushed
    features = torch.eye(4)
    captions = features[[1, 0, 2, 3]]  # each of the two captions lies at the other image, of which it is as true
    found, _ = retrieval_metrics(features, captions, keys, keys, ("image", "text"))
    assert found["text_to_image_R@1"] == found["image_to_text_R@1"] == recall


def test_training_draws_all_captions_over_the_epochs_and_evaluation_takes_the_pictures_middle(image_text, tmp_path):
    dataset = image_text(write(pictures(tmp_path), "data.json"), split={"valid": 0.0})
    draws = [dataset[(2, epoch, 0)] for epoch in range(40)]
    assert {draw["text"] for draw in draws} == {"Two  cats.", "naïve cats"}
    assert len({draw["image"].tobytes() for draw in draws}) > 8  # random crops
    assert draws[0]["image"].shape == (3, 16, 16) and (dataset[(2, 3, 0)]["image"] == draws[3]["image"]).all()


def broken_json(root):
    (root / "data.json").write_text('[{"image": "images/a.png",')


def not_utf8(root):
    (root / "data.jsonl").write_bytes(b'{"image": "images/a.png", "caption": "caf\xe9"}\n')


def two_hits(root):
    picture(root / "lists" / "images" / "a.png", 9)
    (root / "lists" / "data.json").write_text(json.dumps([{"image": "images/a.png", "caption": "x"}]))


def two_stems(root):
    write(root, "folders")
    picture(root / "images" / "a.bmp", 5)


def no_captions(root):
    write(root, "folders")
    (root / "captions" / "b.txt").unlink()


def no_image(root):
    write(root, "folders")
    (root / "captions" / "z.txt").write_text("nothing")


def damaged(root):
    write(root, "data.csv")
    (root / "images" / "b.png").write_bytes((root / "images" / "b.png").read_bytes()[:90])


def one(**record):
    return lambda root: records_json(root, {"image": "images/b.png", "caption": "fine"}, record)


FAULTS = {
    "missing image": (one(image="images/z.png", caption="x"), {}, r"data.json, record 1 \(images/z.png\): the image is missing"),
    "no image": (one(image="data.json", caption="x"), {}, r"record 1 \(data.json\): its name ends with none of .jpg"),
    "unreadable image": (damaged, {}, r"data.csv, line 5 \(images/b.png\): .*b.png .*truncated"),
    "missing key": (one(image="images/a.png"), {}, r"data.json, record 1: there is no 'caption' or 'captions'; it has image"),
    "empty caption": (one(image="images/a.png", caption=["x", "  "]), {}, r"data.json, record 1: images/a.png: a caption is empty"),
    "wrong type": (one(image="images/a.png", caption=7), {}, r"data.json, record 1: caption holds \[7\], expected a sentence"),
    "wrong path type": (one(image=7, caption="x"), {}, r"data.json, record 1: image is 7, expected the path"),
    "unknown split": (one(image="images/a.png", caption="x", split="exam"), {}, r"record 1: images/a.png: the split 'exam' is unknown"),
    "split for some": (one(image="images/a.png", caption="x", split="test"), {}, r"record 0 \(images/b.png\): has no split, others have"),
    "two splits": (
        lambda root: records_json(root, *({"image": "images/a.png", "caption": s, "split": s, "id": s} for s in ("train", "val"))),
        {},
        r"record 1, id val \(images/a.png\): is in valid and, by .*record 0, id train, in train",
    ),
    "outside": (
        lambda root: (shutil.copy(root / "images/a.png", root.parent / "o.png"), one(image="../o.png", caption="x")(root)),
        {},
        "leads outside",
    ),
    "not JSON": (broken_json, {}, r"data.json, line 1, column 27"),
    "not a list": (lambda root: (root / "data.json").write_text('{"image": "a"}'), {}, "is dict, expected a list of"),
    "nothing": (lambda root: records_json(root), {}, "data.json: holds no record"),
    "bad line": (lambda root: (root / "data.jsonl").write_text('\n{"image": oops}\n'), {}, "data.jsonl, line 2: no JSON object"),
    "not UTF-8": (not_utf8, {}, "data.jsonl, line 1: not UTF-8"),
    "missing column": (
        lambda root: (root / "data.csv").write_text("image,words\na,b"),
        {},
        "data.csv: no column 'caption'; there are image, words",
    ),
    "bad cells": (lambda root: (root / "data.tsv").write_text("image\tcaption\nx"), {}, "data.tsv, line 2: fewer cells than columns"),
    "bad quotes": (lambda root: (root / "data.csv").write_text('image,caption\nx,"y" z\n'), {}, "data.csv, line 2: .*quote cells"),
    "no caption file": (no_captions, {}, r"images/b.png: there is no .*captions/b.txt"),
    "no image for a caption file": (no_image, {}, r"captions/z.txt: there is no image"),
    "two images of one stem": (two_stems, {}, r"a.png: a.bmp has the same stem"),
    "two hits": (two_hits, {"index": "lists/data.json"}, r"are both there; write the path relative to dataset.root"),
    "no such index": (lambda root: None, {"index": "mine.json"}, "dataset.index=mine.json: there is no such file"),
    "no form": (lambda root: None, {}, "none of data.json, data.jsonl, data.csv, data.tsv is there"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_that_names_file_and_record_before_training(image_text, tmp_path, name):
    make, changes, message = FAULTS[name]
    root = pictures(tmp_path / "root")
    make(root)
    with pytest.raises(DataError, match=f"(?s){message}"):
        image_text(root, **changes)


def test_a_folder_that_does_not_exist_is_an_error_not_a_sample_set(image_text, tmp_path):
    with pytest.raises(DataError, match="there is no such folder; give the one that holds the pictures"):
        image_text(tmp_path / "absent")


def test_all_faults_are_counted_ten_are_named_and_skipping_lists_them(image_text, tmp_path):
    pictures(tmp_path)
    rows = [{"image": name, "caption": captions} for name, captions in TEXTS.items()]
    records_json(tmp_path, *rows, *({"image": f"z{i}.png", "caption": "x"} for i in range(14)))
    with pytest.raises(DataFaults, match=r"(?s)14 faults.*record 13.*and 4 more") as error:
        image_text(tmp_path)
    assert len(error.value.faults) == 14 and "z10.png" not in str(error.value)
    kept = image_text(tmp_path, on_error="skip", split={"valid": 0.0})
    assert len(kept) == 4 and len(kept.exclusions.dropped) == 14
    file, record, reason = kept.exclusions.dropped[0]
    assert (file, record) == (str(tmp_path / "data.json"), "z0.png") and "the image is missing" in reason


def test_few_pairs_long_captions_and_a_caption_of_most_images_are_warned_of(image_text, tmp_path):
    names = [f"{i:03d}.png" for i in range(60)]
    pictures(tmp_path, names)
    rows = [{"image": name, "caption": "a dog" if i < 55 else f"{name} " + "very " * 80} for i, name in enumerate(names)]
    found = image_text(records_json(tmp_path, *rows), split={"valid": 0.0})
    warnings = found.exclusions.warnings
    (long,) = (finding.advice for finding in found.findings if finding.code == "long_caption")
    assert long.endswith("the longest 81; a text tower of 77 tokens truncates them")
    assert any("8.3 % of the captions have more than 77 words, the longest 81" in warning for warning in warnings)
    assert any("55 images are positives of each other through captions such as 'a dog'" in warning for warning in warnings)
    assert any(
        "4 training pairs" in w
        for w in image_text(
            write(pictures(tmp_path / "few"), "data.json", dict(list(TEXTS.items())[1:])), split={"valid": 0.0}
        ).exclusions.warnings
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": "some"}, "choose random, first, all"),
        ({"positives": "label"}, "choose instance or text"),
        ({"split": {"valid": 0.7, "test": 0.4}}, "sum stays below 1"),
        ({"columns": {"picture": "x"}}, "dataset.columns.picture: there are image"),
        ({"index": "images/a.png"}, "its name ends with .json"),
    ],
)
def test_a_wrong_key_is_named(image_text, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        image_text(write(pictures(tmp_path), "data.json"), **changes)


def test_check_data_reads_every_image_and_names_the_one_that_is_damaged_inside(image_text, tmp_path):
    root = write(pictures(tmp_path), "data.json")
    damaged = bytearray((root / "images/c.png").read_bytes())
    damaged[60:200] = bytes(140)
    (root / "images/c.png").write_bytes(damaged)
    findings = image_text(root, split={"valid": 0.0}).deep_check()
    errors = [finding for finding in findings if finding.severity == "error"]
    assert len(errors) == 1 and errors[0].record == "images/c.png"


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_kept_pictures_are_those_that_are_read_anew(image_text, tmp_path, cache):
    root = write(pictures(tmp_path), "data.json")
    fresh, kept = (image_text(root, cache=kind, cache_dir=tmp_path / "cache", split={"valid": 0.0}) for kind in ("none", cache))
    for draw in ((i, epoch, 0) for epoch in (-1, 0, 1) for i in range(len(fresh))):
        np.testing.assert_array_equal(fresh[draw]["image"], kept[draw]["image"])
    assert any((tmp_path / "cache").glob("pack-*")) == (cache == "disk")


def test_a_cache_that_there_is_not_is_named(image_text, tmp_path):
    with pytest.raises(ConfigError, match="dataset.cache=tape: choose none, ram, disk"):
        image_text(write(pictures(tmp_path), "data.json"), cache="tape")
