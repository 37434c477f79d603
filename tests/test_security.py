"""Another person's run, checkpoint, array, manifest or text runs no code and leads nowhere."""

import csv
import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mmexpert
from mmexpert.config import instantiate
from mmexpert.data.arrays import ArrayFile
from mmexpert.data.cache import damage
from mmexpert.data.findings import DataFault
from mmexpert.engine import step_folder as disk
from mmexpert.engine.files import csv_cell
from mmexpert.report import write_report
from mmexpert.types import ConfigError, RunFolderError

ROOT = Path(__file__).resolve().parents[1]


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def went_off(tmp_path):
    return tmp_path / "code was run"


@pytest.mark.parametrize("form", ["torch", "pickle", "legacy torch"])
def test_a_hostile_checkpoint_runs_nothing_even_when_its_manifest_agrees(tmp_path, went_off, form):
    folder = tmp_path / "checkpoints" / "step_00000003"
    folder.mkdir(parents=True)
    disk.write_weights(folder / disk.MODEL, {"a": torch.ones(1)})
    bomb = {"progress": Bomb(went_off), "optimizer": [Bomb(went_off)]}
    if form == "pickle":
        (folder / disk.STATE).write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, folder / disk.STATE, _use_new_zipfile_serialization=form == "torch")
    files = {name: disk.described(folder / name) for name in (disk.MODEL, disk.STATE)}
    disk.write_manifest(folder, {"format": 1, "step": 3, "epoch": 1, "processes": 1, "files": files})
    assert disk.latest(tmp_path / "checkpoints") == folder
    with pytest.raises(RunFolderError, match=r"state.pt holds more than plain containers"):
        disk.read_state(folder / disk.STATE)
    assert not went_off.exists()


@pytest.mark.parametrize("name", ["../outside.pt", "/etc/passwd", "a/../../b", "sub/state.pt", "..", "a\\b"])
def test_a_manifest_that_names_a_file_elsewhere_is_not_followed(tmp_path, name):
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    (tmp_path / "outside.pt").write_bytes(b"x")
    disk.write_weights(folder / disk.MODEL, {"a": torch.ones(1)})
    entry = {"bytes": 1, "sha256": disk.sha256_file(tmp_path / "outside.pt")}
    disk.write_manifest(folder, {"format": 1, "step": 1, "epoch": 0, "processes": 1, "files": {name: entry}})
    with pytest.raises(ValueError, match="is missing|is not in the manifest"):
        disk.verified(folder)


def test_links_in_place_of_checkpoints_are_not_taken(tmp_path):
    real = tmp_path / "elsewhere"
    real.mkdir()
    disk.write_weights(real / disk.MODEL, {"a": torch.ones(1)})
    files = {disk.MODEL: disk.described(real / disk.MODEL)}
    disk.write_manifest(real, {"format": 1, "step": 9, "epoch": 0, "processes": 1, "files": files})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000009").symlink_to(real)
    assert disk.latest(tmp_path / "checkpoints") is None


def test_the_manifest_of_a_cache_folder_leads_nowhere_else(tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"../secret.txt": "0" * 64}))
    assert damage(folder) == "../secret.txt is missing"


def test_a_hostile_array_runs_nothing(tmp_path, went_off):
    path = tmp_path / "a.npy"
    np.save(path, np.array([Bomb(went_off)], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb(went_off)))
    header = f"{{'descr': __import__('pathlib').Path({str(went_off)!r}).touch(), 'fortran_order': False, 'shape': (1,)}}"
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.write(path, "range_time.npy")
    for name, member in (("a.npy", ""), ("b.npy", ""), ("c.npy", ""), ("d.npz", "range_time")):
        with pytest.raises(DataFault, match=name):
            ArrayFile(tmp_path / name, member, "r1").array()
    assert not went_off.exists()


def test_an_archive_that_declares_too_much_or_too_many_is_refused_before_it_is_unpacked(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros(1))
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for k in range(65):
            archive.writestr(f"m{k}.npy", stream.getvalue())
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("range_time.npy", stream.getvalue())
        archive.writestr("doppler_time.npy", stream.getvalue())
    content = bytearray((tmp_path / "huge.npz").read_bytes())
    for at in [k for k in range(len(content)) if content[k : k + 4] == b"PK\x01\x02"]:
        content[at + 24 : at + 28] = (3 << 30).to_bytes(4, "little")  # the directory declares 3 GiB each
    (tmp_path / "huge.npz").write_bytes(content)
    for name, text in (("many.npz", "65 members"), ("huge.npz", "at most 64 and 4 GiB")):
        with pytest.raises(DataFault, match=text):
            ArrayFile(tmp_path / name, "range_time", "r1").array()


PLACES = {
    "three levels deep": lambda bad: {"form": {"a": {"b": bad}}},
    "a list in a list": lambda bad: {"form": [[{"x": [bad]}]]},
    "under _args_ of a nested part": lambda bad: {"form": {"_target_": "mmexpert.losses.clip.ClipLoss", "_args_": [bad]}},
    "beside _partial_": lambda bad: {"form": bad | {"_partial_": True}},
    "under _recursive_ false": lambda bad: {"_recursive_": False, "form": bad},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "mmexpert.losses.clip.torch.load",
        "mmexpert.command_line.launch",
        "mmexpert.losses.clip.spread_entropy",
        "mmexpert..losses.clip.ClipLoss",
        " mmexpert.losses.clip.ClipLoss",
        "mmexpert.losses.clip.ClipLoss.__init__",
        "mmexpert.lossesx.Y",
        "mmexpert.losses.clip.nn.Module",
        "__main__.x",
        7,
        ["os.system"],
        None,
    ],
)
def test_a_dangerous_target_is_refused_in_nested_positions(place, target):
    node = {"_target_": "mmexpert.losses.clip.ClipLoss", "temperature": 0.07} | PLACES[place]({"_target_": target})
    with pytest.raises(ConfigError, match="is refused"):
        instantiate(node, "loss")


@pytest.mark.parametrize("key", ["encoder.radar._target_", "model._target_", "similarity"])
def test_a_model_folder_whose_config_names_a_foreign_class_names_it_and_imports_nothing(tiny_run, tmp_path, key, went_off):
    (tmp_path / "theirs.py").write_text(f"from pathlib import Path\nPath({str(went_off)!r}).touch()\nclass Part: ...\n")
    folder = shutil.copytree(tiny_run / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    node[last] = "theirs.Part" if last == "_target_" else {"_target_": "theirs.Part"}
    (folder / "config.json").write_text(json.dumps(config))
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"theirs.Part' is refused.*trust=\[theirs\]"):
            mmexpert.load(folder)
    finally:
        sys.path.remove(str(tmp_path))
    assert not went_off.exists() and "theirs" not in sys.modules


def test_a_stored_config_with_an_interpolation_is_refused_and_no_variable_leaks(tiny_run, tmp_path, monkeypatch):
    from mmexpert.evaluate import stored_run

    monkeypatch.setenv("PRIVATE", "do not tell")
    folder = shutil.copytree(tiny_run / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"name": "${oc.env:PRIVATE}"}))
    with pytest.raises(RunFolderError, match="nothing of it is resolved") as told:
        mmexpert.load(folder)
    assert "do not tell" not in str(told.value)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"name": "${oc.env:PRIVATE}"}}))
    with pytest.raises(ConfigError, match="plain data"):
        stored_run(run)


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>", "=cmd|'/c calc'!A1", "@SUM(A1)", "\t=1", "-2+3"]


@pytest.mark.parametrize("text", HOSTILE)
def test_captions_classes_and_run_names_become_neither_markup_nor_formulas(tmp_path, text):
    from mmexpert.engine.results import write_predictions

    run = tmp_path / text.replace("/", "_") / "default"
    run.mkdir(parents=True)
    write_predictions(run, [{"id": text, "caption": text, "score": -0.5}], {"per_class": [{text: 1, "class": text}]})
    (run / "result.txt").write_text(text)
    (run / "config.json").write_text(json.dumps({"config": {"dataset": {text: text}}, "overrides": []}))
    write_report(run)
    page = (run / "report.html").read_text()
    assert not any(mark in page for mark in ("<script", "<img src=x", "<b>"))
    for name in ("predictions.csv", "per_class.csv"):
        with open(run / name, encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) or cell.startswith("-2") for cell in row)
    assert csv_cell(-0.5) == -0.5


def test_no_file_of_the_package_unpacks_archives_or_runs_a_shell():
    banned = ("extractall", "unpack_archive", "shell=True", "os.system(", "os.popen(", "exec(", "__import__(", "marshal", "yaml.load(")
    for path in sorted((ROOT / "mmexpert").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in banned if word in text], path
