"""Films in folders and tables: layouts, groups, class texts, duplicates, draws, and every error before training."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mmexpert.data.augment import mirrored
from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings
from mmexpert.data.radiographs import FilmTransform
from mmexpert.data.sampling import EVALUATION
from mmexpert.data.workers import WorkerSettings
from mmexpert.engine.class_merge import merge_classes
from mmexpert.types import ConfigError, DataError

TEXTS = {"fixed": ["a well fixed stem", "no dark line around the stem"], "loose": "a loose stem with a dark line"}
TINY = {"side": 16}


def films(root, patients=4, suffix=".png"):
    """Two films of each patient; even patients are fixed, odd ones loose."""
    for patient in range(patients):
        for visit in range(2):
            folder = root / ("loose" if patient % 2 else "fixed")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([patient, visit]).integers(0, 256, (20, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"P{patient}_{visit}{suffix}")
    (root / "class_texts.json").write_text(json.dumps(TEXTS))
    return root


def table_of(root):
    """A metadata.csv row for each film."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return [{"file": file, "label": file.split("/")[0], "group": file.split("/")[1][:2]} for file in files]


def write_table(root, rows, bom=False, name="metadata.csv"):
    with open(root / name, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def root(tmp_path):
    return films(tmp_path / "films")


@pytest.fixture
def tabled(root):
    return write_table(root, table_of(root))


def tokens(texts):
    return {"input_ids": torch.tensor([[len(text)] for text in texts]), "attention_mask": torch.ones(len(texts), 1, dtype=torch.int64)}


def batch_of(dataset, epoch=0):
    return Collate(tokens, 1, "batch", 1)([dataset[(i, epoch, 0)] for i in range(len(dataset))])


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other)


def test_class_folders_and_a_table_give_equal_batches(build, root):
    folders = build("image_folder", root=root, augmentation="standard", **TINY)
    for bom in (False, True):
        rows = table_of(root)[::-1]  # order is the ids', not the file's
        table = build("image_folder", root=write_table(root, rows, bom), augmentation="standard", **TINY)
        assert equal(batch_of(folders), batch_of(table)) and equal(batch_of(folders, EVALUATION), batch_of(table, EVALUATION))
    batch = batch_of(table)
    assert batch["image"].shape == (8, 1, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [0] * 4 + [1] * 4 and batch["label"].dtype == torch.int64
    assert set(batch) == {"image", "text", "text_index", "label", "id", "positive_key"}
    assert len(set(batch["positive_key"].tolist())) == 2


def test_classes_are_sorted_by_code_point_unless_an_order_is_given(build, tmp_path):
    for k, name in enumerate(["b", "Z", "a", "é"]):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), 40 * k, np.uint8)).save(tmp_path / name / "x.png")
    assert build("image_folder", root=tmp_path, **TINY).classes.names == ("Z", "a", "b", "é")
    ordered = build("image_folder", root=tmp_path, class_order=["é", "a", "Z", "b"], **TINY)
    assert ordered.classes.names == ("é", "a", "Z", "b") and ordered.classes.ordered
    assert not build("image_folder", root=tmp_path, **TINY).classes.ordered
    assert not merge_classes(ordered, ["Z"]).classes.ordered  # `other` has no place in the order
    assert [ordered.classes.names[r.label] for r in ordered.records] == [r.id[0] for r in ordered.records]


def test_text_files_and_hidden_files_are_no_images_and_suffixes_may_be_capital(build, root):
    (root / "fixed" / "notes.txt").write_text("x")
    (root / "fixed" / ".hidden.png").write_text("x")
    (root / ".cache").mkdir()
    (root / "fixed" / "P0_0.png").rename(root / "fixed" / "P0_0.PNG")
    (root / "fixed" / "deep").mkdir()
    (root / "fixed" / "P0_1.png").rename(root / "fixed" / "deep" / "P0_1.png")
    dataset = build("image_folder", root=root, **TINY)
    assert len(dataset) == 8 and dataset.classes.counts == (4, 4)
    assert "fixed/deep/P0_1.png" in [record.id for record in dataset.records]


def test_columns_that_mean_nothing_are_kept_and_unnamed_images_are_one_warning(build, root):
    rows = [row | {"id": f"film {i}", "visit": str(i)} for i, row in enumerate(table_of(root))][:6]
    dataset = build("image_folder", root=write_table(root, rows), **TINY)
    assert dataset.rows["film 3"].extra == {"visit": "3"} and len(dataset) == 6
    assert [w for w in dataset.exclusions.warnings if "2 images are not in metadata.csv" in w]


def test_groups_come_from_the_column_the_name_or_a_declaration(build, root):
    unknown = build("image_folder", root=root, **TINY)
    with pytest.raises(ConfigError, match=r"column 'group'; or set dataset.group_from .*; or set dataset.group_column=null"):
        unknown.require_groups()
    named = build("image_folder", root=root, group_from=r"^(P\d+)_", **TINY)
    declared = build("image_folder", root=root, group_column=None, **TINY)
    table = build("image_folder", root=write_table(root, table_of(root)), **TINY)
    for dataset in (named, declared, table):
        dataset.require_groups()
    assert [r.group for r in named.records] == [r.group for r in table.records] == ["P0", "P0", "P2", "P2", "P1", "P1", "P3", "P3"]
    assert len({r.group for r in declared.records}) == 8
    assert (unknown.groups, named.groups, declared.groups) == ("unknown", "declared", "none declared")
    warned = [finding for finding in unknown.deep_check() if finding.code == "no_group"]
    assert [finding.severity for finding in warned] == ["warning"]
    assert "a grouped cv (" in warned[0].advice and "column 'group'; or set dataset.group_from" in warned[0].advice
    assert not [f for dataset in (named, declared, table) for f in dataset.deep_check() if f.code == "no_group"]
    with pytest.raises(DataError, match="finds no group in 'P0_0.png'"):
        build("image_folder", root=root, group_from=r"^(X\d+)_", **TINY)
    with pytest.raises(ConfigError, match="its first bracket"):
        build("image_folder", root=root, group_from=r"^P\d+_", **TINY)
    with pytest.raises(DataError, match="dataset.group_column=patient: there is no such column; there are file, label, group"):
        build("image_folder", root=root, group_column="patient", **TINY)


def test_templates_multiply_class_texts_and_training_draws_among_them(build, root):
    dataset = build("image_folder", root=root, templates=["{}", "film of {}"], **TINY)
    fixed = tuple(f"{start}{text}" for text in TEXTS["fixed"] for start in ("", "film of "))
    assert dataset.classes.texts == (fixed, (TEXTS["loose"], f"film of {TEXTS['loose']}"))
    flat = [text for texts in dataset.classes.texts for text in texts]
    seen = Counter()
    for epoch in range(30):
        for i, record in enumerate(dataset.records):
            sample = dataset[(i, epoch, 0)]
            assert flat[sample["text_index"]] == sample["text"] and sample["text"] in dataset.classes.texts[record.label]
            seen[sample["text"]] += 1
    assert set(seen) == set(flat)
    assert all(dataset[(i, EVALUATION, 0)]["text"] == dataset.classes.texts[r.label][0] for i, r in enumerate(dataset.records))


def test_without_class_texts_the_names_serve_and_a_warning_says_so(build, root):
    (root / "class_texts.json").unlink()
    (root / "fixed").rename(root / "well_fixed")
    dataset = build("image_folder", root=root, **TINY)
    assert dataset.classes.texts == (("loose",), ("well fixed",))
    assert [w for w in dataset.exclusions.warnings if "class names serve as texts" in w]


def test_a_text_column_replaces_the_prompt_and_an_empty_cell_means_the_class_text(build, root):
    rows = [row | {"text": "" if i % 2 else f"report {i}"} for i, row in enumerate(table_of(root))]
    dataset = build("image_folder", root=write_table(root, rows), **TINY)
    for epoch in (EVALUATION, 0, 1):
        samples = [dataset[(i, epoch, 0)] for i in range(8)]
        assert all("text_index" not in sample for sample in samples)
        assert [sample["text"] for sample in samples[::2]] == [f"report {i}" for i in range(0, 8, 2)]
        assert all(s["text"] in dataset.classes.texts[s["label"]] for s in samples[1::2])


def test_equal_bytes_in_two_groups_are_an_error_or_one_group(build, root):
    (root / "fixed" / "P9_0.png").write_bytes((root / "fixed" / "P0_1.png").read_bytes())
    pattern = {"group_from": r"^(P\d+)_", **TINY}
    with pytest.raises(DataError, match=r"P9_0.png \(group P9\) has the bytes of .*P0_1.png \(group P0\).*dataset.duplicates=merge"):
        build("image_folder", root=root, **pattern)
    merged = build("image_folder", root=root, duplicates="merge", **pattern)
    assert Counter(r.group for r in merged.records)["P0"] == 3 and len(merged) == 9
    warned = build("image_folder", root=root, duplicates="warn", **pattern)
    assert len({r.group for r in warned.records}) == 5 and "has the bytes of" in warned.exclusions.warnings[0]
    (root / "loose" / "P9_1.png").write_bytes((root / "fixed" / "P0_1.png").read_bytes())
    for kind in ("error", "merge", "warn"):
        with pytest.raises(DataError, match=r"P9_1.png \(loose\) has the bytes of .*P0_1.png \(fixed\)"):
            build("image_folder", root=root, duplicates=kind, **pattern)


def test_skipping_leaves_out_both_films_of_equal_bytes_and_two_labels(build, root):
    (root / "loose" / "P9_1.png").write_bytes((root / "fixed" / "P0_1.png").read_bytes())
    skipped = build("image_folder", root=root, on_error="skip", group_column=None, **TINY)
    assert len(skipped) == 7 and {record for _, record, _ in skipped.exclusions.dropped} == {"fixed/P0_1.png", "loose/P9_1.png"}


def test_merging_joins_groups_over_several_steps(build, root):
    for source, first, second in (("P0_0", "A1_P2", "A2_P4"), ("P2_0", "B1_P0", "B2_P2")):  # P4 to P2, then P2 to P0
        for copy in (first, second):
            (root / "fixed" / f"{copy}.png").write_bytes((root / "fixed" / f"{source}.png").read_bytes())
        (root / "fixed" / f"{source}.png").unlink()
    merged = build("image_folder", root=root, duplicates="merge", group_from=r"(P\d+)", **TINY)
    assert Counter(r.group for r in merged.records) == {"P0": 6, "P1": 2, "P3": 2}


def changed(row, **cells):
    def change(root):
        rows = table_of(root)
        columns = {key: "" for key in cells if key not in rows[0]}
        defaults = {"split": "train", "side": "L"}
        rows = [old | {key: defaults.get(key, "") for key in columns} for old in rows]
        rows[row] |= cells
        write_table(root, rows)

    return change


def append_text(root):
    rows = write_table(root, table_of(root)) / "metadata.csv"
    rows.write_bytes(rows.read_bytes() + b"fixed/P0_0.png,fixed,P0,one,more\n")


FAULTS = {
    "missing image": (changed(2, file="fixed/P7.png"), r"metadata.csv, line 4 .*fixed/P7.png.*no such file", {}),
    "broken image": (
        lambda root: write_table(root, table_of(root)) and (root / "fixed/P0_1.png").write_bytes(b"x"),
        r"line 3 .*no image",
        {},
    ),
    "duplicate id": (lambda root: changed(1, id="a")(root) or changed_twice(root), r"line 3 \(id a\): the id is that of .*line 2 too", {}),
    "file named twice": (changed(1, file="fixed/P0_0.png"), r"line 3 .*the (file|id) .*line 2", {}),
    "empty label": (changed(3, label=" "), r"line 5 .*column 'label'\) is empty", {}),
    "empty group": (changed(3, group=""), r"line 5 .*column 'group'\) is empty", {}),
    "label outside class_order": (
        changed(0, label="worn"),
        r"line 2 .*'worn' is not in dataset.class_order",
        {"class_order": ["fixed", "loose"]},
    ),
    "class without text": (changed(0, label="worn"), r"no text for the class 'worn'. The classes are 'fixed', 'loose', 'worn'", {}),
    "text without class": (
        lambda root: (root / "class_texts.json").write_text(json.dumps(TEXTS | {"worn": "a"})),
        "no class for the text 'worn'",
        {},
    ),
    "unknown split": (changed(4, split="dev"), r"line 6 .*the split 'dev' is unknown; write train, valid, test", {}),
    "group in two splits": (changed(4, split="test"), "groups are in two splits, such as 'P1'", {}),
    "missing column": (lambda root: None, "no column 'diagnosis'.*there are file, label, group", {"label_column": "diagnosis"}),
    "cells too many": (append_text, "line 10: more cells than columns", {}),
    "checksum": (changed(1, sha256="0" * 64), r"line 3 .*the sha256 column says 000000000000", {}),
    "outside root": (changed(1, file="../other.png"), "leads outside .*dataset.allow_outside=true", {}),
    "no side column": (
        lambda root: None,
        "dataset.flip=canonical needs a column 'side'.*there are file, label, group",
        {"flip": "canonical"},
    ),
    "no side": (changed(1, side="both"), r"line 3 .*the side is 'both', expected L or R", {"flip": "canonical"}),
    "channels": (lambda root: None, r"dataset.channels=3 must equal encoder.image.in_chans=1", {"channels": 3, "in_chans": 1}),
    "template": (lambda root: None, r"dataset.templates=\['a film'\]", {"templates": ["a film"]}),
    "constants": (lambda root: None, "encoder.image.mean is None", {"normalize": "encoder"}),
    "json": (lambda root: (root / "class_texts.json").write_text('{"fixed": "a",\n "loose" "b"}'), "class_texts.json: .*line 2", {}),
    "empty text": (lambda root: (root / "class_texts.json").write_text('{"fixed": "a", "loose": []}'), "an empty text of 'loose'", {}),
    "bad quotes": (
        lambda root: (root / "metadata.csv").write_text('file,label\nfixed/P0_0.png,"fixed" x\n'),
        "metadata.csv, line 2: .*quote cells",
        {},
    ),
    "no utf-8": (lambda root: (root / "metadata.csv").write_bytes(b"file,label\nfixed/P0_0.png,\xe9\n"), "line 2: not UTF-8", {}),
}


def changed_twice(root):
    rows = [row | {"id": str(i)} for i, row in enumerate(table_of(root))]
    rows[0]["id"] = rows[1]["id"] = "a"
    write_table(root, rows)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_that_names_line_and_value_before_training(build, tabled, name):
    spoil, message, keys = FAULTS[name]
    (tabled.parent / "other.png").write_bytes((tabled / "fixed/P0_0.png").read_bytes())
    spoil(tabled)
    with pytest.raises((DataError, ConfigError), match=message):
        build("image_folder", root=tabled, **TINY | keys)


def test_a_folder_without_images_and_a_single_class_are_errors(build, root):
    (root / "worn").mkdir()
    with pytest.raises(DataError, match="worn: the class folder holds no image"):
        build("image_folder", root=root, **TINY)
    for path in [*(root / "loose").iterdir(), root / "loose", root / "worn"]:
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=r"1 class \('fixed'\); classification needs two or more"):
        build("image_folder", root=root, **TINY)


def test_all_faults_are_named_at_once_ten_of_them_in_full(build, tabled):
    rows = [row | {"file": f"fixed/gone {i}.png"} for i, row in enumerate(table_of(tabled) * 2)]
    write_table(tabled, rows)
    with pytest.raises(DataError, match="16 faults") as raised:
        build("image_folder", root=tabled, **TINY)
    assert str(raised.value).count("no such file") == 10 and "and 6 more" in str(raised.value)


def test_skipping_leaves_the_faulty_rows_out_and_lists_them(build, tabled):
    (tabled / "fixed/P0_1.png").write_bytes(b"")
    dataset = build("image_folder", root=tabled, on_error="skip", **TINY)
    assert len(dataset) == 7 and dataset.exclusions.dropped[0][1] == "fixed/P0_1.png"
    assert dataset.findings[0].code == "empty_file"


def test_where_skipping_leaves_one_class_the_faults_are_named(build, tabled):
    for path in (tabled / "loose").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="4 faults\n.*P1_0.png.*the file is empty"):
        build("image_folder", root=tabled, on_error="skip", **TINY)


def test_the_deep_check_finds_what_headers_do_not_tell(build, tabled):
    path = tabled / "loose" / "P1_1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tabled / "loose" / "P1_0.png")
    dataset = build("image_folder", root=tabled, normalize="dataset", **TINY)
    found = {(finding.severity, finding.code, finding.record) for finding in dataset.deep_check()}
    assert ("warning", "constant_image", "loose/P1_0.png") in found and len(found) == 2
    assert [record for severity, _, record in found if severity == "error"] == ["loose/P1_1.png"]


def stream_of(dataset, workers, start_step=0):
    plan = PlanSettings(batch_size=4, eval_batch_size=4, accumulation=1, processes=1, rank=0, drop_last=True)
    parts = {"train": list(range(len(dataset))), "valid": [], "test": []}
    settings = WorkerSettings(num_workers=workers, prefetch_factor=2, pin_memory=False, timeout_s=60)
    loaders = Loaders(dataset, parts, Collate(tokens, 1, "batch", 1), plan, settings, 0, torch.device("cpu"))
    try:
        return [batch for epoch in (0, 1) for window in loaders.train(epoch, start_step) for batch in window]
    finally:
        loaders.close()


def test_augmented_batches_are_equal_for_0_and_2_workers_and_from_the_middle_of_an_epoch(build, tabled):
    dataset = build("image_folder", root=tabled, augmentation="strong", flip="swap", **TINY)
    alone, apart = stream_of(dataset, 0), stream_of(dataset, 2)
    assert len(alone) == 4 and all(equal(one, other) for one, other in zip(alone, apart, strict=True))
    resumed = stream_of(dataset, 0, start_step=1)
    assert equal(resumed[0], alone[1]) and equal(resumed[1], alone[3])
    assert not torch.equal(alone[0]["image"], alone[2]["image"])


def test_another_film_moves_nobody_elses_draws(build, root):
    before = build("image_folder", root=root, augmentation="standard", **TINY)
    seen = {record.id: before[(i, 3, 0)]["image"] for i, record in enumerate(before.records)}
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(root / "fixed" / "A.png")
    after = build("image_folder", root=root, augmentation="standard", **TINY)
    assert len(after) == 9
    for i, record in enumerate(after.records):
        if record.id in seen:
            np.testing.assert_array_equal(after[(i, 3, 0)]["image"], seen[record.id])


def test_canonical_mirrors_left_films_in_evaluation_too_and_swap_turns_the_words(build, root):
    rows = [row | {"side": "L" if i % 2 else "r"} for i, row in enumerate(table_of(root))]
    write_table(root, rows)
    plain = build("image_folder", root=root, normalize="none", **TINY)
    canonical = build("image_folder", root=root, normalize="none", flip="canonical", **TINY)
    for i in range(8):
        expected = plain[(i, EVALUATION, 0)]["image"]
        for epoch in (EVALUATION, 2):
            np.testing.assert_array_equal(canonical[(i, epoch, 0)]["image"], mirrored(expected) if i % 2 else expected)
    texts = {"fixed": "fixed on the left", "loose": "loose on the right"}
    swap = build("image_folder", root=root, normalize="none", flip="swap", class_texts=texts, **TINY)
    assert "side letters" in swap.exclusions.warnings[-1]
    flips = 0
    for epoch in range(20):
        for i in range(8):
            sample, expected = swap[(i, epoch, 0)], plain[(i, EVALUATION, 0)]["image"]
            flipped = not np.array_equal(sample["image"], expected)
            flips += flipped
            np.testing.assert_array_equal(sample["image"], mirrored(expected) if flipped else expected)
            side = "left" if (sample["label"] == 0) != flipped else "right"
            assert sample["text"].endswith(side) and "text_index" not in sample
    assert 55 < flips < 105


def test_mean_and_sd_are_those_of_the_training_part_alone(build, root):
    dataset = build("image_folder", root=root, normalize="dataset", channels=3, **TINY)
    with pytest.raises(ConfigError, match="fit"):
        dataset[(0, EVALUATION, 0)]
    train = [0, 1, 4, 5]
    dataset.fit(train)
    pictures = np.stack([dataset.picture(dataset.records[i]) for i in train])
    np.testing.assert_allclose(dataset.statistics[0], pictures.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(dataset.statistics[1], pictures.std((0, 2, 3)), rtol=1e-5)
    found = np.stack([dataset[(i, EVALUATION, 0)]["image"] for i in train])
    assert abs(found.mean()) < 1e-5 and found.std() == pytest.approx(1, abs=1e-4)
    (root / "loose" / "P3_1.png").write_bytes(b"not read: it is in no training part")
    dataset.fit(train)


def test_the_towers_constants_are_averaged_for_grey_films(build, root):
    rgb = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.5]}
    plain = build("image_folder", root=root, normalize="none", **TINY)[(0, EVALUATION, 0)]["image"]
    grey = build("image_folder", root=root, normalize="encoder", **TINY | rgb)[(0, EVALUATION, 0)]["image"]
    np.testing.assert_allclose(grey, (plain - 0.5) / 0.3, rtol=1e-4, atol=1e-5)
    colour = build("image_folder", root=root, normalize="encoder", channels=3, **TINY | rgb)[(0, EVALUATION, 0)]["image"]
    np.testing.assert_allclose(colour[2], (plain[0] - 0.6) / 0.5, rtol=1e-4, atol=1e-5)


def test_kept_films_are_those_that_are_read_anew(build, root):
    fresh, kept, on_disk = (build("image_folder", root=root, cache=kind, augmentation="light", **TINY) for kind in ("none", "ram", "disk"))
    for epoch in (0, 1):
        assert equal(batch_of(fresh, epoch), batch_of(kept, epoch)) and equal(batch_of(fresh, epoch), batch_of(on_disk, epoch))


def test_films_on_disk_are_decoded_once_and_again_when_a_file_changes(build, root, tmp_path, monkeypatch):
    decoded, plain = [], FilmTransform.__call__
    monkeypatch.setattr(FilmTransform, "__call__", lambda self, path, name: decoded.append(name) or plain(self, path, name))
    made = {"root": root, "cache": "disk", "cache_dir": tmp_path / "cache"} | TINY
    count = len(build("image_folder", **made))
    assert len(decoded) == count
    batch_of(build("image_folder", **made))
    assert len(decoded) == count  # another run reads the file
    film = next(root.glob("*/*.png"))
    Image.fromarray(255 - np.asarray(Image.open(film))).save(film)
    changed = build("image_folder", **made)
    assert len(decoded) == 2 * count
    assert equal(batch_of(changed), batch_of(build("image_folder", root=root, **TINY)))


def test_the_fingerprint_sees_texts_labels_and_files_but_not_the_folders_place(build, root, tmp_path):
    before = build("image_folder", root=root, **TINY).fingerprint()
    assert build("image_folder", root=films(tmp_path / "elsewhere"), **TINY).fingerprint() == before
    changes = [
        lambda: (root / "class_texts.json").write_text(json.dumps(TEXTS | {"loose": "another text"})),
        lambda: (root / "fixed" / "P0_0.png").rename(root / "fixed" / "P5_0.png"),
        lambda: (root / "fixed" / "P2_0.png").rename(root / "loose" / "P2_0.png"),
    ]
    for change in changes:
        change()
        now = build("image_folder", root=root, **TINY).fingerprint()
        assert now != before
        before = now


@pytest.mark.parametrize(
    "name, counts, groups",
    [
        ("shoulder_implants", {"Cofield": 66, "Depuy": 235, "Tornier": 57, "Zimmer": 119}, 477),
        ("pneumoniamnist", {"normal": 300, "pneumonia": 900}, 1198),
    ],
)
def test_the_real_films_are_read_with_their_classes_groups_and_checksums(build, shared_data, name, counts, groups):
    if not (shared_data / name).is_dir():
        pytest.skip(f"{shared_data / name} is not here")
    dataset = build("image_folder", root=shared_data / name, side=64, augmentation="standard")
    assert dict(zip(dataset.classes.names, dataset.classes.counts, strict=True)) == counts
    assert len({record.group for record in dataset.records}) == groups and dataset.groups == "declared"
    assert not dataset.deep_check() and not dataset.exclusions.warnings
    batch = Collate(tokens, 1, "batch", 1)([dataset[(i, 0, 0)] for i in range(0, len(dataset), 40)])
    assert torch.isfinite(batch["image"]).all() and batch["image"].shape[1:] == (1, 64, 64)
    assert batch["image"].mean((1, 2, 3)).abs().max() < 1e-4 and (batch["image"].std((1, 2, 3)) - 1).abs().max() < 1e-3


def test_a_content_fingerprint_sees_a_byte_that_the_size_does_not_tell(build, root):
    path = next(root.rglob("*.png"))
    before = {kind: build("image_folder", root=root, fingerprint=kind).fingerprint() for kind in ("size", "content")}
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last checksum: the same size, the same pixels
    path.write_bytes(content)
    assert build("image_folder", root=root, fingerprint="size").fingerprint() == before["size"]
    assert build("image_folder", root=root, fingerprint="content").fingerprint() != before["content"]
    with pytest.raises(ConfigError, match="choose size or content"):
        build("image_folder", root=root, fingerprint="bytes")
