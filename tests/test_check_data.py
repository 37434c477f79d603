"""check_data names every fault of a data set by code and record, writes them down, and says by its exit code whether to train."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from warm_commands import warm_run

from mmexpert import check_data
from mmexpert.data.findings import Finding
from mmexpert.data.records import Exclusions, Record
from mmexpert.types import ClassTable, DataError


@dataclass
class Rows:
    """What is checked of a data set, with records that its own constructor would refuse."""

    records: list
    classes: ClassTable | None = None
    name: str = "fake"

    def __post_init__(self):
        self.exclusions, self.findings = Exclusions(), []

    def __getitem__(self, draw):
        if self.records[draw[0]].source == "broken":
            raise DataError("it can not be read")

    def fingerprint(self):
        return "f1n9e6"


def record(name, split="train", group=None, captions=("a walk",), label=0, source="x.npy"):
    return Record(name, split, group or name, captions, label, source)


def classes(*texts):
    names = tuple(f"class {k}" for k in range(len(texts)))
    return ClassTable(names, texts, (0,) * len(texts))


FAULTS = {
    "duplicate_id": Rows([record("a"), record("a")]),
    "id_in_two_splits": Rows([record("a", group="g"), record("a", split="test", group="h")]),
    "group_in_two_splits": Rows([record("a", group="g"), record("b", split="valid", group="g")]),
    "empty_caption": Rows([record("a", captions=("a walk", "  "))]),
    "class_without_text": Rows([record("a")], classes(("",))),
    "unknown_class": Rows([record("a"), record("b", label=3)], classes(("walk",))),
    "small_class": Rows([record("a"), record("b", group="a")], classes(("walk",))),
    "undecodable": Rows([record("a", source="broken")]),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs" / "data_checks"


@pytest.mark.parametrize("code", FAULTS)
def test_each_fault_is_a_finding_of_its_own_code_with_the_record_and_what_to_do(code, here):
    (finding,) = check_data.check_dataset(FAULTS[code], least_groups=2 if code == "small_class" else 1)
    assert finding.code == code and finding.severity == ("warning" if code == "small_class" else "error")
    assert finding.record and finding.advice


def test_a_sound_data_set_has_no_findings_and_classes_need_no_captions(here):
    assert check_data.check_dataset(Rows([record("a"), record("b", split="test")]), 5) == []
    assert check_data.check_dataset(Rows([record("a", captions=())], classes(("walk",))), 1) == []
    assert [finding.code for finding in check_data.check_dataset(Rows([record("a", captions=())]), 1)] == ["empty_caption"]


@pytest.mark.parametrize("caption", ["\u200b", "\x07", "\u0301", "\ufeff \u2060"])
def test_a_caption_of_which_nothing_can_be_seen_is_empty_and_shown_as_python_writes_it(here, caption):
    (finding,) = check_data.check_dataset(Rows([record("a", captions=("a walk", caption)), record("b", captions=("\U0001f44d", "é!"))]), 1)
    assert finding.code == "empty_caption" and finding.record == "a"
    assert f"caption 2 is empty ({caption!r})" in finding.advice


def test_a_class_whose_texts_show_nothing_is_without_text(here):
    (finding,) = check_data.check_dataset(Rows([record("a")], classes(("\u200b", " "))), 1)
    assert finding.code == "class_without_text"


def test_the_report_holds_all_findings_errors_first(here):
    rows = Rows([record("a", captions=("",)), record("b")], classes(("walk",), ("run",)))
    check_data.check_dataset(rows, 1)
    stored = json.loads((here / "f1n9e6.json").read_text())
    assert (stored["dataset"], stored["records"], stored["errors"], stored["warnings"]) == ("fake", 2, 1, 1)
    with open(here / "f1n9e6.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert listed == stored["findings"] and [row["code"] for row in listed] == ["empty_caption", "small_class"]
    assert list(listed[0]) == ["severity", "code", "file", "record", "advice"]


def test_training_is_refused_for_an_error_and_not_for_a_warning(here):
    check_data.require_sound(Rows([record("a")], classes(("walk",), ("run",))))
    (here / "f1n9e6.json").unlink()
    with pytest.raises(DataError, match=r"deep: errors: 1, listed in .*f1n9e6.csv\n  empty_caption: .*\nNothing has been trained"):
        check_data.require_sound(Rows([record("a", captions=("",))]))


def test_records_that_on_error_skip_has_left_out_do_not_refuse_training(here):
    rows = Rows([record("a")])
    rows.findings = [Finding("error", "truncated", "x.npy", "z", "x.npy is cut short")]
    check_data.require_sound(rows)
    assert json.loads((here / "f1n9e6.json").read_text())["errors"] == 1


def test_a_check_of_the_same_fingerprint_is_not_made_again(here, monkeypatch):
    with pytest.raises(DataError):
        check_data.require_sound(FAULTS["undecodable"])
    monkeypatch.setattr(Rows, "__getitem__", lambda *_: pytest.fail("read again"))
    with pytest.raises(DataError, match="it can not be read"):
        check_data.require_sound(FAULTS["undecodable"])


def test_faulty_records_are_counted_with_the_others():
    rows = Rows([record("a"), record("b", split="test"), record("c", source="broken")])
    broken = Finding("error", "undecodable", "x.npy", "c", "it can not be read")
    assert check_data.counted(rows, []) == "3 records (1 test, 2 train)"
    assert check_data.counted(rows, [broken]) == "3 records, 1 of them faulty (1 test, 2 train)"
    rows.findings = [Finding("error", "truncated", "y.npy", name, "cut short") for name in "de"] + [
        Finding("warning", "too_short", "", "a", "short")
    ]
    told = check_data.counted(rows, [*rows.findings, broken])
    assert told == "5 records, 3 of them faulty (1 test, 2 train, 2 left out)"


def command(folder, *arguments):
    return warm_run("mmexpert.check_data", arguments, folder)


@pytest.fixture
def radhar(tmp_path, shared_data):
    """Two classes of RadHAR with one session each."""
    for name in ("boxing", "jack"):
        (tmp_path / "data" / "Train" / name).mkdir(parents=True)
        source = sorted((shared_data / "radhar" / "Train" / name).glob("*.txt*"))[0]
        (tmp_path / "data" / "Train" / name / source.name).write_bytes(source.read_bytes())
    return ["dataset=radhar", f"dataset.root={tmp_path / 'data'}", "dataset.stride=200"]


def test_the_command_ends_with_0_with_3_under_strict_and_with_3_for_an_error(tmp_path, radhar, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(check_data.__file__).parents[1]))
    ended = command(tmp_path, *radhar)
    assert (
        ended.returncode == 0 and "errors: 0, warnings: 3, listed in outputs/data_checks/" in ended.stdout
    )  # small twice; texts without folders
    ended = command(tmp_path, *radhar, "strict=true")
    assert ended.returncode == 3 and "errors: 0, warnings: 3" in ended.stderr and "Traceback" not in ended.stderr
    (tmp_path / "data" / "Train" / "jack" / "empty.txt").write_text("")
    ended = command(tmp_path, *radhar)
    assert ended.returncode == 3 and "errors: 1" in ended.stderr and "empty.txt" in ended.stdout


@pytest.mark.parametrize("argument, said", [("dataset=radhar", "dataset.root"), ("strikt=true", "strikt: there is no such key")])
def test_a_misspelt_command_ends_with_2(tmp_path, argument, said, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(check_data.__file__).parents[1]))
    ended = command(tmp_path, argument)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr


def test_a_set_of_images_is_checked_without_the_keys_of_radar(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(check_data.__file__).parents[1]))
    ended = command(tmp_path, "dataset=hip_phantom", "dataset.n_patients=20", "least_groups=1")
    assert ended.returncode == 0 and "errors: 0, warnings: 0" in ended.stdout, ended.stderr
