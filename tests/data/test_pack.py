import pickle

import numpy as np
import pytest
import torch
from clip_files import session_text, views_of, write_session, write_split, write_views

from mmexpert.data.collate import Collate
from mmexpert.data.frames import Frames, Window, compact, expanded
from mmexpert.data.loaders import Loaders, PlanSettings
from mmexpert.data.records import RecordDataset
from mmexpert.data.thumbnails import thumbnail
from mmexpert.data.workers import WorkerSettings
from mmexpert.types import ConfigError, DataError, StorageError

AUGMENTED = {"gain_db": 6.0, "range_shift": 3, "time_shift": 1, "time_mask": 0.2, "row_mask": 0.1}
TOLERANCE = {"f32": 1e-6, "f16": 5e-4}


@pytest.fixture
def root(tmp_path):
    """Eight clips of 20 to 90 frames in source 1's format, some louder than others, one all zero in a view."""
    root = tmp_path / "radar"
    for i in range(8):
        views = {name: x * 10.0**-i for name, x in views_of(i, 20 + 10 * i).items()}
        views["doppler_time"][:, ::3] *= 1e-4  # below the floor of -60 dB
        views["azimuth_time"][:] *= i != 2
        write_views(root / "clips", f"{i:06d}", views, "npz")
    records = [{"filefolder": "clips", "fileindex": f"{i:06d}", "captions": [f"caption {i}", f"other {i}"]} for i in range(8)]
    write_split(root, "train.json", records[:6])
    write_split(root, "val.json", records[6:7])
    write_split(root, "test.json", records[7:])
    return root


@pytest.fixture
def text_set(build, root, tmp_path):
    return lambda **changes: build(
        "radar_text", **{"root": root, "cache_dir": tmp_path / "cache", "unit_length": 4, "min_length": 4, "max_length": 64} | changes
    )


def tokens(texts):
    ids = torch.tensor([[sum(text.encode()), 1] for text in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def batch_of(dataset: RecordDataset, epoch=0):
    collate = Collate(tokens, dataset.unit_length, dataset.pad_to, dataset.max_length)
    return collate([dataset[(i, epoch, 0)] for i in range(len(dataset))])


def close(one, other, kind):
    assert one.keys() == other.keys()
    for role, value in one.items():
        if role == "radar":
            assert value.keys() == other[role].keys()
            for view, x in value.items():
                tolerance = TOLERANCE[kind] if x.is_floating_point() else 0
                torch.testing.assert_close(other[role][view], x, rtol=0, atol=tolerance)
                assert other[role][view].is_contiguous()
        elif isinstance(value, dict):
            assert torch.equal(value["input_ids"], other[role]["input_ids"])
        else:
            assert torch.equal(value, other[role])


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("augmentation", [None, AUGMENTED])
@pytest.mark.parametrize("normalize", [{}, {"reference": 1e-3}, {"kind": "log1p", "reference": 1.0}, {"kind": "none"}])
def test_a_pack_gives_the_batches_of_the_files_from_the_same_draws(text_set, kind, augmentation, normalize):
    made = {"augmentation": augmentation, "normalize": normalize}
    plain, packed = text_set(**made), text_set(pack=kind, **made)
    for epoch in (-1, 0, 1):
        close(batch_of(plain, epoch), expanded(batch_of(packed, epoch)), kind)


def test_f32_gives_the_bits_of_the_files(text_set):
    plain, packed = batch_of(text_set()), expanded(batch_of(text_set(pack="f32")))
    assert all(torch.equal(x, packed["radar"][view]) for view, x in plain["radar"].items())


def test_a_batch_of_a_pack_travels_unpadded_in_its_stored_precision(text_set):
    radar = batch_of(text_set(pack="f16"))["radar"]
    assert isinstance(radar, Frames) and radar.values.dtype == torch.float16
    assert radar.values.shape == (sum(min(20 + 10 * i, 64) for i in range(8)) + 1, 512)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_packed_clip_has_the_views_and_the_thumbnails_of_its_files(text_set, kind):
    packed, plain = (text_set(pack=pack)[0, -1, 0] for pack in (kind, "none"))
    views = packed["radar"].views()
    assert views.keys() == plain["radar"].keys()
    for view, x in plain["radar"].items():
        np.testing.assert_allclose(views[view], x, atol=0 if kind == "f32" else 5e-4)
    shown, expected = thumbnail(packed), thumbnail(plain)
    assert all(np.abs(shown[view].astype(int) - expected[view]).max() <= 1 for view in expected) and len(shown) == 3


@pytest.mark.parametrize("name", ["radar_sim", "radar_twins"])
@pytest.mark.parametrize("more", [{}, {"shuffle_time": True, "captions": "all", "eval_captions": "all"}])
def test_simulated_clips_come_equal_from_a_pack(build, name, more):
    few = {"train": 4, "valid": 2, "test": 0, "motion": {"n_captions": 2}} | more
    plain, packed = build(name, **few), build(name, pack="f32", **few)
    assert "codes" not in vars(packed)  # the pack serves: the codes need no memory
    for epoch in (-1, 3):
        close(batch_of(plain, epoch), expanded(batch_of(packed, epoch)), "f32")


def test_all_places_of_a_motion_are_packed_and_drawn_as_before(build, tmp_path):
    (tmp_path / "joints").mkdir(), (tmp_path / "texts").mkdir()
    for i in range(3):
        steps = np.random.default_rng(i).normal(0, 0.01, (30, 22, 3)).cumsum(0)
        np.save(tmp_path / "joints" / f"{i:06d}.npy", (steps + (0, 1, 0)).astype(np.float32))
        (tmp_path / "texts" / f"{i:06d}.txt").write_text(f"a person moves {i}#a/DET#0.0#0.0\n")
    made = {"root": tmp_path, "placements": 2, "min_length": 16, "cache_dir": tmp_path / "cache"}
    plain, packed = build("humanml3d", **made), build("humanml3d", pack="f16", **made)
    assert sorted(len(packed.versions(record)) for record in packed.records)[-1] == 3
    for epoch in (-1, 0, 1, 2):
        close(batch_of(plain, epoch), expanded(batch_of(packed, epoch)), "f16")


def test_another_source_file_or_setting_is_another_pack(text_set, root, tmp_path):
    names = lambda: {path.name for path in (tmp_path / "cache").glob("pack-*") if path.is_dir()}  # noqa: E731
    text_set(pack="f16")
    first = names()
    text_set(pack="f16", augmentation=AUGMENTED, max_length=32, captions="first")  # all after what is packed
    assert names() == first
    write_views(root / "clips", "000001", views_of(99, 30), "npz")
    text_set(pack="f16")
    text_set(pack="f32")
    text_set(pack="f16", normalize={"floor_db": -50})
    text_set(pack="f16", views=["doppler"])
    assert len(names()) == 5


def test_a_damaged_pack_is_named_and_made_again(text_set, tmp_path, caplog):
    plain = batch_of(text_set())
    packed = text_set(pack="f32").packed.pack.folder
    for name, damage in (("values.bin", lambda p: p.write_bytes(p.read_bytes()[:-4] + b"\1\2\3\4")), ("index.jsonl", lambda p: p.unlink())):
        damage(packed / name)
        caplog.clear()
        close(plain, expanded(batch_of(text_set(pack="f32"))), "f32")
        assert name in caplog.text and "made again" in caplog.text


def test_a_value_beyond_half_precision_names_clip_and_view_and_leaves_no_half_pack(text_set, root, tmp_path):
    views = views_of(3, 30)
    views["doppler_time"][7, 5] = 7e4
    write_views(root / "clips", "000003", views, "npz")
    with pytest.raises(DataError, match=r"000003.*doppler_time.*65504.*dataset.pack=none"):
        text_set(pack="f16", normalize={"kind": "none"})
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    text_set(pack="f32", normalize={"kind": "none"})


def test_a_full_disk_leaves_no_half_pack(text_set, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmexpert.data.pack.write", full)
    with pytest.raises(StorageError, match="No space left"):
        text_set(pack="f16")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_keys_that_a_pack_can_not_serve_are_errors(text_set, tmp_path, build):
    with pytest.raises(ConfigError, match="dataset.pack=f8: choose none, f32, f16"):
        text_set(pack="f8")
    with pytest.raises(ConfigError, match="gain_db is 25"):
        text_set(pack="f16", augmentation={"gain_db": 25})
    with pytest.raises(ConfigError, match="static_dropout.*dataset.pack=none"):
        build("radhar", root=tmp_path, pack="f16", moving_only=False, static_dropout=0.5)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_draws_of_an_epoch_do_not_depend_on_packing_or_workers(text_set, workers):
    def epoch(dataset, number):
        plan = PlanSettings(4, 4, 2, 1, 0, True)
        parts = {"train": dataset.part("train"), "valid": dataset.part("valid")}
        collate = Collate(tokens, dataset.unit_length, dataset.pad_to, dataset.max_length)
        loaders = Loaders(dataset, parts, collate, plan, WorkerSettings(number, 2, False, 60), 5, torch.device("cpu"))
        batches = [batch for n in (0, 1) for window in loaders.train(n, 0) for batch in window] + list(loaders.part("valid"))
        loaders.close()
        return batches

    for one, other in zip(epoch(text_set(), 0), epoch(text_set(pack="f32"), workers), strict=True):
        close(one, other, "f32")


def test_a_pack_is_not_copied_to_a_worker(text_set):
    dataset = text_set(pack="f32")
    batch_of(dataset)
    assert len(pickle.dumps(dataset.packed.pack)) < 4000
    assert (dataset.packed.pack.folder / "values.bin").stat().st_size > 1e5
    close(expanded(batch_of(dataset)), expanded(batch_of(pickle.loads(pickle.dumps(dataset)))), "f32")


def test_a_devices_gather_gives_the_bits_of_the_host(text_set):
    frames = batch_of(text_set(pack="f16"))["radar"]
    for one, other in zip(frames._gathered(), frames._on_host(), strict=True):
        assert torch.equal(one, other)


def test_a_window_keeps_no_padding_and_gives_the_same_bits(text_set):
    batch = batch_of(text_set())
    small = compact(batch)
    assert small["radar"].values.numel() < sum(x.numel() for view, x in batch["radar"].items() if view != "mask")
    for again in (Window([small])[0], next(iter(Window([small])))):
        assert all(torch.equal(x, again["radar"][view]) for view, x in batch["radar"].items())


def test_windows_of_points_come_equal_from_a_pack(build, tmp_path):
    write_session(tmp_path / "radhar" / "Train" / "walk" / "walk_20_1.txt", session_text(80))
    write_session(tmp_path / "radhar" / "Train" / "jump" / "jump_20_1.txt", session_text(70, doppler_bin=3))
    made = {"root": tmp_path / "radhar", "cache_dir": tmp_path / "cache"}
    plain, packed = build("radhar", **made), build("radhar", pack="f16", **made)
    for epoch in (-1, 0):  # training shifts, mirrors and masks
        close(batch_of(plain, epoch), expanded(batch_of(packed, epoch)), "f16")
