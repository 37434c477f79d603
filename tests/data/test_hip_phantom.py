"""The embedded radiographs as a data set: samples, prompts, groups, controls, and the files that the script writes."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier

from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.simulate.anatomy import CLASSES
from mmexpert.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def tokens(texts):
    return {"input_ids": torch.tensor([[len(text)] for text in texts]), "attention_mask": torch.ones(len(texts), 1, dtype=torch.long)}


@pytest.fixture
def small(build):
    return build("hip_phantom", n_patients=30)


def test_a_sample_is_one_normalised_film_with_label_and_prompt(build, small):
    raw = build("hip_phantom", n_patients=30, normalize="none")
    assert len(small) == 60
    for index in (0, 17, 59):
        sample, plain = small[(index, -1, 0)], raw[(index, -1, 0)]["image"]
        assert sample.keys() == {"image", "text", "label", "text_index", "id", "positive_key"}
        assert sample["image"].shape == (1, 64, 64) and sample["image"].dtype == plain.dtype == np.float32
        assert abs(sample["image"].mean()) < 1e-5 and abs(sample["image"].std() - 1) < 1e-4
        assert plain.min() >= 0 and plain.max() <= 1 and plain.max() > 0.5
        np.testing.assert_allclose(sample["image"], (plain - plain.mean()) / plain.std(), atol=2e-5)


def test_sixteen_bits_cover_the_same_range(build):
    fine = build("hip_phantom", n_patients=3, normalize="none", simulator={"bit_depth": 16})
    coarse = build("hip_phantom", n_patients=3, normalize="none")
    np.testing.assert_allclose(fine[(2, -1, 0)]["image"], coarse[(2, -1, 0)]["image"], atol=0.51 / 255)


def test_films_of_a_patient_are_one_group_one_class_and_positives_of_their_class(small):
    assert [record.id for record in small.records[:3]] == ["P0000_0", "P0000_1", "P0001_0"]
    assert all(record.group == record.id.rpartition("_")[0] for record in small.records)
    labels = {record.group: record.label for record in small.records}
    assert all(labels[record.group] == record.label for record in small.records)
    assert small.classes.names == CLASSES and small.classes.counts == tuple(Counter(r.label for r in small.records)[k] for k in range(8))
    keys = {(record.label, key) for record, key in zip(small.records, small.keys.tolist(), strict=True)}
    assert len(keys) == len({key for _, key in keys}) == len({label for label, _ in keys})


def test_the_first_prompt_is_for_evaluation_and_training_draws_all_of_its_class(build, small):
    again = build("hip_phantom", n_patients=30)
    table = [text for texts in small.classes.texts for text in texts]
    assert len(table) == len(set(table)) == 24
    for index in (0, 25):
        texts = small.classes.texts[small.records[index].label]
        assert small[(index, -1, 0)]["text"] == texts[0]
        draws = [small[(index, epoch, 0)] for epoch in range(30)]
        assert {draw["text"] for draw in draws} == set(texts)
        assert all(table[draw["text_index"]] == draw["text"] for draw in draws)
        assert [draw["text"] for draw in draws] == [again[(index, epoch, 0)]["text"] for epoch in range(30)]
    first = build("hip_phantom", n_patients=30, captions="first")
    assert {first[(0, epoch, 0)]["text_index"] for epoch in range(10)} == {3 * first.records[0].label}


def test_the_texts_hold_about_56_words_and_tell_no_side(small):
    words = set(re.findall(r"[a-z]+", " ".join(small.training_texts([])).lower()))
    assert 50 <= len(words) <= 62 and not words & {"left", "right"}


def test_a_longer_set_begins_with_the_shorter_one_and_is_drawn_once(build, small):
    longer = build("hip_phantom", n_patients=34)
    for index, record in enumerate(small.records):
        assert longer.records[index].id == record.id and longer.rows[index] == small.rows[index]
    np.testing.assert_array_equal(longer.films[:60], small.films)
    stamp = (small.cache / "films.npy").stat().st_mtime_ns
    again = build("hip_phantom", n_patients=30)
    assert again.cache == small.cache and (again.cache / "films.npy").stat().st_mtime_ns == stamp
    assert again.fingerprint() == small.fingerprint()


def test_what_a_run_can_see_is_in_the_fingerprint(build, small):
    others = [{"simulator": {"seed": 5}}, {"images_per_patient": 1}, {"templates": ["{}"]}, {"shuffle_labels": True}]
    prints = {small.fingerprint(), *(build("hip_phantom", **{"n_patients": 30} | other).fingerprint() for other in others)}
    assert len(prints) == 5


def test_shuffled_labels_are_handed_round_by_patient_and_say_nothing_of_the_picture(build):
    usual, shuffled = build("hip_phantom", n_patients=150), build("hip_phantom", n_patients=150, shuffle_labels=True)
    by_patient = {record.group: record.label for record in shuffled.records}
    assert all(by_patient[record.group] == record.label for record in shuffled.records)
    assert shuffled.classes.counts == usual.classes.counts
    assert [row["true_label"] for row in shuffled.rows] == [row["true_label"] for row in usual.rows]
    scores = {}
    for name, dataset in (("usual", usual), ("shuffled", shuffled)):
        pictures = np.stack([dataset.picture(record).reshape(32, 2, 32, 2).mean((1, 3)).ravel() for record in dataset.records])
        labels = np.array([record.label for record in dataset.records])
        predicted = np.empty_like(labels)
        for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
            pictures, labels, [r.group for r in dataset.records]
        ):
            predicted[test] = KNeighborsClassifier(1).fit(pictures[train], labels[train]).predict(pictures[test])
        scores[name] = balanced_accuracy_score(labels, predicted)
    assert 0.05 <= scores["shuffled"] <= 0.20 and scores["usual"] > 0.30


def test_a_leak_of_patients_is_recorded_in_labels_and_texts_alike(build):
    dataset = build("hip_phantom", n_patients=40, simulator={"leak": "patient", "leak_strength": 1.0})
    assert any(row["label"] != row["true_label"] for row in dataset.rows)
    for index, (record, row) in enumerate(zip(dataset.records, dataset.rows, strict=True)):
        assert CLASSES[record.label] == row["label"] and dataset[(index, -1, 0)]["text"] == dataset.classes.texts[record.label][0]


def test_images_are_stacked_into_a_batch_the_same_from_0_and_2_workers(small):
    def batches(workers):
        parts = {"train": list(range(40)), "valid": list(range(40, 60)), "test": []}
        collate = Collate(tokens, small.unit_length, small.pad_to, small.max_length)
        loaders = Loaders(
            small, parts, collate, PlanSettings(8, 4, 1, 1, 0, True), WorkerSettings(workers, 2, False, 60), 0, torch.device("cpu")
        )
        found = [batch for window in loaders.train(1, 0) for batch in window] + list(loaders.part("valid"))
        loaders.close()
        return found

    alone, shared = batches(0), batches(2)
    assert alone[0]["image"].shape == (8, 1, 64, 64) and alone[0]["image"].dtype == torch.float32
    assert alone[0]["text"]["input_ids"].shape == (8, 1) and alone[0]["label"].dtype == torch.int64 and len(alone) == 10
    for a, b in zip(alone, shared, strict=True):
        assert all(torch.equal(a[role], b[role]) for role in ("image", "label", "text_index", "id", "positive_key"))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"n_patients": 0}, "n_patients=0: 1 or more"),
        ({"captions": "all"}, "captions=all: choose random or first"),
        ({"normalize": "encoder"}, "choose per_image or none"),
        ({"class_texts": {"fracture": "broken"}}, "without a text: none; texts without a class: fracture; the classes are well_fixed"),
        ({"class_texts": {"dislocation": ["out", " "]}}, "class_texts.dislocation: an empty text"),
        ({"templates": ["a hip"]}, "each with one {} where the class text goes"),
        ({"simulator": {"leak": "yes"}}, "dataset.simulator.leak=yes: choose none, marker, patient"),
    ],
)
def test_a_wrong_key_is_named_with_the_remedy(build, changes, text):
    with pytest.raises(ConfigError, match=text):
        build("hip_phantom", **{"n_patients": 2} | changes)


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts/make_hip_phantom.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)


def test_the_script_writes_class_folders_that_read_back_to_the_same_films(build, tmp_path):
    out = tmp_path / "films"
    ended = script("--out", out, "n_patients=12", "simulator.bit_depth=16")
    assert ended.returncode == 0 and "wrote 24 films" in ended.stdout, ended.stderr
    dataset = build("hip_phantom", n_patients=12, simulator={"bit_depth": 16})
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "file", "label", "group", "visit", "view", "side", "design", "severity", "true_label"]
    assert len(rows) == 24 and {row["view"] for row in rows} == {"AP"}
    for record, row in zip(dataset.records, rows, strict=True):
        assert (row["id"], row["group"], CLASSES.index(row["label"])) == (record.id, record.group, record.label)
        assert row["file"] == f"{row['label']}/{row['id']}.png"
        film = np.asarray(Image.open(out / row["file"]))
        assert film.dtype == np.uint16 and film.max() > 255
        np.testing.assert_array_equal(film, dataset.films[record.source])
    texts = json.loads((out / "class_texts.json").read_text(encoding="utf-8"))
    assert tuple(texts) == CLASSES and [tuple(texts[name]) for name in CLASSES] == list(dataset.classes.texts)
    again = script("--out", out, "n_patients=1")
    assert again.returncode == 1 and "is not an empty folder" in again.stderr and len(list(out.rglob("*.png"))) == 24


def test_the_script_names_a_misspelt_key_before_it_writes(tmp_path):
    ended = script("--out", tmp_path / "films", "n_patient=3")
    assert ended.returncode == 2 and "did you mean 'n_patients'" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "films").exists()
