from collections import Counter, defaultdict

import numpy as np
import pytest
from motion_files import write_motion

from mmexpert.data.findings import FaultList
from mmexpert.data.humanml3d_text import motion_group, read_captions, read_split_lists
from mmexpert.data.humanml3d_views import decode, encode, place
from mmexpert.types import ConfigError, DataError


@pytest.fixture
def small_root(tmp_path):
    root = tmp_path / "motions"
    for name in ("000001", "M000001", "000002"):
        write_motion(root, name)
    (root / "train.txt").write_text("000001\nM000001\n")
    (root / "test.txt").write_text("000002\n")
    (root / "val.txt").write_text("000003\n")
    write_motion(root, "000003")
    return root


def test_all_20_real_motions_give_finite_views(build, shared_data):
    dataset = build("humanml3d", root=shared_data / "mocap", joints_dir="joints", long="windows", placements=1, radar={"scatterers": 1})
    assert len({record.group for record in dataset.records}) == 20
    assert {record.split for record in dataset.records} == {"train", "valid", "test"}
    assert dataset.deep_check() == [] and dataset.exclusions.dropped == []
    for index, record in enumerate(dataset.records):
        views = dataset[(index, 0, 0)]["radar"]
        assert {name: len(x) for name, x in views.items()} == {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
        assert all(np.isfinite(x).all() and x.max() > 0.5 for x in views.values())
        assert dataset.clips.frames(record.id) <= 496  # 9.92 s
    seconds = defaultdict(float)
    for record in dataset.records:
        seconds[record.group] += dataset.clips.frames(record.id) / 50
    for path in (shared_data / "mocap" / "joints").glob("*.npy"):
        assert seconds[path.stem] == pytest.approx(len(np.load(path)) / 20, abs=0.3)


def test_the_official_lists_have_14614_groups_and_none_in_two_parts(shared_data):
    faults = FaultList("humanml3d", "stop")
    splits = read_split_lists(shared_data / "humanml3d", faults)
    assert Counter(splits.values()) == {"train": 23384, "valid": 1460, "test": 4384} and faults.faults == []
    parts = defaultdict(set)
    for name, split in splits.items():
        parts[motion_group(name)].add(split)
    assert len(parts) == 14614 and all(len(found) == 1 for found in parts.values())


def test_mirrors_and_rotations_are_in_their_motions_group():
    assert {motion_group(name) for name in ("000021", "M000021", "000021A", "M000021H")} == {"000021"}
    assert motion_group("01_01") == "01_01" and motion_group("Mary_3") == "Mary_3"


def captions_of(tmp_path, text, frames=100):
    path = tmp_path / "000001.txt"
    path.write_text(text, encoding="utf-8")
    faults = FaultList("test", "skip")
    return [(line.caption, line.begin, line.end) for line in read_captions(path, frames, faults)], [str(fault) for fault in faults.faults]


def test_a_caption_line_tells_which_frames_it_is_of(tmp_path):
    text = "walks##0.0#0.0\nturns#a/DET b/NOUN#nan#nan\n\nsits#x#1.02#3.48\nruns##2.5#5.08\nhops##nan#2.0\n"
    lines, faults = captions_of(tmp_path, text)
    assert faults == []
    assert lines == [("walks", 0, 100), ("turns", 0, 100), ("sits", 20, 70), ("runs", 50, 100), ("hops", 0, 40)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("walks", "1 fields parted by #, expected 4"),
        ("walks #2##0.0#0.0", "5 fields parted by #, expected 4"),
        (" ##0.0#0.0", "the caption is empty"),
        ("walks##zero#0.0", "start 'zero' and end '0.0' must be seconds"),
        ("walks##3.0#2.0", "ends at 2 s and begins at 3 s"),
        ("walks##2.0#2.0", "the end must come after the start"),
        ("walks##-1#2.0", "begins at -1 s"),
        ("walks##1.0#5.2", "ends at 5.2 s, the motion has 5 s"),
        ("walks##1.0#1.4", "has 0.40 s, at least 0.5 s"),
        ("walks##0.0#inf", "ends at inf s, the motion has 5 s"),
    ],
)
def test_a_wrong_caption_line_is_named_and_the_others_stay(tmp_path, line, text):
    lines, faults = captions_of(tmp_path, f"stands##0.0#0.0\n{line}\n")
    assert lines == [("stands", 0, 100)]
    assert len(faults) == 1 and text in faults[0] and "000001.txt, line 2: " in faults[0]


def test_a_sub_clip_is_a_record_with_its_own_captions_and_frames(build, small_root):
    write_motion(small_root, "000001", 100, "walks, then sits##0.0#0.0\nsits##3.0#5.0\nsits down##3.0#5.0\nwalks##nan#nan\n")
    dataset = build("humanml3d", root=small_root, placements=1)
    records = {record.id: record for record in dataset.records}
    assert records["000001"].captions == ("walks, then sits", "walks")
    assert records["000001@60-100"].captions == ("sits", "sits down")
    assert dataset.clips.frames("000001") == 247 and dataset.clips.frames("000001@60-100") == 97  # (n - 1) / 20 s at 50 Hz, rounded down
    assert {records[name].group for name in ("000001", "000001@60-100", "M000001")} == {"000001"}
    sample = dataset[(dataset.records.index(records["000001@60-100"]), -1, 0)]
    assert sample["text"] == "sits" and sample["radar"]["range_time"].shape == (256, 97)


def test_windows_are_consecutive_share_their_borders_and_their_captions(build, small_root):
    write_motion(small_root, "000001", 450)
    dataset = build("humanml3d", root=small_root, long="windows", placements=1)
    windows = [record for record in dataset.records if record.id.startswith("000001/")]
    assert [record.id for record in windows] == ["000001/w0", "000001/w1", "000001/w2"]
    assert dataset._windows(0, 450) == [(0, 151), (150, 300), (299, 450)]
    assert dataset._windows(0, 199) == [(0, 199)]  # 198 intervals are 495 frames
    assert len({record.captions for record in windows}) == 1
    keys = {dataset.keys[dataset.records.index(record)] for record in windows}
    assert len(keys) == 1
    cropped = build("humanml3d", root=small_root, placements=1)
    index = [record.id for record in cropped.records].index("000001")
    assert cropped.clips.frames("000001") == 1122 and cropped[(index, 0, 0)]["radar"]["range_time"].shape == (256, 496)


def test_evaluation_sees_a_fixed_place_and_training_several_random_ones(build, small_root):
    dataset = build("humanml3d", root=small_root, placements=3)
    again = build("humanml3d", root=small_root, placements=3)
    train = [record.id for record in dataset.records].index("000001")
    test = [record.id for record in dataset.records].index("000002")
    assert dataset.clips.placements("000001") == 4 and dataset.clips.placements("000002") == 1
    fixed = dataset[(train, -1, 0)]["radar"]["range_time"]
    np.testing.assert_array_equal(fixed, again[(train, -1, 0)]["radar"]["range_time"])
    drawn = [dataset[(train, epoch, 0)]["radar"]["range_time"] for epoch in range(30)]
    assert len({x.tobytes() for x in drawn}) == 4 and any((x == fixed).all() for x in drawn)  # three random ones and the fixed one
    peaks = {int(x.mean(1).argmax()) for x in drawn}
    assert all(2.0 / 0.0436 - 20 < peak < 5.0 / 0.0436 + 20 for peak in peaks) and len(peaks) > 1
    assert abs(int(fixed.mean(1).argmax()) - 3.0 / 0.0436) < 12  # 3 m
    assert len({dataset[(test, epoch, 0)]["radar"]["range_time"].tobytes() for epoch in range(5)}) == 1


def test_a_placed_body_stands_at_its_distance_and_turns_about_its_root():
    joints = np.random.default_rng(0).normal(size=(5, 22, 3))
    placed = place(joints, 2.5, 0.0)
    np.testing.assert_allclose(placed[0, 0, [0, 2]], [0, -2.5], atol=1e-12)
    np.testing.assert_allclose(placed - placed[0, 0], joints - joints[0, 0], atol=1e-12)
    turned = place(joints, 2.5, np.pi / 2)  # who faced +z faces +x
    np.testing.assert_allclose(turned[:, :, 0], placed[:, :, 2] + 2.5, atol=1e-12)
    np.testing.assert_allclose(turned[:, :, 1], joints[:, :, 1], atol=1e-12)
    np.testing.assert_allclose(turned[:, :, 2] + 2.5, -placed[:, :, 0], atol=1e-12)


def test_stored_codes_are_within_half_a_step_of_the_amplitudes():
    x = 3.0 * 10 ** (np.random.default_rng(0).uniform(-79, 0, (256, 30)) / 20)
    codes, peak = encode(x)
    step = 80 / 255
    assert np.abs(20 * np.log10(decode(codes, peak) / x)).max() <= step / 2 + 1e-4
    assert encode(np.zeros((2, 2)))[1] == 0 and decode(*encode(np.zeros((2, 2)))).max() == 0


def test_clips_do_not_depend_on_workers_or_on_other_motions(build, small_root, tmp_path):
    one = build("humanml3d", root=small_root, cache_dir=tmp_path / "one", placements=2)
    write_motion(small_root, "000000")
    (small_root / "train.txt").write_text("000000\n000001\nM000001\n")
    two = build("humanml3d", root=small_root, cache_dir=tmp_path / "two", placements=2, workers=2)
    assert one.clips.folder.name != two.clips.folder.name
    for placement in range(3):
        a, b = (dataset.clips.views("000001", placement, dataset.view_names) for dataset in (one, two))
        assert all((a[view] == b[view]).all() for view in a)


def test_mirrors_can_stay_out_and_missing_lists_are_replaced_by_the_hash_of_the_group(build, small_root):
    assert not any(record.id.startswith("M") for record in build("humanml3d", root=small_root, placements=1, mirrors=False).records)
    for name in ("train", "val", "test"):
        (small_root / f"{name}.txt").unlink()
    splits = {r.id: r.split for r in build("humanml3d", root=small_root, placements=1, split={"valid": 0.3, "test": 0.3}).records}
    assert splits["000001"] == splits["M000001"] and len(splits) == 4
    with pytest.raises(ConfigError, match="exactly valid, test and seed"):
        build("humanml3d", root=small_root, split={"val": 0.1})


def test_a_motion_whose_mirror_is_in_another_part_is_refused(build, small_root):
    (small_root / "test.txt").write_text("M000001\n000002\n")
    (small_root / "train.txt").write_text("000001\n")
    with pytest.raises(DataError, match="1 groups are in two splits, such as '000001'"):
        build("humanml3d", root=small_root)
    (small_root / "test.txt").write_text("000001\n")
    with pytest.raises(DataError, match=r"test.txt, line 1: 000001 is in train.txt too"):
        build("humanml3d", root=small_root)
    (small_root / "test.txt").write_text("../../etc\n")
    with pytest.raises(DataError, match="no plain file name"):
        build("humanml3d", root=small_root)


@pytest.mark.parametrize(
    ("joints", "text"),
    [
        (np.zeros((60, 263)), r"is \[60, 263\], expected \[T, 22, 3\]; 263 columns are HumanML3D's new_joint_vecs"),
        (np.zeros((22, 3)), r"is \[22, 3\], expected \[T, 22, 3\]"),
        (np.full((60, 22, 3), np.nan), "holds NaN or infinity at frame 0"),
        (np.zeros((60, 22, 3), int), "has dtype int64, expected float32 in metres"),
        (np.zeros((5, 22, 3)), "has 5 frames of 1/20 s, at least 10"),
        (np.zeros((0, 22, 3)), "has 0 frames"),
        (np.full((2, 2), None), "holds Python objects"),
    ],
)
def test_wrong_joints_are_named_before_anything_is_simulated(build, small_root, joints, text):
    write_motion(small_root, "000001", joints=joints)
    with pytest.raises(DataError, match=r"000001.npy \(record 000001\): " + text):
        build("humanml3d", root=small_root)


def test_pairs_that_lack_a_file_are_named_or_left_out(build, small_root):
    (small_root / "texts" / "000001.txt").unlink()
    (small_root / "new_joints" / "000003.npy").unlink()
    with pytest.raises(DataError) as error:
        build("humanml3d", root=small_root)
    assert "2 faults" in str(error.value) and "000001.txt: there is no such file" in str(error.value)
    assert "000003.npy (record 000003): there is no such file" in str(error.value)
    dataset = build("humanml3d", root=small_root, on_error="skip", placements=1)
    assert [record.id for record in dataset.records] == ["000002", "M000001"]
    assert [row[1] for row in dataset.exclusions.dropped] == ["000001", "000003"]
    with pytest.raises(DataError, match=r"dataset.joints_dir: there is no folder .*/joints"):
        build("humanml3d", root=small_root, joints_dir="joints")
    with pytest.raises(ConfigError, match="choose crop or windows"):
        build("humanml3d", root=small_root, long="cut")
