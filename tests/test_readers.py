"""Whatever a data file holds, only the project's own errors come out; the corpus of broken files is reported whole."""

import errno
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def script(name):
    """A module of scripts/, which import each other by plain names."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


_, broken_files, _, fuzz_readers = [script(name) for name in ("sound_sets", "broken_files", "made_up_files", "fuzz_readers")]


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_made_up_files_raise_only_errors_of_the_project(reader):
    assert fuzz_readers.attack(reader, 25) >= 20


@pytest.mark.parametrize("case", broken_files.CORPUS, ids=lambda case: f"{case.family}, {case.name}")
def test_a_broken_file_is_reported_by_its_name(case, tmp_path):
    assert broken_files.reported(case, tmp_path)


@pytest.mark.parametrize("family", broken_files.FAMILIES)
def test_the_sound_data_sets_of_the_corpus_have_no_error(family, tmp_path):
    broken_files.FAMILIES[family][0](tmp_path / "data")
    assert broken_files.errors_of(family, tmp_path / "data", tmp_path) == []


def test_the_corpus_holds_at_least_40_files():
    assert len({(case.family, case.name) for case in broken_files.CORPUS}) == len(broken_files.CORPUS) >= 40


FOUND = [  # by fuzzing: each came out as an error that is none of ours
    ("submission", b'{"metric": []}'),
    ("submission", b"[" * 100_000),
    (".npy", b"\x93NUMPY\x01\x00\x06\x00\x00\x00\x00'''"),
    ("class texts", b"[" * 100_000),
    ("metadata.csv", b"file,label,group\n" + b"x" * 300 + b".png,fixed,P0\n"),
    ("data.json, pictures", b'[{"image_path": "' + b"x" * 300 + b'.png", "caption": "a"}]'),
    ("split JSON", b'[{"filefolder": "' + b"x" * 300 + b'", "fileindex": "1", "captions": ["a"]}]'),
    ("split JSON, arrays", b'[{"filefolder": "clips", "fileindex": "' + b"x" * 300 + b'", "captions": ["a"]}]'),
    *((reader, b'[{"id": ' + b"1" * 5000 + b"}]") for reader in ("split JSON", "data.json", "data.jsonl", "CIRR captions", "submission")),
]
HALF = [  # a lone surrogate passes Python's reader, and no file can be written with it: a run would end at its first table of predictions
    ("split JSON", b'[{"filefolder": "c", "fileindex": "1", "captions": ["\\ud83d"]}]'),
    ("class texts", b'{"fixed": "\\ud83d", "loose": "b"}'),
    ("data.json", b'[{"image_path": "a.png", "caption": "\\ud83d"}]'),
    ("FashionIQ split", b'["\\ud83d"]'),
    ("submission", b'{"version": "rc2", "metric": "recall", "1": ["\\ud83d"]}'),
]


@pytest.mark.parametrize("reader, content", FOUND)
def test_what_fuzzing_has_found_stays_mended(reader, content, tmp_path):
    try:
        fuzz_readers.READERS[reader][0](tmp_path, content)
    except fuzz_readers.MmexpertError as error:
        assert str(error)


@pytest.mark.parametrize("reader, content", HALF)
def test_half_a_character_is_refused_and_a_whole_one_of_two_escapes_is_not(reader, content, tmp_path):
    read = fuzz_readers.READERS[reader][0]
    for name, escaped in (("half", content), ("whole", content.replace(b"\\ud83d", b"\\ud83d\\ude00"))):
        (tmp_path / name).mkdir()
        try:
            read(tmp_path / name, escaped)
        except fuzz_readers.MmexpertError as error:
            assert ("half a character" in str(error)) == (name == "half")
        else:
            assert name == "whole"


def test_a_file_that_a_record_names_and_nobody_may_read_is_a_fault_of_that_record_but_a_full_disk_is_not():
    from mmexpert.data.findings import FaultList

    faults = FaultList("set", "skip")
    with faults.catching():
        raise PermissionError(errno.EACCES, "Permission denied", "a.png")
    assert [fault.code for fault in faults.faults] == ["missing_file"] and "a.png" in str(faults.faults[0])
    with pytest.raises(OSError, match="No space"), faults.catching():
        raise OSError(errno.ENOSPC, "No space left on device", "cache")
