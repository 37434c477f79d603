"""Every saved item matters: a checkpoint without one of them does not continue the run, or is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mmexpert.engine import step_folder as disk

_spec = importlib.util.spec_from_file_location("small_run", Path(__file__).with_name("test_checkpoint.py"))
_small_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_small_run)
train = _small_run.train
STOP = 10  # after the best epoch (2), in the midst of epoch 3, with sums, bad epochs and moments under way

ITEMS = [
    "model",
    "optimizer",
    "optimizer_names",
    "schedule",
    "identity",
    *(f"progress.{name}" for name in ("epoch", "step", "step_in_epoch", "samples", "pending", "history", "best", "early_stopping")),
    "random.python",
    "random.numpy",
    "random.torch",
    "sums",
]
BLANK = {
    "epoch": 1,
    "step": 3,
    "step_in_epoch": 0,
    "samples": 0,
    "history": [],
    "best": {},
    "early_stopping": {"best": None, "bad_epochs": 0},
}


def without(folder, item):
    """The newest checkpoint, written again without an item, with a manifest that agrees; a value that a fresh run has stands for it."""
    step = disk.latest(folder)
    contents = disk.read_manifest(step)
    state, rank = disk.read_state(step / disk.STATE), disk.read_state(step / "rng_0.pt")
    weights = {name: tensor.clone() for name, tensor in disk.read_weights(step).items()}
    head, _, name = item.partition(".")
    if item == "model":
        weights = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    elif item == "sums":
        rank["sums"] = []
    elif head == "random":
        fresh = disk.read_state(disk.step_folders(folder)[0] / "rng_0.pt")["random"]
        rank["random"][name] = fresh[name]
    elif head == "progress" and name in BLANK:
        state["progress"][name] = BLANK[name]
    elif head == "progress":
        del state["progress"][name]
    elif item == "schedule":
        state["schedule"]["last_epoch"] = 0
    elif item == "optimizer":
        state["optimizer"]["state"] = {}
    else:
        state[item] = [] if item == "optimizer_names" else {}
    for path in step.iterdir():
        path.unlink()  # its hard links stay whole
    disk.write_weights(step / disk.MODEL, weights)
    disk.write_state(step / disk.STATE, state)
    disk.write_state(step / "rng_0.pt", rank)
    contents["files"] = {path.name: disk.described(path) for path in step.iterdir()}
    disk.write_manifest(step, contents)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("item", ITEMS)
def test_a_resume_without_one_saved_item_differs_or_is_refused(tmp_path, never_stopped, item):
    train(tmp_path, stop_after=STOP)
    assert disk.latest(tmp_path).name == disk.step_name(STOP)
    without(tmp_path, item)
    try:
        ended = train(tmp_path)
    except Exception as error:  # noqa: BLE001  refused, whatever the words
        assert item in ("optimizer_names", "identity", "progress.pending"), error
    else:
        assert ended != never_stopped


def test_the_same_rewriting_with_every_item_continues_exactly(tmp_path, never_stopped):
    train(tmp_path, stop_after=STOP)
    step = disk.latest(tmp_path)
    state = disk.read_state(step / disk.STATE)
    contents = disk.read_manifest(step)
    (step / disk.STATE).unlink()
    disk.write_state(step / disk.STATE, state)
    contents["files"][disk.STATE] = disk.described(step / disk.STATE)
    disk.write_manifest(step, contents)
    assert train(tmp_path) == never_stopped
