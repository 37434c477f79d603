"""Whatever a data file holds, only the project's own errors come out; the corpus of broken files is reported whole."""

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
]


@pytest.mark.parametrize("reader, content", FOUND)
def test_what_fuzzing_has_found_stays_mended(reader, content, tmp_path):
    try:
        fuzz_readers.READERS[reader][0](tmp_path, content)
    except fuzz_readers.MmexpertError as error:
        assert str(error)
