"""Motions are bodies that move as their captions say; a hard caption differs in one attribute."""

import json

import numpy as np
import pytest
from caption_grammar import read_caption

from mmexpert.simulate.captions import FACING, HARD_KINDS, LATERAL, RADIAL, SPEED
from mmexpert.simulate.kinematics import MOTIONS, Act
from mmexpert.simulate.motion import MotionGenerator, Request
from mmexpert.simulate.radar import FRONT, Radar
from mmexpert.simulate.skeleton import PARENTS

GENERATOR = MotionGenerator(segments=[1, 2], n_captions=4)
MOTION_SET = [GENERATOR(np.random.default_rng([5, i])) for i in range(150)]


def make(act, seed=0, facing="toward"):
    rng = np.random.default_rng(seed)
    while (motion := GENERATOR.try_to_make(Request(facing, (act,)), rng)) is None:
        pass
    return motion


def test_joints_are_finite_bones_keep_their_length_feet_stay_above_the_floor_and_nobody_is_too_fast():
    for motion in MOTION_SET:
        joints = motion.joints.astype(float)
        assert np.isfinite(joints).all() and 97 <= len(joints) <= 497
        bones = np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1)
        assert bones.std(0).max() < 1e-5
        assert joints[..., 1].min() > -0.01
        assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() * 50 < 12


@pytest.mark.parametrize("motion", [name for name, (_, choices) in MOTIONS.items() if "count" in choices])
def test_a_counted_motion_has_exactly_so_many_peaks(motion):
    act = Act(motion, "normal", limb="left" if motion in ("punch", "raise", "kick") else "", count=MOTIONS[motion][1]["count"][-1])
    joints = make(act, facing="toward").joints.astype(float) if motion != "bend" else make(act).joints.astype(float)
    pelvis = joints[:, 0]
    signal = {
        "jump": pelvis[:, 1], "jack": joints[:, 20, 1], "squat": -pelvis[:, 1], "bend": -joints[:, 15, 1],
        "punch": np.linalg.norm(joints[:, 20] - joints[:, 16], axis=1), "raise": joints[:, 20, 1], "kick": joints[:, 7, 1],
    }[motion]  # fmt: skip
    level = (signal.max() + np.median(signal[:3])) / 2 if motion != "jump" else pelvis[0, 1] + 0.1
    above = signal > level
    assert int((np.diff(above.astype(int)) == 1).sum()) == act.count


def test_captions_tell_the_facing_and_speed_that_were_asked_for():
    for motion in MOTION_SET:
        facing = motion.parameters["facing"]
        for caption in motion.captions:
            assert any(words in caption for words in FACING[facing])
            assert not any(words in caption for words in FACING["away" if facing == "toward" else "toward"])
        for act in motion.parameters["acts"]:
            if act["speed"] != "normal":
                assert all(any(word in caption for word in SPEED[act["speed"]]) for caption in motion.captions)


def test_the_key_is_the_description_without_nuisance():
    a, b = make(Act("squat", "slow", count=2), seed=1), make(Act("squat", "slow", count=2), seed=2)
    assert a.text_key == b.text_key and not np.array_equal(a.joints[:100], b.joints[:100])
    assert json.loads(a.text_key)["segments"][0]["count"] == 2


def test_every_caption_reads_back_as_what_was_asked_for_and_what_the_kinematics_show():
    captions = 0
    for motion in MOTION_SET:
        told = json.loads(motion.text_key)
        expected = {"facing": told["facing"]} | {(i, name): x for i, segment in enumerate(told["segments"]) for name, x in segment.items()}
        for caption in motion.captions:
            assert read_caption(caption).values == expected, caption
            captions += 1
        assert motion.parameters["facing"] == told["facing"] and len(motion.parameters["acts"]) == len(told["segments"])
        for act, segment in zip(motion.parameters["acts"], told["segments"], strict=True):
            assert all(act[name] == segment[name] for name in ("motion", "speed", "limb", "count", "degrees")), motion.captions[0]
            assert segment["way"] == (act["way"] if act["motion"] == "walk" else "")
    assert captions == 4 * len(MOTION_SET)


def test_a_clip_of_one_segment_reads_back_as_where_it_goes():
    """The radar stands at the origin of the floor and looks to -z: x grows to its right."""
    travelled = 0
    for motion in MOTION_SET:
        read = read_caption(motion.captions[0]).values
        if len(motion.parameters["acts"]) > 1 or read[0, "motion"] not in ("walk", "run", "sidestep"):
            continue
        travelled += 1
        pelvis = motion.joints[[0, -1], 0].astype(float)
        away = np.diff(np.hypot(pelvis[:, 0] - FRONT.position[0], pelvis[:, 2] - FRONT.position[2]))[0]
        right = pelvis[1, 0] - pelvis[0, 0]
        if min(abs(abs(away) - 0.3), abs(abs(right) - 0.3)) > 0.01:  # m: told from 0.3 on
            assert read[0, "radial"] == ("" if abs(away) < 0.3 else "away" if away > 0 else "toward")
            assert read[0, "lateral"] == ("" if abs(right) < 0.3 else "right" if right > 0 else "left")
    assert travelled > 5


def test_every_hard_caption_differs_in_exactly_the_attribute_that_its_kind_names_and_in_no_other_word():
    attribute = {"side": "limb", "lateral": "lateral", "speed": "speed", "count": "count"}
    other = {"left": "right", "right": "left", "toward": "away", "away": "toward", "slow": "fast", "fast": "slow"}
    seen = dict.fromkeys(HARD_KINDS, 0)
    for motion in MOTION_SET:
        told = read_caption(motion.captions[0])
        for kind, caption in motion.hard_captions:
            seen[kind] += 1
            hard = read_caption(caption)
            if kind == "order":
                exchanged = {name: (1 - name[0], name[1]) if isinstance(name, tuple) else name for name in told.values | told.words}
                assert hard.values == {exchanged[name]: value for name, value in told.values.items()} != told.values, caption
                assert hard.words == {exchanged[name]: text for name, text in told.words.items()}, caption
                continue
            changed = [name for name in told.values if told.values[name] != hard.values[name]]
            assert len(changed) == 1 and told.values.keys() == hard.values.keys(), caption
            before, after = told.values[changed[0]], hard.values[changed[0]]
            assert changed == ["facing"] if kind == "radial" else changed[0][1] == attribute[kind], caption
            assert abs(before - after) == 1 if kind == "count" else other[before] == after, caption
            assert all(told.words[name] == hard.words[name] for name in told.words if name != changed[0]), caption
    assert min(seen.values()) > 5 and sum(seen.values()) > 300, seen


@pytest.mark.parametrize("caption", [
    "a person facing the radar walks with the left tail",
    "someone turned to the radar makes two jump",
    "a dog facing the radar jumps once",
    "a person jumps once",
])  # fmt: skip
def test_the_reader_of_these_tests_refuses_what_it_does_not_understand(caption):
    with pytest.raises(ValueError, match="no subject|no facing|readings|plural"):
        read_caption(caption)


def test_a_walk_is_called_toward_or_away_as_its_mean_doppler_says_and_left_or_right_as_it_drifts():
    radar = Radar(1, 0.0, 0, False, "fast")
    wrong_radial = wrong_lateral = told_lateral = 0
    rng = np.random.default_rng(3)
    for i in range(100):
        motion = make(Act("walk", "normal", way="forward" if i % 2 else "backward"), seed=i, facing="toward" if i % 3 else "away")
        told = json.loads(motion.text_key)["segments"][0]
        power = radar.joint_views(motion.joints, 50, rng)["doppler_time"].astype(float) ** 2
        drift = (power.sum(1) * (np.arange(128) - 64)).sum()
        wrong_radial += (told["radial"] == "away") != (drift > 0)
        assert all(any(words in caption for words in RADIAL[told["radial"]]) for caption in motion.captions)
        if told["lateral"]:
            told_lateral += 1
            wrong_lateral += (told["lateral"] == "right") != (motion.joints[-1, 0, 0] > motion.joints[0, 0, 0])
            assert any(words in motion.captions[0] for words in LATERAL[told["lateral"]])
    assert wrong_radial == 0 and told_lateral > 5 and wrong_lateral <= 0.02 * told_lateral


def test_one_seed_gives_one_motion_and_the_vocabulary_stays_small():
    again = GENERATOR(np.random.default_rng([5, 0]))
    assert np.array_equal(again.joints, MOTION_SET[0].joints) and again.captions == MOTION_SET[0].captions
    words = {word for motion in MOTION_SET for caption in motion.captions for word in caption.replace(",", "").split()}
    assert len(words) <= 135
    assert max(len(caption.split()) for motion in MOTION_SET for caption in motion.captions) <= 40


def test_twins_differ_in_what_they_are_called():
    for seed in range(5):
        a, b = GENERATOR.twin(np.random.default_rng(seed))
        assert a.text_key != b.text_key
