"""Simulated clips are made once, whole or not at all, the same from any number of workers."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mmexpert.command_line import composed
from mmexpert.config import instantiate
from mmexpert.data.cache import MANIFEST, cached_folder
from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.data.radar_base import length_histogram
from mmexpert.data.radar_sim import RadarSim
from mmexpert.data.views import VIEW_ROWS
from mmexpert.types import ConfigError, ProcessError


def radar_sim(cache: Path, **keys):
    given = {"train": 24, "valid": 8, "test": 17, "cache_dir": str(cache)} | keys
    return instantiate(OmegaConf.merge(composed().dataset, given), "dataset")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def tokens(texts):
    return {
        "input_ids": torch.tensor([[sum(map(ord, text))] for text in texts]),
        "attention_mask": torch.ones(len(texts), 1, dtype=torch.long),
    }


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


def test_lengths_are_counted_over_all_clips_that_were_read(cache):
    dataset = radar_sim(cache, short="drop", min_length=160, captions="all")
    frames = [dataset.codes[f"{name}/range_time"].shape[1] for name in dataset.peaks]
    expected = {}
    for length in frames:
        low = length - length % 32
        expected[f"{low}..{low + 31}"] = expected.get(f"{low}..{low + 31}", 0) + 1
    assert {name: count for name, count in dataset.lengths.items() if count} == expected and sum(expected.values()) == 24 + 8 + 17
    assert min(frames) < 160  # those that were dropped for it count too
    assert length_histogram([31, 32, 128]) == {"0..31": 1, "32..63": 1, "64..95": 0, "96..127": 0, "128..159": 1}
    assert length_histogram([]) == {}


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
            assert torch.equal(a["radar"]["range_time"], b["radar"]["range_time"]) and torch.equal(
                a["text"]["input_ids"], b["text"]["input_ids"]
            )


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
    for i in train:  # a caption travels with its key and its hard captions
        giver = next(k for k in train if plain.records[k].captions == shuffled.records[i].captions)
        assert shuffled.records[i].text_key == plain.records[giver].text_key
        assert shuffled.records[i].hard_captions == plain.records[giver].hard_captions
    assert plain.fingerprint() != shuffled.fingerprint()


def test_twins_come_in_pairs_that_stay_in_one_batch(cache):
    dataset = radar_sim(cache, train=16, valid=0, test=0, twins=1.0)
    batch = next(loaders(dataset, 0).train(0, 0))[0]
    groups = [dataset.records[i].group for i in batch["id"].tolist()]
    assert all(groups.count(group) == 2 for group in groups)


def test_all_captions_make_one_item_a_caption(cache):
    dataset = radar_sim(cache, captions="all")
    assert len(dataset.part("train")) == 4 * 24 and len(dataset.part("test")) == 17
    of_one_clip = [i for i in dataset.part("train") if dataset.records[i].item == "train-00003"]
    assert len({dataset.keys[i] for i in of_one_clip}) == 1 and len({dataset[(i, 0, 0)]["text"] for i in of_one_clip}) > 1
    crops = [dataset[(i, -1, 0)]["radar"]["range_time"] for i in of_one_clip]
    assert len(crops) == 4 and all(np.array_equal(crops[0], crop) for crop in crops)


def test_a_worker_that_fails_names_its_samples(cache):
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


class DyingRadar:
    """Stands in for the radar; its process is killed at the second clip."""

    def __init__(self):
        self.clips = 0

    def identity(self):
        return {"version": "dying"}

    def joint_views(self, joints, fps, rng):
        self.clips += 1
        if self.clips > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {view: np.ones((rows, 100), np.float32) for view, rows in VIEW_ROWS.items()}


def test_a_simulating_process_that_is_killed_ends_the_start_and_leaves_nothing_to_read(cache, tmp_path):
    dataset = radar_sim(cache)
    keys = {key: getattr(dataset, key) for key in dataset.__dataclass_fields__} | {
        "radar": DyingRadar(),
        "workers": 2,
        "cache_dir": str(tmp_path),
    }
    with pytest.raises(ProcessError, match="ended with code -9 .*dataset.workers=1 shows the error"):
        RadarSim(**keys)
    assert not [path for path in tmp_path.glob("radar_sim-*") if path.suffix != ".lock" and ".tmp-" not in path.name]


@pytest.mark.parametrize("workers", ["many", 0, -1, 1.5])
def test_workers_are_auto_or_a_number(tmp_path, workers):
    with pytest.raises(ConfigError, match=f"dataset.workers={workers}: auto, or how many"):
        radar_sim(tmp_path, workers=workers)


def test_wrong_counts_and_shares_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="'valid': -1"):
        radar_sim(tmp_path, valid=-1)
    with pytest.raises(ConfigError, match="twins=1.5 is a share"):
        radar_sim(tmp_path, twins=1.5)


def test_hard_captions_are_given_in_evaluation_alone_and_differ_from_the_own_one(cache):
    dataset = radar_sim(cache)
    told = 0
    for i in dataset.part("test"):
        sample = dataset[(i, -1, 0)]
        assert sample["text"] == dataset.records[i].captions[0] and "hard_text" not in dataset[(i, 0, 0)]
        for kind, caption in sample["hard_text"]:
            assert 0 <= kind < len(dataset.hard_kinds) and caption != sample["text"]
            told += 1
    assert told >= len(dataset.part("test"))


def test_training_draws_among_a_clips_captions_and_first_takes_the_first(cache):
    drawn, first = radar_sim(cache), radar_sim(cache, captions="first")
    i = drawn.part("train")[0]
    captions = drawn.records[i].captions
    assert {drawn[(i, epoch, 0)]["text"] for epoch in range(40)} == set(captions)
    assert {first[(i, epoch, 0)]["text"] for epoch in range(5)} == {captions[0]}


def test_twins_among_single_clips_are_whole_pairs_in_one_batch(tmp_path):
    dataset = radar_sim(tmp_path, train=26, valid=0, test=0, twins=0.5, motion={"segments": [1, 1]})
    sizes = [len(block) for block in dataset.together]
    assert sizes.count(1) + 2 * sizes.count(2) == 26 and sizes.count(2) >= 3 and sizes.count(1) >= 3
    assert all(len({name.rstrip("ab") for name in block}) == 1 and (len(block) == 2) == (block[0][-1] == "a") for block in dataset.together)
    for epoch in range(3):
        batches = [{dataset.records[i].id for i in window[0]["id"].tolist()} for window in loaders(dataset, 0).train(epoch, 0)]
        assert all(len(batch & set(block)) in (0, len(block)) for batch in batches for block in dataset.together)
    for pair in (block for block in dataset.together if len(block) == 2):
        keys = [record.text_key for record in dataset.records if record.id in pair]
        assert keys[0] != keys[1]


def test_clips_of_a_view_less_are_the_same_clips(cache):
    whole, doppler = radar_sim(cache), radar_sim(cache, views=["doppler"])
    sample = doppler[(0, -1, 0)]["radar"]
    assert list(sample) == ["doppler_time"] and np.array_equal(sample["doppler_time"], whole[(0, -1, 0)]["radar"]["doppler_time"])


def test_shuffled_time_moves_whole_units_alike_in_all_views_and_always_the_same_way(cache):
    plain, shuffled = radar_sim(cache), radar_sim(cache, shuffle_time=True)
    moved = 0
    for record in plain.records[:8]:
        before, after = plain.clip(record, 0, None), shuffled.clip(record, 3, None)
        units = {view: [x[:, k : k + 16].tobytes() for k in range(0, x.shape[1] // 16 * 16, 16)] for view, x in before.items()}
        there = {view: [x[:, k : k + 16].tobytes() for k in range(0, x.shape[1] // 16 * 16, 16)] for view, x in after.items()}
        orders = {tuple(units[view].index(unit) for unit in there[view]) for view in ("range_time", "doppler_time", "azimuth_time")}
        assert len(orders) == 1 and sorted(*orders) == list(range(len(units["range_time"])))
        moved += orders != {tuple(range(len(units["range_time"])))}
    assert moved == 8 and plain.fingerprint() != shuffled.fingerprint()
    assert plain.cache == shuffled.cache  # the same clips, read in another order
