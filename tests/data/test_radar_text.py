import io
import json
import pickle
import zipfile
from collections import Counter

import numpy as np
import pytest
from clip_files import views_of, write_split, write_views

from mmexpert.data.findings import DataFault, DataFaults
from mmexpert.data.views import VIEW_ROWS
from mmexpert.types import ConfigError, DataError

RAW = {"normalize": {"kind": "none"}, "unit_length": 4, "min_length": 4, "max_length": 64}


@pytest.fixture
def root(tmp_path):
    """Six clips in the source's format: four of training, one each of valid and test."""
    root = tmp_path / "radar"
    for i in range(6):
        write_views(root / "clips", f"{i:06d}", views_of(i), "folders")
    records = [{"filefolder": "clips", "fileindex": f"{i:06d}", "captions": [f"caption {i}", f"other {i}"]} for i in range(6)]
    write_split(root, "train.json", {str(i): record for i, record in enumerate(records[:4])})
    write_split(root, "val.json", records[4:5])
    write_split(root, "test.json", records[5:])
    return root


def edit(root, change, name="train.json"):
    content = json.loads((root / name).read_text())
    change(content)
    write_split(root, name, content)


def sample_of(dataset, name, epoch=-1):
    return dataset[([record.id for record in dataset.records].index(name), epoch, 0)]


def test_the_sources_format_is_read(build, root):
    dataset = build("radar_text", root=root, **RAW)
    assert Counter(record.split for record in dataset.records) == {"train": 4, "valid": 1, "test": 1}
    sample = sample_of(dataset, "clips/000002")
    assert sample["text"] == "caption 2" and "label" not in sample and dataset.classes is None
    for view, x in views_of(2).items():
        np.testing.assert_array_equal(sample["radar"][view], x)
    drawn = {sample_of(dataset, "clips/000002", epoch)["text"] for epoch in range(20)}
    assert drawn == {"caption 2", "other 2"}
    assert dataset.deep_check() == [] and dataset.exclusions.dropped == []
    everything = build("radar_text", root=root, captions="all", **RAW)
    assert len(everything.part("train")) == 8 and len(everything.part("test")) == 1


@pytest.mark.parametrize("layout", ["npz", "safetensors", "folders", "suffixes"])
def test_every_layout_gives_the_same_clip(build, root, layout):
    write_views(root / layout, "7", views_of(7), layout)
    edit(root, lambda records: records.update({"9": {"filefolder": layout, "fileindex": 7, "captions": "seven"}}))
    sample = sample_of(build("radar_text", root=root, **RAW), f"{layout}/7")
    assert sample["text"] == "seven" and list(sample["radar"]) == list(VIEW_ROWS)
    for view, x in views_of(7).items():
        np.testing.assert_array_equal(sample["radar"][view], x)
    one = sample_of(build("radar_text", root=root, views=["doppler"], **RAW), f"{layout}/7")
    assert list(one["radar"]) == ["doppler_time"]


def test_two_layouts_of_one_clip_are_an_error(build, root):
    write_views(root / "clips", "000001", views_of(1), "npz")
    with pytest.raises(DataError, match=r"record 1 \(clips/000001\): .*in 2 layouts \(000001.npz and range_time/000001.npy\); keep one"):
        build("radar_text", root=root)


def test_the_legacy_layout_is_doppler_with_frames_first(build, root):
    x = views_of(3)["doppler_time"]
    for i in range(6):
        np.save(root / "clips" / f"{i:06d}.npy", x.T)
    dataset = build("radar_text", root=root, layout="legacy", views=["doppler"], **RAW)
    np.testing.assert_array_equal(sample_of(dataset, "clips/000000")["radar"]["doppler_time"], x)
    with pytest.raises(ConfigError, match="legacy has Doppler only: set dataset.views"):
        build("radar_text", root=root, layout="legacy")
    np.save(root / "clips" / "000001.npy", x)
    with pytest.raises(DataError, match=r"is \[128, 40\], expected \[T, 128\], as dataset.layout=legacy has it"):
        build("radar_text", root=root, layout="legacy", views=["doppler"])
    for view in VIEW_ROWS:
        (root / "clips" / view / "000001.npy").unlink()
    with pytest.raises(DataError, match="no file of it is in .*clips; tried 000001.npz, .*000001.npy is there: set dataset.layout=legacy"):
        build("radar_text", root=root)


def test_rotations_are_drawn_in_training_and_the_first_otherwise(build, root):
    for i in range(6):
        for k, letter in enumerate("ABC"):
            write_views(root / "turned", f"{i:06d}{letter}", views_of(10 * i + k), "npz")
    for name in ("train.json", "val.json", "test.json"):
        edit(root, lambda rows: [row.update(filefolder="turned") for row in (rows.values() if isinstance(rows, dict) else rows)], name)
    dataset = build("radar_text", root=root, variants=["A", "B", "C"], **RAW)
    assert len(dataset) == 6 and len({record.group for record in dataset.records}) == 6
    first = {letter: views_of(10 + k)["range_time"].tobytes() for k, letter in enumerate("ABC")}
    drawn = {sample_of(dataset, "turned/000001", epoch)["radar"]["range_time"].tobytes() for epoch in range(40)}
    assert drawn == set(first.values())
    assert sample_of(dataset, "turned/000001")["radar"]["range_time"].tobytes() == first["A"]
    broken = views_of(10)
    broken["range_time"][3, 4] = np.nan
    write_views(root / "turned", "000001C", broken, "npz")
    assert [finding.code for finding in build("radar_text", root=root, variants=["A", "B", "C"]).deep_check()] == ["non_finite"]
    (root / "turned" / "000001B.npz").unlink()
    with pytest.raises(DataError, match=r"no file of it is in .*tried 000001B.npz"):
        build("radar_text", root=root, variants=["A", "B", "C"])


def test_power_and_decibels_become_amplitudes(build, root):
    x = views_of(0)
    for stored, change in (("power", np.square), ("db", lambda amplitude: 20 * np.log10(amplitude))):
        write_views(root / "clips", "000000", {view: change(array) for view, array in x.items()}, "folders")
        read = sample_of(build("radar_text", root=root, stored=stored, **RAW), "clips/000000")["radar"]
        for view, array in x.items():
            np.testing.assert_allclose(read[view], array, rtol=1e-5)
    dataset = build("radar_text", root=root, **RAW)
    with pytest.raises(DataFault, match="holds the negative amplitude .* is it in dB"):
        sample_of(dataset, "clips/000000")
    with pytest.raises(ConfigError, match="dataset.stored=volts: choose amplitude, power, db"):
        build("radar_text", root=root, stored="volts")


def test_a_share_of_a_file_is_those_of_the_smallest_hash(build, root):
    def used(share):
        dataset = build("radar_text", root=root, ratios={"train": [share]}, **RAW)
        return {record.id for record in dataset.records if record.split == "train"}

    assert used(0.25) < used(0.5) < used(0.75) < used(1.0)
    assert [len(used(share)) for share in (0.25, 0.5, 0.75)] == [1, 2, 3]
    content = json.loads((root / "train.json").read_text())
    before = used(0.5)
    write_split(root, "train.json", dict(reversed(content.items())))
    assert used(0.5) == before
    with pytest.raises(ConfigError, match=r"dataset.ratios.train=\[1.0, 1.0\]: one share in 0..1 for each of the 1 files"):
        build("radar_text", root=root, ratios={"train": [1.0, 1.0]})


def test_classes_come_from_the_records(build, root):
    def classify(rows):
        for i, row in enumerate(rows.values() if isinstance(rows, dict) else rows):
            row.update(classid=3 - i % 2, classname=["walk", "jump"][i % 2])

    for name in ("train.json", "val.json", "test.json"):
        edit(root, classify, name)
    dataset = build("radar_text", root=root, positives="label", **RAW)
    assert dataset.classes.names == ("jump", "walk") and dataset.classes.counts == (2, 2)
    assert sample_of(dataset, "clips/000001")["label"] == 0 and len(set(dataset.keys)) == 2
    edit(root, lambda rows: rows["1"].update(classname="hop"))
    with pytest.raises(DataError, match="classid 2 is .* here and .* elsewhere"):
        build("radar_text", root=root)
    edit(root, lambda rows: [rows["1"].pop(key) for key in ("classid", "classname")])
    dataset = build("radar_text", root=root)
    assert dataset.classes is None and "1 of 6 records have no class" in dataset.exclusions.warnings[0]


def test_one_motion_is_one_group_and_stays_in_one_part(build, root):
    write_views(root / "clips", "M000002", views_of(12), "folders")
    edit(root, lambda rows: rows.update(m={"filefolder": "clips", "fileindex": "M000002", "captions": "mirrored"}))
    groups = {record.id: record.group for record in build("radar_text", root=root).records}
    assert groups["clips/M000002"] == groups["clips/000002"] != groups["clips/000001"]
    edit(root, lambda rows: rows.pop("2"))
    edit(root, lambda rows: rows.append({"filefolder": "clips", "fileindex": "000002", "captions": "walks"}), "test.json")
    with pytest.raises(DataError, match="1 groups are in two splits, such as 'clips/000002'"):
        build("radar_text", root=root)
    edit(root, lambda rows: rows["m"].update(group="another"))
    build("radar_text", root=root)


def test_records_in_two_parts_are_an_error_and_equal_valid_and_test_a_warning(build, root):
    write_split(root, "test.json", json.loads((root / "val.json").read_text()))
    dataset = build("radar_text", root=root)
    assert len(dataset.part("valid")) == len(dataset.part("test")) == 1
    assert "valid and test hold the same 1 records" in dataset.exclusions.warnings[0]
    write_split(root, "val.json", [json.loads((root / "train.json").read_text())["1"]])
    with pytest.raises(DataError, match=r"val.json, record 0 \(clips/000001\): is in valid and, as .*train.json, record 1, in train"):
        build("radar_text", root=root)
    edit(root, lambda rows: rows.update({"9": rows["3"]}))
    with pytest.raises(DataError, match=r"record 9 \(clips/000003\): is also .*record 3; join their captions"):
        build("radar_text", root=root)


def swapped(root, views):
    views["range_time"], views["doppler_time"] = views["doppler_time"], views["range_time"]


def truncated(root, views):
    path = root / "clips" / "range_time" / "000001.npy"
    path.write_bytes(path.read_bytes()[:-100])


def header_only(root, views):
    path = root / "clips" / "range_time" / "000001.npy"
    path.write_bytes(path.read_bytes()[:60])


def write_bytes(content):
    return lambda root, views: (root / "clips" / "range_time" / "000001.npy").write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "code", "text"),
    [
        (swapped, "wrong_shape", r"is \[128, 40\], expected \[256, T\] .*128 rows is the shape of doppler_time: are they swapped"),
        (lambda root, views: views.update(range_time=views["range_time"].T), "wrong_shape", "looks transposed: store"),
        (lambda root, views: views.update(range_time=np.zeros((256, 0), np.float32)), "zero_length", "at least one frame"),
        (lambda root, views: views.update(range_time=np.zeros((256, 39), np.float32)), "wrong_shape", "the views differ in length"),
        (lambda root, views: views.update(range_time=np.zeros((256, 40), complex)), "wrong_dtype", "has dtype complex128, expected"),
        (lambda root, views: views.update(range_time=np.full((256, 40), "x")), "wrong_dtype", "has dtype <U1"),
        (lambda root, views: views.update(range_time=np.full((256, 40), None)), "pickled_array", "holds Python objects"),
        (truncated, "truncated", "has 40988 bytes of the 41088 that its header declares"),
        (header_only, "truncated", "damaged or cut short"),
        (write_bytes(b""), "empty_file", "the file is empty"),
        (write_bytes(b"\x93NUM"), "truncated", "damaged or cut short"),
        (write_bytes(b"no array at all"), "not_an_array", "is no NumPy array"),
        (write_bytes(pickle.dumps([1, 2, 3])), "pickled_array", "is a pickle"),
    ],
)
def test_a_damaged_array_is_named_before_training(build, root, break_it, code, text):
    views = views_of(1)
    before = dict(views)
    break_it(root, views)
    for view, x in views.items():
        if x is not before[view]:
            np.save(root / "clips" / view / "000001.npy", x)
    with pytest.raises(DataFaults, match=r"000001.npy \(record clips/000001\)") as error:
        build("radar_text", root=root)
    assert error.value.faults[0].code == code
    with pytest.raises(DataError, match=text):
        build("radar_text", root=root)


def test_numbers_that_are_no_amplitudes_are_found_by_the_deep_check(build, root):
    for name, value in (("000001", np.nan), ("000002", np.inf), ("000003", -1.0)):
        views = views_of(1)
        views["azimuth_time"][5, 7] = value
        write_views(root / "clips", name, views, "folders")
    dataset = build("radar_text", root=root)
    findings = dataset.deep_check()
    assert [(f.severity, f.code, f.record) for f in findings] == [
        ("error", "non_finite", "clips/000001"),
        ("error", "non_finite", "clips/000002"),
        ("error", "negative_amplitude", "clips/000003"),
    ]
    assert "holds nan at row 5, frame 7" in findings[0].advice and findings[0].file.endswith("azimuth_time/000001.npy")
    with pytest.raises(DataError, match="azimuth_time holds nan at row 5, frame 7"):
        sample_of(dataset, "clips/000001")


def test_a_missing_view_is_an_error_that_names_its_file(build, root):
    (root / "clips" / "azimuth_time" / "000001.npy").unlink()
    with pytest.raises(DataError, match=r"azimuth_time/000001.npy is missing, .* or leave azimuth_time out of dataset.views"):
        build("radar_text", root=root)
    build("radar_text", root=root, views=["range", "doppler"])
    for view in VIEW_ROWS:
        (root / "clips" / view / "000002.npy").unlink()
    for layout in ("npz", "safetensors"):
        write_views(root / "clips", "000002", {"range_time": views_of(2)["range_time"]}, layout)
        with pytest.raises(DataError, match="member doppler_time .*: holds range_time; add doppler_time"):
            build("radar_text", root=root, views=["range", "doppler"])
        (root / "clips" / f"000002.{layout}").unlink()


def test_damaged_and_oversized_archives_are_refused(build, root, tmp_path):
    for view in VIEW_ROWS:
        (root / "clips" / view / "000002.npy").unlink()
    for layout in ("npz", "safetensors"):
        write_views(root / "clips", "000002", views_of(2), layout)
        path = root / "clips" / f"000002.{layout}"
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match=rf"000002.{layout}.*damaged or cut short"):
            build("radar_text", root=root)
        path.unlink()
    array = io.BytesIO()
    np.save(array, np.zeros(1))
    with zipfile.ZipFile(root / "clips" / "000002.npz", "w") as archive:
        for k in range(65):
            archive.writestr(f"{k}.npy", array.getvalue())
    with pytest.raises(DataError, match="declares 65 members"):
        build("radar_text", root=root)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"captions": []}, "a caption is empty"),
        ({"captions": ["walks", "  "]}, "a caption is empty"),
        ({"captions": 3}, "captions is int, expected str or list"),
        ({"captions": None}, "there is no 'captions'"),
        ({"fileindex": None}, "there is no 'fileindex', which names its files"),
        ({"caption": "walks"}, "the key 'caption' is unknown; did you mean captions"),
        ({"fileindex": "../000001"}, "'../000001' is no plain file name"),
        ({"fileindex": "a\\b"}, "is no plain file name"),
        ({"filefolder": "nowhere"}, "filefolder 'nowhere' is not there; looked for"),
        ({"filefolder": "../outside"}, "leads outside .*dataset.allow_outside=true"),
        ({"filefolder": "..\\outside"}, "leads outside"),
        ({"classid": "3"}, "classid is str, expected int"),
        ({"fileindex": "000099"}, "no file of it is in .*clips"),
    ],
)
def test_a_wrong_record_is_named_or_left_out(build, root, change, text):
    write_views(root.parent / "outside", "000001", views_of(1), "npz")
    edit(root, lambda rows: rows["1"].update(change))
    with pytest.raises(DataError, match=f"(record 1|record \\S+/000001)\\W.*{text}"):
        build("radar_text", root=root)
    dataset = build("radar_text", root=root, on_error="skip")
    assert len(dataset) == 5 and len(dataset.exclusions.dropped) == 1 and len(dataset.findings) == 1


def test_a_trusted_data_set_may_lead_outside(build, root):
    write_views(root.parent / "outside", "000001", views_of(1), "npz")
    edit(root, lambda rows: rows["1"].update(filefolder="../outside"))
    assert len(build("radar_text", root=root, allow_outside=True)) == 6


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"0": {"captions": "x",', r"train.json, line 1, column \d+: .* is the file cut short"),
        (b'{"0": {"classid": NaN}}', "train.json: holds NaN, which is no JSON"),
        (b'{"0": {}, "0": {}}', "the key '0' is there twice"),
        ('["\u00e9"]'.encode("latin-1"), "byte 2 is not UTF-8"),
        (b"[]", "holds no record; remove it from dataset.splits.train"),
        (b"3", "is int, expected a dict or a list of records"),
        (b'{"filefolder": "clips", "fileindex": "1", "captions": "x"}', "is one record, expected a dict or a list"),
        (b'["000001"]', "record 0: is str, expected {filefolder, fileindex, captions}"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_a_wrong_split_file_is_named(build, root, content, text):
    (root / "train.json").write_bytes(content)
    with pytest.raises(DataError, match=text):
        build("radar_text", root=root)


def test_missing_split_files_and_unknown_parts_are_named(build, root):
    (root / "val.json").unlink()
    with pytest.raises(DataError, match=r"val.json: there is no such file; .*dataset.splits.valid=\[\]"):
        build("radar_text", root=root)
    build("radar_text", root=root, splits={"valid": None})
    with pytest.raises(ConfigError, match="dataset.splits.val: there are train, valid, test"):
        build("radar_text", root=root, splits={"val": ["val.json"]})
    with pytest.raises(DataError, match="dataset.root=.*missing: there is no such folder"):
        build("radar_text", root=root / "missing")
    with pytest.raises(ConfigError, match="dataset.on_error=ignore: choose stop or skip"):
        build("radar_text", root=root, on_error="ignore")


def test_only_the_first_ten_faults_are_spelled_out(build, root):
    edit(root, lambda rows: rows.update({f"x{k}": {"filefolder": "clips", "fileindex": f"x{k}", "captions": "x"} for k in range(14)}))
    with pytest.raises(DataFaults) as error:
        build("radar_text", root=root)
    assert str(error.value).count("no file of it is in") == 10 and "and 4 more" in str(error.value)
    assert len(error.value.faults) == 14


def test_a_fault_keeps_its_text_and_code_on_the_way_from_a_worker():
    fault = DataFault("here: wrong", "truncated", "a.npy", "7")
    copy = pickle.loads(pickle.dumps(fault))
    assert str(copy) == "here: wrong" and (copy.code, copy.file, copy.record) == ("truncated", "a.npy", "7")


def test_short_clips_are_padded_or_listed(build, root):
    assert len(build("radar_text", root=root, **RAW | {"min_length": 41})) == 6
    write_views(root / "clips", "000000", views_of(0, 50), "folders")
    with pytest.raises(DataError, match="no record is left"):
        build("radar_text", root=root, **RAW | {"min_length": 60}, short="drop")
    dropped = build("radar_text", root=root, **RAW | {"min_length": 41}, short="drop").exclusions.dropped
    assert len(dropped) == 5 and dropped[0][2] == "40 frames, dataset.min_length=41"
