"""What evaluate says: of a misspelt key of its own, of a folder above the runs, and where its figures lie."""

import json
import math
import sys

import pytest

from mmexpert import build, evaluate
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.training import train_run
from mmexpert.types import ConfigError, RunFolderError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.application()


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Two names with a run each, seen from the folder above outputs/."""
    monkeypatch.chdir(tmp_path)
    for place in ("hip/default", "quick/default", "quick/default/model", "quick/seed=1"):
        (tmp_path / "outputs" / place).mkdir(parents=True)
        (tmp_path / "outputs" / place / "config.json").write_text(json.dumps({"config": {"seed": 1, "dataset": {"root": "a"}}}))
    return tmp_path / "outputs"


def test_a_folder_above_the_runs_is_answered_with_the_runs_below_it(outputs):
    with pytest.raises(RunFolderError) as told:
        evaluate.stored_run((outputs / "quick").relative_to(outputs.parent))
    assert str(told.value).endswith("; below it there are run=outputs/quick/default, run=outputs/quick/seed=1")
    with pytest.raises(RunFolderError, match="; there are run=outputs/hip/default, run=outputs/quick/default, run=outputs/quick/seed=1$"):
        evaluate.stored_run((outputs / "nowhere").relative_to(outputs.parent))


def test_a_misspelt_key_of_the_command_itself_is_answered_with_it(outputs, monkeypatch):
    with pytest.raises(ConfigError, match="splt: command and stored run have no such key: did you mean 'split'.*checkpoint.*run.*split"):
        run(monkeypatch, "run=outputs/hip/default", "splt=valid")
    with pytest.raises(ConfigError, match="dataset.rot: the stored run has no such key: did you mean 'root'. There are root$"):
        run(monkeypatch, "run=outputs/hip/default", "dataset.rot=b")


def test_the_figures_of_a_run_are_followed_by_their_folder_and_nothing_of_training(tiny_run, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        run(monkeypatch, f"run={tiny_run}", "split=valid", "trainer.batch_size=60")  # of 64 clips 4 would be left out of each epoch
    out = tiny_run / "evaluate" / "valid,trainer.batch_size=60"
    assert f"in {out}" in caplog.messages and (out / "metrics.json").exists()
    assert "training samples" not in caplog.text and "fold" not in caplog.text


def test_stored_weights_have_the_runs_own_bias_and_the_whole_sequence_term_within_its_ramp(tiny, tmp_path, monkeypatch):
    overrides = [*tiny, "loss=siglip", "loss.init_bias=auto", "optimizer.lr=1e-9", "similarity=global", "sequence_ramp_epochs=4"]
    cfg, folder = check(composed(*overrides, "trainer.epochs=1")), tmp_path / "radar" / "ramp"
    train_run(cfg, folder, overrides, ())
    row = json.loads((folder / "history.json").read_text())[-1]
    dataset = build.build_dataset(cfg)
    keys = [int(dataset.keys[i]) for i in dataset.part("train")]
    same = sum(a == b for a in keys for b in keys) - len(keys)
    expected = (1 + 15 * same / (64 * 63)) / 16  # of batches of 16 from 64 clips
    assert row["train/logit_bias"] == pytest.approx(math.log(expected / (1 - expected)), rel=1e-4)
    assert row["train/logit_bias_seq"] == pytest.approx(row["train/logit_bias"], rel=1e-4)
    run(monkeypatch, f"run={folder}", "split=valid", "checkpoint=last")
    found = json.loads((folder / "evaluate" / "valid,checkpoint=last" / "metrics.json").read_text())
    for losses in (found, {name.removeprefix("valid/"): value for name, value in row.items()}):
        assert losses["loss_total"] == pytest.approx(losses["loss_clip"] + 0.5 * losses["loss_seq"], rel=1e-5)
    assert found["loss_total"] == pytest.approx(row["valid/loss_total"], rel=1e-6)
    assert row["train/loss_total"] < row["train/loss_clip"] + 0.5 * 0.2 * row["train/loss_seq"]  # 0, 1/16, 2/16, 3/16 of the weight
