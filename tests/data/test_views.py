"""Views are checked by shape and value, normalised over the whole clip, cropped at one index, augmented from the sample's own draws."""

import numpy as np
import pytest

from mmexpert.data.sampling import sample_rng
from mmexpert.data.views import (
    VIEW_ROWS,
    Lengths,
    ViewTransform,
    augment,
    check_lengths,
    check_view,
    mirror_azimuth,
    normalize_view,
    shift_rows,
    view_names,
)
from mmexpert.types import ConfigError, DataError

NORMAL = {"kind": "db", "floor_db": -60, "reference": "clip"}


def clip(frames=200, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((rows, frames)).astype(np.float32) + 0.01 for name, rows in VIEW_ROWS.items()}


def test_decibels_lie_in_0_to_1_below_the_clips_maximum():
    x = np.array([[1.0, 0.1, 0.001, 0.0]], np.float32)
    np.testing.assert_allclose(normalize_view(x, "db", -60, "clip"), [[1, 1 - 20 / 60, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(normalize_view(x, "db", -60, 10.0), [[1 - 20 / 60, 1 - 40 / 60, 0, 0]], atol=1e-6)
    assert not normalize_view(np.zeros((2, 3), np.float32), "db", -60, "clip").any()
    np.testing.assert_allclose(normalize_view(x, "log1p", -60, "clip"), np.log1p(x))


@pytest.mark.parametrize("array, view, text", [
    (np.zeros((496, 256)), "range_time", "looks transposed"),
    (np.zeros((128, 496)), "range_time", "128 rows is the shape of doppler_time: are they swapped"),
    (np.zeros((64, 496)), "doppler_time", r"\[64, 496\], expected \[128, T\]"),
    (np.full((128, 5), np.nan), "doppler_time", "holds nan at row 0, frame 0"),
    (np.full((128, 5), np.inf), "azimuth_time", "holds inf"),
    (np.full((128, 5), -1.0), "doppler_time", "negative amplitude -1; is it in dB"),
    (np.zeros((128, 0)), "doppler_time", "at least one frame"),
])  # fmt: skip
def test_a_wrong_view_is_named_with_its_file(array, view, text):
    with pytest.raises(DataError, match=text) as error:
        check_view(array, view, "folder/000213.npy")
    assert "folder/000213.npy" in str(error.value) and view in str(error.value)


def test_views_of_different_length_are_an_error():
    with pytest.raises(DataError, match="the views differ in length"):
        check_lengths({"range_time": np.zeros((256, 10)), "doppler_time": np.zeros((128, 11))}, "clip 3")


def test_the_reference_is_the_whole_clips_maximum_not_the_windows():
    views = clip(400)
    views["range_time"][0, 0] = 100.0  # far from the evaluation window
    out, _ = ViewTransform(NORMAL, Lengths(96, 16, 96), None)(views, None)
    assert out["range_time"].max() < 0.5


def test_all_views_are_cropped_at_one_index_and_evaluation_takes_the_middle():
    views = {name: np.tile(np.arange(1, 201, dtype=np.float32), (len(x), 1)) for name, x in clip().items()}
    transform = ViewTransform({"kind": "none", "floor_db": -60, "reference": "clip"}, Lengths(96, 16, 96), None)
    middle, _ = transform(views, None)
    assert middle["doppler_time"][0, 0] == 53
    firsts = set()
    for epoch in range(5):
        out, _ = transform(views, sample_rng(0, epoch, "a", 0))
        assert len({x[0, 0] for x in out.values()}) == 1
        firsts.add(out["range_time"][0, 0])
    assert len(firsts) > 1


def test_augmentation_repeats_with_its_draws_and_never_touches_evaluation():
    keys = {"gain_db": 3, "range_shift": 4, "azimuth_shift": 4, "mirror": 0.5, "time_shift": 1, "time_mask": 0.2, "row_mask": 0.1}
    transform = ViewTransform(NORMAL, Lengths(96, 16, 96), keys)
    first, again, other = (transform(clip(), sample_rng(0, 1, name, 0))[0] for name in ("a", "a", "b"))
    assert all(np.array_equal(first[view], again[view]) for view in first)
    assert any(not np.array_equal(first[view], other[view]) for view in first)
    plain, _ = ViewTransform(NORMAL, Lengths(96, 16, 96), None)(clip(), None)
    assert all(np.array_equal(plain[view], transform(clip(), None)[0][view]) for view in plain)


def test_the_mirror_reverses_rows_1_to_127_and_undoes_itself():
    x = np.arange(128.0)[:, None]
    assert mirror_azimuth(x)[1, 0] == 127 and mirror_azimuth(x)[64, 0] == 64 and mirror_azimuth(x)[0, 0] == 0
    np.testing.assert_array_equal(mirror_azimuth(mirror_azimuth(x)), x)


def test_names_keys_and_lengths_are_checked():
    assert view_names("all") == ("range_time", "doppler_time", "azimuth_time")
    assert view_names(["azimuth", "range"]) == ("range_time", "azimuth_time")
    with pytest.raises(ConfigError, match="write `all` or a list"):
        view_names("range_only")
    with pytest.raises(ConfigError, match="dataset.augmentation.flip"):
        ViewTransform(NORMAL, Lengths(96, 16, 96), {"flip": 1})
    with pytest.raises(ConfigError, match="must be a multiple of dataset.unit_length"):
        Lengths(100, 16, 96)


@pytest.mark.parametrize("key, value", [
    ("range_shift", 2.5), ("azimuth_shift", 128), ("range_shift", -1), ("mirror", 1.5), ("row_mask", -0.1), ("time_mask", 2),
    ("gain_db", -3),
])  # fmt: skip
def test_an_augmentation_out_of_its_range_is_an_error_that_names_the_key(key, value):
    with pytest.raises(ConfigError, match=f"dataset.augmentation.{key}={value}"):
        ViewTransform(NORMAL, Lengths(96, 16, 96), {key: value})


def test_a_shift_moves_rows_and_lets_zeros_in():
    x = np.arange(1.0, 6.0)[:, None]
    assert shift_rows(x, 2)[:, 0].tolist() == [0, 0, 1, 2, 3]
    assert shift_rows(x, -1)[:, 0].tolist() == [2, 3, 4, 5, 0]
    assert shift_rows(x, 0)[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_range_and_azimuth_are_shifted_on_their_own_and_doppler_never():
    found = set()
    for epoch in range(40):
        out, _ = augment(clip(), {"range_shift": 2, "azimuth_shift": 1}, sample_rng(0, epoch, "a", 0))
        moved = {view: next(k for k in range(-2, 3) if np.array_equal(shift_rows(x, k), out[view])) for view, x in clip().items()}
        assert moved["doppler_time"] == 0 and abs(moved["azimuth_time"]) <= 1
        found.add((moved["range_time"], moved["azimuth_time"]))
    assert {r for r, _ in found} == {-2, -1, 0, 1, 2} and {a for _, a in found} == {-1, 0, 1}


def test_a_time_mask_silences_the_same_frames_of_all_views_and_a_time_shift_turns_them_alike():
    for epoch in range(10):
        masked, _ = augment(clip(), {"time_mask": 0.5}, sample_rng(0, epoch, "a", 0))
        silent = {tuple(np.flatnonzero(~x.any(0))) for x in masked.values()}
        assert len(silent) == 1 and len(next(iter(silent))) <= 100
        turned, _ = augment(clip(), {"time_shift": True}, sample_rng(0, epoch, "a", 0))
        shifts = {view: next(k for k in range(200) if np.array_equal(np.roll(x, k, 1), turned[view])) for view, x in clip().items()}
        assert len(set(shifts.values())) == 1


def test_the_gain_is_applied_before_the_floor_and_within_its_bounds():
    views = {"doppler_time": np.full((128, 100), 0.1, np.float32)}
    views["doppler_time"][0] = 1.0
    transform = ViewTransform(NORMAL, Lengths(96, 16, 96), {"gain_db": 3})
    levels = [transform(views, sample_rng(0, epoch, "a", 0))[0]["doppler_time"][5, 0] * 60 - 60 for epoch in range(50)]
    assert min(levels) < -21 and max(levels) > -19 and all(-23 <= level <= -17 for level in levels)
    views["doppler_time"][1] = 1e-9
    assert all(transform(views, sample_rng(0, epoch, "a", 0))[0]["doppler_time"][1, 0] == 0 for epoch in range(5))


def test_mirrors_come_as_often_as_asked_and_are_reported():
    told = []
    for epoch in range(200):
        out, mirrored = augment(clip(20), {"mirror": 0.5}, sample_rng(0, epoch, "a", 0))
        assert np.array_equal(out["azimuth_time"], mirror_azimuth(clip(20)["azimuth_time"]) if mirrored else clip(20)["azimuth_time"])
        told.append(mirrored)
    assert 70 < sum(told) < 130
