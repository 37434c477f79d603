"""The simulated radar obeys the physics that its views are read by, and its fast form the literal one."""

import numpy as np
import pytest

from mmexpert.simulate.radar import FRONT, Radar, resample
from mmexpert.simulate.waveform import CHIRPS

QUIET = Radar(scatterers=2, noise=0.0, clutter=0, mti=False, mode="fast")


def point(start, velocity=(0, 0, 0), rcs=1.0, radar=QUIET, frames=5):
    times = np.arange(frames + 1) / 50 - 0.05
    path = np.array(start)[None] + np.array(velocity)[None] * times[:, None]
    return radar.views(path[:, None], np.array([rcs]), 50, FRONT, np.random.default_rng(0))


def peak(views, name):
    return int(views[name][:, 2].argmax())


def test_a_still_target_at_3_m_is_in_range_row_69_and_doppler_row_64():
    views = point((0, 1, -3))
    assert peak(views, "range_time") == 69  # 3 / 0.04357 = 68.85
    assert peak(views, "doppler_time") == 64
    assert {name: x.shape for name, x in views.items()} == {"range_time": (256, 5), "doppler_time": (128, 5), "azimuth_time": (128, 5)}


@pytest.mark.parametrize("speed, row", [(2, 85), (-1, 53), (7, 10)])
def test_receding_lies_above_row_64_and_aliases_beyond_6_m_s(speed, row):
    assert peak(point((0, 1, -3), (0, 0, -speed)), "doppler_time") == row


@pytest.mark.parametrize("u, row", [(0.5, 96), (-0.5, 32)])
def test_the_radars_right_lies_above_azimuth_row_64(u, row):
    assert peak(point((3 * u, 1, -3 * np.sqrt(1 - u * u))), "azimuth_time") == row


def test_twice_the_range_is_12_04_db_less_and_power_is_linear_in_rcs():
    near, far = (point((0, 1, -CHIRPS.range_bin * k))["range_time"].max() for k in (50, 100))
    assert 20 * np.log10(far / near) == pytest.approx(-12.04, abs=0.1)
    one, four = (point((0, 1, -3), rcs=rcs)["doppler_time"].max() ** 2 for rcs in (1.0, 4.0))
    assert four / one == pytest.approx(4, rel=1e-4)


def test_constants_are_those_of_the_waveform():
    assert CHIRPS.range_bin == pytest.approx(0.04357, abs=1e-5)
    assert CHIRPS.wavelength == pytest.approx(3.785e-3, abs=1e-6)
    assert CHIRPS.speed_bin == pytest.approx(0.0946, abs=1e-4)


def walk(seed=0):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(0, 0.01, (61, 20, 3)), 0)
    return steps + np.array([0.4, 1.0, -3.0]) + rng.normal(0, 0.2, (20, 3))


def test_a_mirrored_scene_mirrors_the_azimuth_and_leaves_range_and_doppler():
    points, rcs = walk(), np.full(20, 0.01)
    plain = QUIET.views(points, rcs, 50, FRONT, np.random.default_rng(0))
    mirrored = QUIET.views(points * [-1, 1, 1], rcs, 50, FRONT, np.random.default_rng(0))
    for name in ("range_time", "doppler_time"):
        np.testing.assert_allclose(mirrored[name], plain[name], atol=1e-5 * plain[name].max())
    np.testing.assert_allclose(mirrored["azimuth_time"][:0:-1], plain["azimuth_time"][1:], atol=1e-4 * plain["azimuth_time"].max())


def test_reversed_time_flips_doppler_and_frames():
    points, rcs = walk(), np.full(20, 0.01)
    there = QUIET.views(points, rcs, 50, FRONT, np.random.default_rng(0))["doppler_time"][1:]
    back = QUIET.views(points[::-1], rcs, 50, FRONT, np.random.default_rng(0))["doppler_time"][1:]
    a, b = (np.log(np.maximum(x, 1e-5)).ravel() for x in (there, back[::-1, ::-1]))
    assert np.corrcoef(a, b)[0, 1] > 0.95


def test_two_points_half_a_bin_apart_are_one_peak_and_four_bins_apart_two():
    def peaks(apart):  # metres, a whole number of half wavelengths: in phase, or waves that cancel midway would make two peaks of any two
        points = np.tile(np.array([[0, 1, -3.0], [0, 1, -3.0 - apart]]), (4, 1, 1))
        column = QUIET.views(points, np.ones(2), 50, FRONT, np.random.default_rng(0))["range_time"][:, 1]
        inner = column[1:-1]
        return int(((inner > column[:-2]) & (inner > column[2:]) & (inner > column.max() / 4)).sum())

    half = CHIRPS.wavelength / 2
    assert 0.5 < 12 * half / CHIRPS.range_bin < 0.55 and peaks(12 * half) == 1
    assert 3.98 < 92 * half / CHIRPS.range_bin < 4.02 and peaks(92 * half) == 2


def test_frames_without_scatterers_are_noise_alone():
    noisy = Radar(scatterers=2, noise=1e-4, clutter=0, mti=False, mode="fast")
    views = noisy.views(np.zeros((101, 0, 3)), np.zeros(0), 50, FRONT, np.random.default_rng(0))
    for x in views.values():
        assert np.sqrt((x.astype(float) ** 2).mean()) == pytest.approx(1e-4, rel=0.03)


def test_mti_takes_out_what_stands_still_and_keeps_what_moves():
    mti = Radar(scatterers=2, noise=0.0, clutter=0, mti=True, mode="fast")
    assert point((0, 1, -3), radar=mti)["range_time"].max() < 1e-9
    assert point((0, 1, -3), (0, 0, 2), radar=mti)["range_time"].max() > 0.9 * point((0, 1, -3), (0, 0, 2))["range_time"].max()


def test_velocity_is_the_analytic_derivative_of_the_interpolated_path():
    times = np.arange(21) / 20
    points = np.stack([np.sin(3 * times), np.zeros(21), np.cos(3 * times)], 1)[:, None]
    position, velocity = resample(points, 20, 0.02)
    centres = (np.arange(len(position)) + 0.5) * 0.02
    np.testing.assert_allclose(velocity[3:-3, 0, 0], 3 * np.cos(3 * centres)[3:-3], atol=0.03)
    np.testing.assert_allclose(position[3:-3, 0, 0], np.sin(3 * centres)[3:-3], atol=2e-3)


def test_the_fast_form_agrees_with_the_sample_cube_on_a_real_motion(shared_data):
    joints = np.load(shared_data / "mocap/joints/02_01.npy").astype(float)[20:26]
    joints[..., 2] -= 3
    fast, exact = (Radar(2, 1e-4, 0, False, mode).joint_views(joints, 20, np.random.default_rng(1)) for mode in ("fast", "exact"))
    floors = {"range_time": 0.98, "doppler_time": 0.97, "azimuth_time": 0.97}
    assert fast["range_time"].shape[1] == 12
    for name, floor in floors.items():
        assert np.corrcoef(np.log(fast[name]).ravel(), np.log(exact[name]).ravel())[0, 1] >= floor
