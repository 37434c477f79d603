import csv
import hashlib
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmexpert.engine.files import csv_cell, csv_text, plain, sha256_file, strict_json, write_atomic
from mmexpert.types import StorageError


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "history.json"
    write_atomic(path, b"one")
    write_atomic(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_bytes_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    write_atomic(path, b"old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"history.json.*3 bytes.*No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_json_is_strict_keeps_the_order_of_keys_and_takes_numpy_values():
    value = {"b": math.nan, "a": [np.float32(0.5), -math.inf, np.int64(3)], "path": Path("x"), "ü": (True, None)}
    assert strict_json(value) == '{"b": null, "a": [0.5, null, 3], "path": "x", "ü": [true, null]}\n'
    assert json.loads(strict_json(value, indent=2), parse_constant=pytest.fail)["b"] is None


def test_plain_keeps_nan_and_tensors_and_names_the_place_of_anything_else():
    tensor = torch.ones(2)
    kept = plain({"a": np.float64("nan"), "t": tensor, "n": (np.bool_(True),)})
    assert type(kept["a"]) is float and math.isnan(kept["a"]) and kept["t"].equal(tensor) and kept["n"] == (True,)
    with pytest.raises(TypeError, match=r"^a\.b\[1\] is a set"):
        plain({"a": {"b": [1, {2}]}})


def test_the_checksum_is_sha256_of_the_bytes(tmp_path):
    content = os.urandom(3 * 2**20 + 7)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text):
    assert csv_cell(text) == "'" + text


def test_numbers_and_plain_text_are_left_alone():
    assert [csv_cell(value) for value in (-1.5, 0, "a=b", "", None, True)] == [-1.5, 0, "a=b", "", "", True]


def test_a_csv_has_the_columns_of_all_rows_and_empty_cells_where_a_row_lacks_one():
    text = csv_text([{"step": 1, "a": -0.5}, {"step": 2, "b": '=x,"y"'}])
    assert list(csv.reader(io.StringIO(text))) == [["step", "a", "b"], ["1", "-0.5", ""], ["2", "", '\'=x,"y"']]
    assert csv_text([]) == "\n"
