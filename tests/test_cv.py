"""`python -m mmexpert.cv` prints the summary table or where each fold stands, and ends with the code of its error."""

import json
import subprocess
import sys

import pytest
from fold_settings import group_settings

from mmexpert import cv
from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.files import csv_text
from mmexpert.engine.folds_file import settle_folds
from mmexpert.engine.lock import RunLock
from mmexpert.engine.status import Status, write_status


@pytest.fixture
def run(tmp_path):
    """Two folds of three: the first done, the second stopped, the third not begun."""
    rows = RecordDataset("fake", [Record(f"g{g}/0", "", f"g{g}", ("a",)) for g in range(6)], "instance")
    settings = group_settings(n_splits=3)
    folds = settle_folds(tmp_path, rows, settings)
    content = {"config": {"cv": {"selection": "last", "headline": None}, "trainer": {"monitor": "valid/RSum"}}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    write_status(tmp_path, Status("running", "c0ffee"))
    for number, state in ((1, "done"), (2, "stopped")):
        (tmp_path / f"fold_{number}").mkdir()
        write_status(tmp_path / f"fold_{number}", Status(state, "c0ffee", "da7a", epoch=4, best_epoch=3))
    metrics = {"test/RSum": 123.0, "best_value": 456.0, "monitor": "valid/RSum", "protocol": {"test": {"k": [1]}}}
    (tmp_path / "fold_1" / "metrics.json").write_text(json.dumps(metrics))
    predictions = [{"id": s, "group": s[:2], "rank_radar_to_text": 1.0, "rank_text_to_radar": 2.0, "gallery": 2} for s in folds[0].test]
    (tmp_path / "fold_1" / "predictions.csv").write_text(csv_text(predictions))
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cv", *map(str, arguments)])
    cv.main()


def test_status_prints_a_line_a_fold_with_epochs_and_the_monitored_value(run, monkeypatch, capsys):
    call(monkeypatch, "status", run)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["fold", "state", "epoch", "best", "monitor", "held", "by"]
    assert lines[1] == ["run", "running"]
    assert lines[2] == ["1", "done", "4", "3", "valid/RSum", "456.0000"]
    assert lines[3] == ["2", "stopped", "4", "3"]
    assert lines[4] == ["3", "not", "begun"]


def test_status_names_the_process_that_holds_a_fold(run, monkeypatch, capsys):
    import os

    with RunLock(run / "fold_2"):
        call(monkeypatch, "status", run)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("2 "))
    assert f"process {os.getpid()} on" in line


def test_aggregate_prints_the_table_of_the_folds_that_are_done_and_ends_with_0(run, monkeypatch, capsys):
    call(monkeypatch, "aggregate", run)
    printed = capsys.readouterr().out
    assert printed == (run / "cv_summary.md").read_text()
    assert "| test/RSum | 123.000 |" in printed and "fold 2 stopped, fold 3 not begun" in printed


@pytest.mark.parametrize("command", ["aggregate", "status"])
def test_a_folder_that_is_no_run_ends_with_code_4_and_no_traceback(command, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, command, tmp_path)
    assert ended.value.code == 4
    assert capsys.readouterr().err.startswith("RunFolderError: ")


def test_an_unknown_command_ends_with_code_2_and_the_choices_before_torch_is_imported(tmp_path):
    script = (
        "import sys\nfrom mmexpert import cv\nsys.argv = ['cv', 'compar', 'x']\n"
        "try:\n    cv.main()\nfinally:\n    print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "aggregate" in ended.stderr and ended.stdout == "False\n"


def test_compare_prints_and_writes_the_table_and_refuses_a_single_run(run, tmp_path, monkeypatch, capsys):
    call(monkeypatch, "compare", run, run, "--metric", "RSum", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "comparison.md").read_text() and "fold 2, 3 of" in printed
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"][0]["mean_difference"] == 0
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "compare", run, "--metric", "RSum")
    assert ended.value.code == 2 and "two runs or more" in capsys.readouterr().err
