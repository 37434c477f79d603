"""Simulated clips are made once, whole or not at all, the same from any number of workers."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mmexpert.config import CONF_DIR, instantiate
from mmexpert.data.cache import MANIFEST, cached_folder
from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.types import ProcessError


def radar_sim(cache: Path, **keys):
    cfg = OmegaConf.merge(OmegaConf.load(Path(CONF_DIR) / "dataset/radar_sim.yaml"), {"train": 24, "valid": 8, "test": 17, "cache_dir": str(cache)} | keys)
    return instantiate(cfg, "dataset")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def tokens(texts):
    return {"input_ids": torch.tensor([[sum(map(ord, text))] for text in texts]), "attention_mask": torch.ones(len(texts), 1, dtype=torch.long)}


def loaders(dataset, workers, rank=0, processes=1):
    parts = {name: dataset.part(name) for name in ("train", "valid", "test")}
    plan = PlanSettings(8, 4, 1, processes, rank, True)
    return Loaders(dataset, parts, Collate(tokens, 16, "batch", 496), plan, WorkerSettings(workers, 2, False, 60), 0, torch.device("cpu"))


def test_one_and_two_workers_simulate_the_same_clips(cache, tmp_path):
    one, two = radar_sim(cache, workers=2), radar_sim(tmp_path, workers=1)
    assert one.fingerprint() == two.fingerprint()
    for a, b in zip(sorted(one.cache.glob("*.npz")), sorted(two.cache.glob("*.npz")), strict=True):
        x, y = np.load(a), np.load(b)
        assert all(np.array_equal(x[name], y[name]) for name in x.files)


def test_a_clip_depends_on_its_number_and_seed_alone(cache, tmp_path):
    few, many = radar_sim(tmp_path, train=4, valid=0, test=0), radar_sim(cache)
    for record in few.records:
        assert record.captions == next(r for r in many.records if r.id == record.id).captions


def test_decoded_amplitudes_are_within_a_code_of_the_simulated_ones(cache):
    dataset = radar_sim(cache)
    record = dataset.records[dataset.part("train")[3]]
    _, motion, rng = dataset._clip_of("train", 3)
    simulated = dataset.radar.joint_views(motion.joints, motion.fps, rng)
    for view, stored in dataset.clip(record, -1, None).items():
        loud = simulated[view] > simulated[view].max() * 1e-3
        np.testing.assert_allclose(20 * np.log10(stored[loud] / simulated[view][loud]), 0, atol=0.17)  # half of 80 dB / 255


def test_a_flipped_byte_is_found_by_file_name_and_the_cache_made_again(tmp_path, caplog):
    dataset = radar_sim(tmp_path, train=4, valid=0, test=0)
    shard = dataset.cache / "train-0000.npz"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    again = radar_sim(tmp_path, train=4, valid=0, test=0)
    assert "train-0000.npz has another sha256" in caplog.text
    assert again.fingerprint() == dataset.fingerprint()


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path):
    def dies(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(tmp_path / "set-1", dies)
    assert not (tmp_path / "set-1").exists()
    made = cached_folder(tmp_path / "set-1", lambda folder: (folder / "whole").write_text("y"))
    assert sorted(path.name for path in made.iterdir()) == [MANIFEST, "whole"]
    assert not list(tmp_path.glob("*.tmp-*"))


def _make_once(folder: Path) -> None:
    def make(temporary: Path) -> None:
        with open(folder.parent / "made", "a") as count:
            count.write("x")
        (temporary / "whole").write_text("y")

    cached_folder(folder, make)


def test_two_processes_that_want_one_cache_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_make_once, args=(tmp_path / "set-1",)) for _ in range(4)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert (tmp_path / "made").read_text() == "x"


def test_17_clips_in_batches_of_4_are_all_evaluated_once_and_alike_from_0_and_2_workers(cache):
    dataset = radar_sim(cache)
    batches = [list(loaders(dataset, workers).part("test")) for workers in (0, 2, 0)]
    ids = [i for batch in batches[0] for i in batch["id"].tolist()]
    assert sorted(ids) == dataset.part("test")
    for other in batches[1:]:
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a["radar"]["range_time"], b["radar"]["range_time"]) and torch.equal(a["text"]["input_ids"], b["text"]["input_ids"])


def test_training_windows_are_the_same_from_0_and_2_workers_and_from_a_later_start(cache):
    dataset = radar_sim(cache, augmentation={"gain_db": 3, "row_mask": 0.1})
    plain, parallel = loaders(dataset, 0), loaders(dataset, 2)
    for epoch in (0, 1):
        whole = list(plain.train(epoch, 0))
        for a, b in zip(whole, parallel.train(epoch, 0), strict=True):
            assert torch.equal(a[0]["radar"]["azimuth_time"], b[0]["radar"]["azimuth_time"]) and torch.equal(a[0]["id"], b[0]["id"])
        late = list(plain.train(epoch, 2))
        assert torch.equal(late[0][0]["radar"]["range_time"], whole[2][0]["radar"]["range_time"])
    parallel.close()


def test_shuffled_captions_move_captions_and_keys_of_training_clips_alone(cache):
    plain, shuffled = radar_sim(cache), radar_sim(cache, shuffle_captions=True)
    train, test = plain.part("train"), plain.part("test")
    assert sorted(plain.records[i].captions for i in train) == sorted(shuffled.records[i].captions for i in train)
    assert [plain.records[i].captions for i in train] != [shuffled.records[i].captions for i in train]
    assert [plain.records[i].captions for i in test] == [shuffled.records[i].captions for i in test]
    assert plain.fingerprint() != shuffled.fingerprint()


def test_twins_come_in_pairs_that_stay_in_one_batch(cache):
    dataset = radar_sim(cache, train=16, valid=0, test=0, twins=1.0)
    batch = next(loaders(dataset, 0).train(0, 0))[0]
    groups = [dataset.records[i].group for i in batch["id"].tolist()]
    assert all(groups.count(group) == 2 for group in groups)


def test_all_captions_make_one_item_a_caption(cache):
    dataset = radar_sim(cache, captions="all")
    assert len(dataset.part("train")) == 4 * 24 and len(dataset.part("test")) == 17
    assert len({dataset.keys[i] for i in dataset.part("train") if dataset.records[i].item == dataset.records[0].item}) == 1 or dataset.records[0].split != "train"


def test_a_worker_that_fails_names_its_samples_and_one_that_dies_is_told(cache):
    dataset = radar_sim(cache)

    def broken(record, epoch, rng):
        raise ZeroDivisionError("made by the test")

    dataset.clip = broken
    with pytest.raises(ProcessError, match="(?s)train-000.*made by the test"):
        next(loaders(dataset, 2).train(0, 0))


def test_the_cache_folder_is_removed_by_hand_and_made_again(tmp_path):
    dataset = radar_sim(tmp_path, train=2, valid=0, test=0)
    shutil.rmtree(dataset.cache)
    assert radar_sim(tmp_path, train=2, valid=0, test=0).fingerprint() == dataset.fingerprint()
