import hashlib
import json
import math
import subprocess
import sys

import pytest

from mmexpert.engine.status import ABSENT, Status, config_difference, config_hash, flat, read_status, write_status
from mmexpert.types import RunFolderError, StorageError

CONFIG = {"name": "a", "seed": 1, "trainer": {"epochs": 8, "keep_last": 2}, "tracker": {"mode": "offline"}, "list": [1, {"b": 2}]}


def test_a_status_comes_back_as_it_was_written_with_the_fields_in_their_order(tmp_path):
    status = Status("stopped", "c0ffee", "f1", "signal", 143, 3, 2, 120, 5.5, [{"step": 60, "versions": {}, "processes": 1, "exact": True}])
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    assert list(json.loads((tmp_path / "status.json").read_text()))[:3] == ["state", "config_hash", "fingerprint"]
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_folder_without_a_run_has_no_status(tmp_path):
    assert read_status(tmp_path / "nowhere") is None


def test_a_figure_that_is_not_finite_is_null_in_the_file(tmp_path):
    write_status(tmp_path, Status("done", "c", seconds=math.nan))
    assert json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)["seconds"] is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"state": "dancing", "config_hash": "c"}', "3", '{"state": "done"}'])
def test_a_file_that_is_no_status_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(RunFolderError, match="status.json"):
        read_status(tmp_path)


def test_a_status_that_can_not_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="status.json"):
        write_status(tmp_path / "nowhere", Status("running", "c"))


def test_a_hash_ignores_order_and_the_ignored_keys_with_all_below_them():
    ignored = ["name", "tracker", "trainer.keep_last"]
    first = config_hash(CONFIG, ignored)
    other = {
        "list": [1, {"b": 2}],
        "tracker": {"mode": "online", "more": 1},
        "trainer": {"keep_last": 9, "epochs": 8},
        "seed": 1,
        "name": "b",
    }
    assert config_hash(other, ignored) == first
    assert config_hash(CONFIG | {"seed": 2}, ignored) != first
    assert config_hash(CONFIG | {"keep_last": 2}, ignored) != first  # the dotted key, not any key of that name
    assert config_hash(CONFIG | {"list": [{"b": 2}, 1]}, ignored) != first


def test_a_hash_is_the_same_tomorrow():
    written = '{"a":[1.5,null,"ü"],"b":1}'  # what a later version must still hash
    assert config_hash({"b": 1, "a": [1.5, None, "ü"]}, []) == hashlib.sha256(written.encode()).hexdigest()


def test_a_difference_lists_key_stored_and_now():
    now = {"name": "b", "seed": 1, "trainer": {"epochs": 9, "max_steps": None}, "tracker": {}, "list": [1, {"b": 3}]}
    assert config_difference(CONFIG, now, ["name", "tracker"]) == [
        ("list", [1, {"b": 2}], [1, {"b": 3}]),
        ("trainer.epochs", 8, 9),
        ("trainer.keep_last", 2, ABSENT),
        ("trainer.max_steps", ABSENT, None),
    ]


@pytest.mark.parametrize(("stored", "now"), [(1, 1.0), (True, 1), ([1], [1.0]), ({}, {"a": 1}), (None, "None")])
def test_whatever_changes_the_hash_is_in_the_difference(stored, now):
    assert config_hash({"k": stored}, []) != config_hash({"k": now}, [])
    assert config_difference({"k": stored}, {"k": now}, [])


def test_a_config_read_back_from_json_has_the_same_hash():
    assert config_hash(json.loads(json.dumps(CONFIG)), []) == config_hash(CONFIG, [])
    assert config_difference(json.loads(json.dumps({"lr": 1e-5})), {"lr": 1e-5}, []) == []


def test_flat_gives_dotted_keys_in_order():
    assert flat(CONFIG) == {
        "name": "a",
        "seed": 1,
        "trainer.epochs": 8,
        "trainer.keep_last": 2,
        "tracker.mode": "offline",
        "list": [1, {"b": 2}],
    }


def test_looking_at_a_status_or_lock_does_not_wait_for_torch():
    code = "import sys, mmexpert.engine.status, mmexpert.engine.lock; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
