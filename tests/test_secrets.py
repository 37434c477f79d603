"""No secret of ours is kept: not in files, log lines, tracebacks, arguments or on the screen."""

import json
import logging
import os
from pathlib import Path

import pytest
from warm_commands import warm_run

from mmexpert.command_line import prepare_arguments
from mmexpert.engine.console import set_up_logging
from mmexpert.engine.results import write_run_files
from mmexpert.types import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SECRET = "planted-0123456789"


def holders(folder):
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "argument",
    ["tracker.api_key=abc", "+tracker={api_key: abc}", "++a.b.token=x", "tracker={mode: offline, password: 'p w'}", "DB_PASSWD=x"],
)
def test_a_secret_in_an_argument_is_refused_without_being_told(argument):
    with pytest.raises(ConfigError, match="a secret does not belong") as told:
        prepare_arguments([argument])
    assert "abc" not in str(told.value) and "p w" not in str(told.value)


@pytest.mark.parametrize("fails", [False, True])
def test_a_planted_secret_is_in_no_file_of_the_outputs_folder_nor_on_the_screen(tmp_path, tiny, fails):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_API_KEY": SECRET, "MY_TOKEN": SECRET}
    given = [
        *tiny,
        "trainer.max_steps=1",
        "name=s",
        f"init_from=/nowhere/{SECRET}" if fails else "trainer.monitor=[valid/RSum]",
        "resume=auto",
    ]
    ended = warm_run("mmexpert.train", given, tmp_path, environment)
    assert ended.returncode == (4 if fails else 0), ended.stderr
    assert holders(tmp_path / "outputs") == []
    assert not any(SECRET in str(path) for path in tmp_path.rglob("*"))
    assert "init_from" in ended.stderr or not fails


def test_files_log_lines_and_tracebacks_are_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", SECRET)
    before = logging.getLogger().handlers[:]
    try:
        set_up_logging(tmp_path, 0)
        logging.getLogger("mmexpert").warning("the value is %s", SECRET)
        try:
            raise OSError(f"https://me:pass@host/{SECRET}")
        except OSError:
            logging.getLogger("mmexpert").exception("failed")
        write_run_files(tmp_path, {"tracker": {"api_key": "short", "note": f"x {SECRET}"}}, [f"tracker.note={SECRET}"], "c0ffee", 1)
    finally:
        for handler in logging.getLogger().handlers[:]:
            handler.close()
        logging.getLogger().handlers[:] = before
    assert holders(tmp_path) == []
    assert "me:pass" not in (tmp_path / "log.txt").read_text() and "***" in (tmp_path / "log.txt").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["config"]["tracker"]["api_key"] == "***"
