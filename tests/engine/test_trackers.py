"""Each tracking service, the real package: offline, silent, private, and the same run after a resume."""

import builtins
import importlib.util
import json
import logging
import re
import signal
import socket
import sys
import zipfile

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from mmexpert.engine.tracker_services import SERVICES
from mmexpert.engine.tracking import Tracker, TrackerSettings

CONFIG = {"name": "radar", "loss": {"temperature": 0.07, "directions": ["a", "b"], "bias": None}, "flag": True, "service": "hunter2hunter2"}
IDENTIFIED = ["wandb", "swanlab", "comet", "mlflow"]


def reset():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def alone(monkeypatch):
    """No keyboard, no network, a secret in the environment, a telling command line. Yields the addresses that were asked for."""
    asked = []

    def refused(*where, **_):
        raise EOFError("a prompt")

    def connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            asked.append(address)
            raise OSError("no network")
        return real(self, address)

    def lookup(host, *rest, **named):
        if host not in (None, "", "127.0.0.1", "::1", "localhost"):
            asked.append(host)
            raise socket.gaierror("no network")
        return look(host, *rest, **named)

    real, look = socket.socket.connect, socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(builtins, "input", refused)
    monkeypatch.setattr("getpass.getpass", refused)
    monkeypatch.setattr(sys, "argv", ["train", "secretive=commandline"])
    monkeypatch.setenv("OUR_SERVICE_TOKEN", "hunter2hunter2")
    for service in SERVICES.values():
        monkeypatch.delenv(service.key or "NONE", raising=False)
    with open("/dev/null") as stdin:
        stdin.close()
        monkeypatch.setattr(sys, "stdin", stdin)
        reset()
        yield asked
    reset()


@pytest.fixture(autouse=True)
def nothing_is_left_beside_the_run(tmp_path, monkeypatch):
    """Services like to write into the folder of the shell."""
    shell = tmp_path.parent / f"{tmp_path.name}_shell"
    shell.mkdir()
    monkeypatch.chdir(shell)
    yield
    left = [path.name for path in shell.iterdir() if path.name != "outputs"]
    assert left == [], f"left in the shell's folder: {left}"


def settings(log_with, **given):
    plain = {"project": "mmExpert", "mode": "offline", "group": "sweep_1", "tags": ["night"], "private": True, "log_code": False}
    return TrackerSettings(**{"log_with": log_with} | plain | given)


def sitting(folder, log_with, steps, **given):
    """One sitting of a run: a row a step, an epoch's row, a plot. Returns the tracker, finished."""
    if importlib.util.find_spec(SERVICES[log_with].module) is None:  # not importorskip: what is set before the import counts
        pytest.skip(f"{SERVICES[log_with].module} is not installed")
    reset()
    accelerator = Accelerator(cpu=True, log_with=SERVICES[log_with].module, project_dir=str(folder))
    tracker = Tracker(folder, settings(log_with, **given), accelerator, "radar/default", CONFIG)
    for number in steps:
        tracker.log_step({"step": number, "epoch": 1, "train/loss_total": 2.0 / number, "valid/undefined": None})
    row = {"epoch": 1, "step": steps[-1], "train/loss_total": 1.75, "valid/radar_to_text_R@1": 12.5, "note": "a word"}
    tracker.log_epoch(row, [row])
    (folder / "plots").mkdir(exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(folder / "plots" / "training_curves.png")
    tracker.log_images(folder / "plots", steps[-1])
    tracker.finish()
    return tracker


def stored(folder):
    """(name, bytes) of every file below, members of archives too."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path.name}/{name}", archive.read(name)) for name in archive.namelist())


def pictures_sent(folder, log_with):
    files = dict(stored(folder / log_with))
    if log_with == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder / "tensorboard")).Reload().Tags()["images"]
    if log_with == "comet":
        return [name for name, content in files.items() if content[:8] == b"\x89PNG\r\n\x1a\n"]
    return [name for name in files if name.endswith(".png")]


@pytest.mark.parametrize("log_with", list(SERVICES))
def test_a_service_takes_numbers_and_plots_offline_and_asks_for_nothing(tmp_path, log_with, alone, caplog, capsys):
    before = signal.getsignal(signal.SIGTERM)
    tracker = sitting(tmp_path, log_with, [1, 2])
    assert tracker.working, [record.message for record in caplog.records]
    assert alone == [], "addresses that were asked for"
    assert signal.getsignal(signal.SIGTERM) is before, "our stop signals are taken"
    assert any(content for _, content in stored(tmp_path / log_with))
    assert pictures_sent(tmp_path, log_with)
    assert not [record for record in caplog.records if record.name.startswith("mmexpert")]


@pytest.mark.parametrize("log_with", list(SERVICES))
def test_a_private_run_holds_neither_host_nor_command_line_nor_secret(tmp_path, log_with, alone):
    assert sitting(tmp_path, log_with, [1]).working
    host = socket.gethostname().encode()
    for name, content in stored(tmp_path):
        assert b"hunter2" not in content, f"{name} holds a secret of the environment"
        assert b"secretive=commandline" not in content, f"{name} holds the command line"
        assert log_with == "tensorboard" or len(host) < 4 or host not in content, f"{name} holds the host's name"


@pytest.mark.parametrize("log_with", IDENTIFIED)
def test_a_resumed_run_goes_on_under_the_id_of_the_first_sitting(tmp_path, log_with, alone):
    assert sitting(tmp_path, log_with, [1, 2]).working
    first = json.loads((tmp_path / "tracker.json").read_text())
    assert sitting(tmp_path, log_with, [3, 4]).working
    assert json.loads((tmp_path / "tracker.json").read_text()) == first
    run_id = first[log_with]
    names = [path.name for path in (tmp_path / log_with).rglob("*")]
    if log_with == "wandb":
        assert names.count(f"run-{run_id}.wandb") == 2
    elif log_with == "mlflow":
        (losses,) = (tmp_path / "mlflow").glob(f"*/{run_id}/metrics/train/loss_total")
        assert {line.split()[2] for line in losses.read_text().splitlines()} == {"1", "2", "3", "4"}
        assert list((tmp_path / "mlflow").glob(f"*/{run_id}/metrics/valid/radar_to_text_R_at_1"))
    elif log_with == "comet":
        assert sum(run_id in name for name in names if name.endswith(".zip")) == 2
    else:
        assert sum(run_id in content.decode(errors="ignore") for name, content in stored(tmp_path / "swanlab")) >= 2


@pytest.mark.parametrize("log_with", IDENTIFIED)
def test_online_without_a_key_is_one_line_of_advice_and_offline(tmp_path, log_with, alone, caplog, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # a login of the machine's user
    with caplog.at_level(logging.WARNING, "mmexpert"):
        assert sitting(tmp_path, log_with, [1], mode="online").working
    told = [record.message for record in caplog.records if record.name.startswith("mmexpert")]
    assert len(told) == 1 and SERVICES[log_with].key in told[0]
    assert alone == []


@pytest.mark.parametrize("log_with", ["wandb", "comet", "mlflow"])
def test_log_code_sends_the_sources_of_the_package_and_nothing_else_does(tmp_path, log_with, alone):
    marker = b"def fit("  # of engine/loop.py
    for log_code in (False, True):
        folder = tmp_path / str(log_code)
        folder.mkdir()
        assert sitting(folder, log_with, [1], log_code=log_code).working
        assert any(marker in content for _, content in stored(folder)) == log_code


def test_a_service_that_takes_no_code_says_so(tmp_path, alone, caplog):
    with caplog.at_level(logging.WARNING, "mmexpert"):
        sitting(tmp_path, "tensorboard", [1], log_code=True)
    assert [re.search("takes no code", record.message) is not None for record in caplog.records] == [True]


def test_tensorboard_files_of_a_fold_lie_in_the_fold(tmp_path, alone, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    fold = Path("outputs/hip/default/fold_1")
    fold.mkdir(parents=True)
    sitting(fold, "tensorboard", [1])
    assert list(fold.glob("tensorboard/events.out.tfevents.*"))
    assert not list(fold.rglob("outputs"))
