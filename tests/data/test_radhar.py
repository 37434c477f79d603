import gzip
import re
from collections import Counter

import numpy as np
import pytest
from clip_files import POINT, RECORD, session_text, write_session

from mmexpert.data import radhar
from mmexpert.data.radhar import point_views
from mmexpert.data.radhar_text import read_session
from mmexpert.types import ConfigError, DataError


@pytest.fixture
def small_root(tmp_path):
    root = tmp_path / "radhar"
    write_session(root / "Train" / "walk" / "walk_20_1.txt", session_text(80))
    write_session(root / "Train" / "jump" / "jump_20_1.txt", session_text(70, doppler_bin=3))
    return root


def test_the_shared_part_has_30_sessions_and_1650_windows_with_frames_counted_by_point_0(build, shared_data):
    dataset = build("radhar", root=shared_data / "radhar")
    assert len(dataset) == 1650 and len(dataset.sessions) == 30
    assert dataset.classes.names == ("boxing", "jack", "jump", "squats", "walk")
    assert dataset.classes.counts == tuple(Counter(r.label for r in dataset.records)[k] for k in range(5))
    assert all(len(set(texts)) >= 6 for texts in dataset.classes.texts)
    for path in (shared_data / "radhar").glob("Train/*/*.txt.gz"):
        zeros = len(re.findall(r"^point_id: 0$", gzip.decompress(path.read_bytes()).decode(), re.MULTILINE))
        assert dataset.sessions[f"{path.parent.name}/{path.name[:-7]}"].frames == zeros
    assert {record.split for record in dataset.records} == {"train"}
    assert dataset.exclusions.dropped == [] and dataset.exclusions.warnings == []


def test_windows_of_a_session_are_in_one_group_and_days_are_as_recorded(build, shared_data):
    for kind, count in (("session", 30), ("day", 2)):
        dataset = build("radhar", root=shared_data / "radhar", group=kind)
        groups = {record.id.rsplit("/", 1)[0]: set() for record in dataset.records}
        for record in dataset.records:
            groups[record.id.rsplit("/", 1)[0]].add(record.group)
        assert all(len(names) == 1 for names in groups.values())
        sessions = Counter(next(iter(names)) for names in groups.values())
        assert len(sessions) == count
    assert sessions == {"2019-06-28": 16, "2019-06-30": 14}  # spec/radar.md section 3
    families = {record.group for record in build("radhar", root=shared_data / "radhar", group="family").records}
    assert {"boxing/20_boxing", "boxing/boxing_20", "walk/___walk_20"} <= families and len(families) < 30
    with pytest.raises(ConfigError, match="session, family or day"):
        build("radhar", root=shared_data / "radhar", group="person")


def test_every_window_of_the_shared_part_loads(build, shared_data):
    assert build("radhar", root=shared_data / "radhar", stride=200).deep_check() == []


def test_corrupt_records_are_listed_by_number_and_frames_are_counted_before_they_go(tmp_path):
    records = session_text(80)  # 800 records: 1 % is 8
    records[11] = records[11].replace("range: 3.0", "range: 11.9")
    records[22] = records[22].replace("doppler_bin: 10", "doppler_bin: 64100")
    records[33] = records[33].replace("intensity: 25.0\n", "")
    records[44] = records[44].replace("bearing: 30.0", "bearing: 3x.0")
    records[50] = records[50].replace("range: 3.0", "range: nan")  # first point of frame 6: the frame still begins
    records[66] = records[66].replace("---\n", "")
    records[-1] = records[-1][:150]
    session = read_session(write_session(tmp_path / "a.txt", records))
    assert session.frames == 80 and session.day == "2019-06-28"
    reasons = dict(session.dropped)
    assert set(reasons) == {12, 23, 34, 45, 51, 67, 799}  # from 1; two records without --- between them are one
    told = {12: "11.9 m is out", 23: "64100", 34: "intensity is missing", 45: "'3x.0'", 51: "'nan'", 67: "two records", 799: "truncated"}
    for number, text in told.items():
        assert text in reasons[number]
    at = session.points[:, 0]
    assert (at == 5).sum() == 9 and (at == 6).sum() == 8 and (at == 0).sum() == 10
    assert len(session.points) == 799 - 7


def test_more_than_one_percent_of_corrupt_records_is_an_error(tmp_path):
    records = session_text(10)
    records[5] = records[5].replace("range: 3.0", "range: 12")
    read_session(write_session(tmp_path / "a.txt", records))  # 1 of 100
    records[6] = records[6].replace("range: 3.0", "range: 0.0")
    with pytest.raises(DataError, match=r"a\.txt: 2 of 100 records are corrupt, more than 1 %: record 6: range 12 m"):
        read_session(write_session(tmp_path / "a.txt", records))


def test_a_frame_begins_where_the_point_number_does_not_rise_even_without_point_0(tmp_path):
    numbers = [0, 1, 2, 1, 2, 2, 0, 5]
    records = [RECORD.format(**POINT, point_id=number) for number in numbers]
    session = read_session(write_session(tmp_path / "a.txt", records))
    assert session.points[:, 0].tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert session.frames == 4


def test_a_whole_last_record_without_separator_counts_and_half_a_line_does_not(tmp_path):
    whole = "".join(session_text(20)).removesuffix("---\n")
    assert read_session(write_session(tmp_path / "a.txt", whole)).dropped == ()
    cut = read_session(write_session(tmp_path / "a.txt", whole.removesuffix("0\n")))  # intensity 25. still reads as a number
    assert cut.dropped == ((200, "truncated"),)


def test_unreadable_sessions_are_named(tmp_path, build, shared_data):
    packed = gzip.compress("".join(session_text(70)).encode())
    for name, content, text in (
        ("cut.txt.gz", packed[: len(packed) // 2], "cut short"),
        ("none.txt.gz", b"", "no frame in 0 records"),
        ("plain.txt.gz", b"header: 1", "can not be read"),
        ("empty.txt", b"", "no frame in 0 records"),
        ("picture.txt", bytes(range(256)), "no frame in 1 records"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*{text}"):
            read_session(path)


def test_views_are_the_weights_of_points_added_up_row_by_row():
    rng = np.random.default_rng(0)
    points = np.stack(
        [
            rng.integers(100, 105, 40),
            rng.integers(1, 250, 40) * 0.04357697,
            np.zeros(40),
            rng.integers(0, 16, 40),
            rng.uniform(-90, 90, 40),
            rng.uniform(10, 50, 40),
        ],
        axis=1,
    )
    expected = {"range_time": np.zeros((256, 5)), "doppler_time": np.zeros((128, 5)), "azimuth_time": np.zeros((128, 5))}
    for frame, distance, _, doppler, bearing, intensity in points:
        column, weight = int(frame) - 100, min(max((intensity - 15) / 20, 0), 1.2)
        expected["range_time"][round(distance / 0.04357697), column] += weight
        for k in (-4, -3, -2, -1, 0, 1, 2, 3):
            expected["doppler_time"][8 * int(doppler) + 4 + k, column] += weight * (1 - abs(k + 0.5) / 5)
        expected["azimuth_time"][int((np.sin(np.pi * bearing / 180) + 1) * 64), column] += weight
    for name, view in point_views(points, 100, 5).items():
        np.testing.assert_allclose(view, expected[name], atol=1e-12)


def test_right_of_the_radar_is_above_row_64_and_receding_too():
    point = np.array([[0, 3.0, 1.2294, 10, 30.0, 35.0], [0, 11.1555, 0, 8, 90.0, 35.0]])
    views = point_views(point, 0, 1)
    assert views["range_time"][:, 0].nonzero()[0].tolist() == [69, 255]
    assert views["azimuth_time"][:, 0].nonzero()[0].tolist() == [96, 127]
    assert views["doppler_time"][:, 0].argmax() in (67, 68, 83, 84)
    assert views["doppler_time"][80:88, 0].min() > 0 and views["doppler_time"][88:, 0].max() == 0


def test_still_points_and_leakage_go_unless_asked_for(build, small_root):
    records = session_text(30) + session_text(30, doppler_bin=8) + session_text(20, range=0.13)
    write_session(small_root / "Train" / "walk" / "walk_20_1.txt", records)

    def frames_seen(**changes):
        radar = build("radhar", root=small_root, window=80, **changes)[(1, -1, 0)]["radar"]
        return (radar["range_time"].sum(0) > 0).tolist()

    assert frames_seen() == [True] * 30 + [False] * 50
    assert frames_seen(moving_only=False) == [True] * 60 + [False] * 20
    assert frames_seen(near_cut=0.0) == [True] * 30 + [False] * 30 + [True] * 20


def test_static_dropout_thins_still_points_in_training_only(build, small_root):
    still = session_text(80, doppler_bin=8)
    write_session(small_root / "Train" / "walk" / "walk_20_1.txt", still)
    dataset = build("radhar", root=small_root, moving_only=False, static_dropout=1.0, augmentation=None, normalize={"kind": "none"})
    record = next(record for record in dataset.records if record.id.startswith("walk"))
    index = dataset.records.index(record)
    weights = [dataset[(index, epoch, 0)]["radar"]["range_time"].sum() for epoch in range(-1, 6)]
    assert weights[0] == pytest.approx(60 * 10 * 0.5)
    assert len(set(weights)) == 7 and max(weights[1:]) < weights[0]


def test_evaluation_is_deterministic_and_training_a_function_of_the_epoch(build, small_root):
    first, second = build("radhar", root=small_root), build("radhar", root=small_root)
    for index in range(len(first)):
        for draw in ((index, -1, 0), (index, 3, 0)):
            one, other = first[draw], second[draw]
            assert one["text_index"] == other["text_index"]
            for view, x in one["radar"].items():
                assert x.dtype == np.float32 and x.shape[1] == 60
                np.testing.assert_array_equal(x, other["radar"][view])
    assert any((first[(0, 1, 0)]["radar"][view] != first[(0, 2, 0)]["radar"][view]).any() for view in first.view_names)


def test_prompts_of_the_own_class_are_drawn_in_training_and_the_first_otherwise(build, small_root):
    dataset = build("radhar", root=small_root)
    table = [text for texts in dataset.classes.texts for text in texts]
    for index, record in enumerate(dataset.records):
        drawn = {table[dataset[(index, epoch, 0)]["text_index"]] for epoch in range(60)}
        assert drawn == set(dataset.classes.texts[record.label])
        sample = dataset[(index, -1, 0)]
        assert table[sample["text_index"]] == dataset.classes.texts[record.label][0] and sample["label"] == record.label
        assert "text" not in sample
    assert len(set(dataset.keys)) == 2
    first_only = build("radhar", root=small_root, captions="first")
    assert {first_only[(0, epoch, 0)]["text_index"] for epoch in range(20)} == {0}
    with pytest.raises(ConfigError, match="choose random or first"):
        build("radhar", root=small_root, captions="all")


def test_folders_are_splits_whatever_their_case(build, small_root):
    write_session(small_root / "test" / "walk" / "walk_20_2.txt", session_text(60, intensity=30))
    write_session(small_root / "VALID" / "walk" / "walk_20_3.txt", session_text(60, intensity=31))
    dataset = build("radhar", root=small_root)
    assert {r.id for r in dataset.records if r.split == "test"} == {"walk/walk_20_2/0000"}
    assert {r.id for r in dataset.records if r.split == "valid"} == {"walk/walk_20_3/0000"}
    assert dataset.classes.counts == (2, 3)  # training windows of jump and walk
    (small_root / "VALID").rename(small_root / "Holdout")
    with pytest.raises(DataError, match="the split 'Holdout' is unknown; name it Train, Valid or Test"):
        build("radhar", root=small_root)


def test_a_class_without_texts_is_an_error_and_texts_without_a_class_a_warning(build, small_root):
    dataset = build("radhar", root=small_root)
    assert dataset.classes.names == ("jump", "walk")
    assert dataset.exclusions.warnings == [f"dataset.root={small_root}: no folder of the class boxing, jack, squats; it is left out"]
    write_session(small_root / "Train" / "fall" / "fall_1.txt", session_text(60, intensity=30))
    with pytest.raises(DataError, match="the class 'fall' has no text .*add it to dataset.class_texts"):
        build("radhar", root=small_root)
    assert build("radhar", root=small_root, class_texts={"fall": ["falling"]}).classes.names == ("fall", "jump", "walk")
    with pytest.raises(DataError, match="class_texts.fall: an empty text"):
        build("radhar", root=small_root, class_texts={"fall": ["falling", " "]})


def test_all_faults_are_told_at_once_or_left_out(build, small_root):
    write_session(small_root / "Train" / "walk" / "walk_20_8.txt", "")
    (small_root / "Train" / "walk" / "walk_20_9.txt").write_bytes((small_root / "Train" / "walk" / "walk_20_1.txt").read_bytes())
    with pytest.raises(DataError) as error:
        build("radhar", root=small_root)
    assert "radhar: 2 faults" in str(error.value) and "walk_20_8.txt: no frame" in str(error.value)
    assert "walk_20_9.txt has the bytes of" in str(error.value) and "on_error=skip" in str(error.value)
    dataset = build("radhar", root=small_root, on_error="skip")
    assert {r.group for r in dataset.records} == {"walk/walk_20_1", "jump/jump_20_1"}
    assert [file.rsplit("/", 1)[1] for file, _, _ in dataset.exclusions.dropped] == ["walk_20_8.txt", "walk_20_9.txt"]
    assert {finding.code for finding in dataset.findings} == {"empty_file", "duplicate_content", "unknown_class"}


def test_corrupt_points_are_dropped_with_a_line_each(build, small_root):
    records = session_text(80, intensity=20)
    records[5] = records[5].replace("doppler_bin: 10", "doppler_bin: 33")
    write_session(small_root / "Train" / "walk" / "walk_20_2.txt", records)
    dataset = build("radhar", root=small_root)
    assert [row[1:] for row in dataset.exclusions.dropped] == [("record 6", "doppler_bin 33 is not one of 0..15")]


def test_a_session_shorter_than_a_window_is_padded_or_listed(build, small_root):
    write_session(small_root / "Train" / "walk" / "walk_20_2.txt", session_text(40, intensity=20))
    dataset = build("radhar", root=small_root)
    index = [record.id for record in dataset.records].index("walk/walk_20_2/0000")
    assert dataset[(index, -1, 0)]["radar"]["range_time"].shape == (256, 40)
    dropped = build("radhar", root=small_root, short="drop").exclusions.dropped
    assert [row[1:] for row in dropped] == [("walk/walk_20_2/0000", "40 frames, dataset.min_length=60")]


def test_links_out_of_the_root_are_followed_only_when_trusted(build, small_root, tmp_path):
    outside = write_session(tmp_path / "elsewhere" / "walk_20_7.txt", session_text(60, intensity=22))
    (small_root / "Train" / "walk" / "walk_20_7.txt").symlink_to(outside)
    with pytest.raises(DataError, match="walk_20_7.txt .*leads outside .*dataset.allow_outside=true"):
        build("radhar", root=small_root)
    assert "walk/walk_20_7" in build("radhar", root=small_root, allow_outside=True).sessions


def test_a_session_is_parsed_once_and_again_where_its_cache_is_damaged(build, small_root, tmp_path, monkeypatch, caplog):
    before = build("radhar", root=small_root, cache_dir=tmp_path / "cache")
    parsed = []
    monkeypatch.setattr(radhar, "read_session", lambda path: parsed.append(path.name) or read_session(path))
    build("radhar", root=small_root, cache_dir=tmp_path / "cache")
    assert parsed == []
    victim = next((tmp_path / "cache").glob("radhar/session-*/points.npy"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    after = build("radhar", root=small_root, cache_dir=tmp_path / "cache")
    assert len(parsed) == 1 and "points.npy has another sha256" in caplog.text
    for name, session in before.sessions.items():
        np.testing.assert_array_equal(session.points, after.sessions[name].points)


def test_the_fingerprint_follows_records_and_prompts(build, small_root):
    one = build("radhar", root=small_root).fingerprint()
    assert one == build("radhar", root=small_root).fingerprint()
    assert one != build("radhar", root=small_root, class_texts={"walk": ["other words"]}).fingerprint()
    write_session(small_root / "Train" / "walk" / "walk_20_2.txt", session_text(60, intensity=20))
    assert one != build("radhar", root=small_root).fingerprint()
