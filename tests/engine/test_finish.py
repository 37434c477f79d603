"""What a fold reports is of the epoch whose weights were scored: the best, or the last where cv.selection=last."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmexpert.engine import finish
from mmexpert.engine.folds import Fold
from mmexpert.engine.progress import Choice, Progress
from mmexpert.evaluators.base import Evaluation
from mmexpert.refit import final_session

TOLD = {
    "part": "test",
    "dataset": "toy",
    "rows": 4,
    "n_classes_used": 2,
    "chance": {},
    "by": "linear head",
    "groups": 4,
    "prior": "as_trained",
}
ACC = [0.5, 0.75, 0.25]  # the best epoch is the second


def trained(values=ACC) -> Progress:
    progress = Progress(Choice(None, 3, None, None, 0.0))
    for value in values:
        progress.close_epoch({"valid/acc": value, "valid/loss_total": 1 - value}, ["valid/acc", "valid/loss_total"])
    return progress


def written(folder, selection, progress, monkeypatch):
    monkeypatch.setattr(finish, "write_plots", lambda *_: None)
    folder.mkdir(exist_ok=True)
    config = {"name": "toy", "cv": {"selection": selection}}
    finished = finish.write_results(folder, config, progress, {"test": Evaluation({"acc": 0.3}, TOLD)}, {}, None, 1.0, {})
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best_value"] == finished.best_value and metrics["best_epoch"] == finished.metrics["best_epoch"]
    assert json.loads((folder / "training_results.json").read_text())["best_epoch"] == metrics["best_epoch"]
    return metrics


@pytest.mark.parametrize("selection, epoch, acc", [("inner", 2, 0.75), ("outer", 2, 0.75), ("last", 3, 0.25)])
def test_figures_epoch_and_value_are_those_of_the_weights_that_are_scored(tmp_path, monkeypatch, caplog, selection, epoch, acc):
    with caplog.at_level("INFO"):
        metrics = written(tmp_path, selection, trained(), monkeypatch)
    assert (metrics["best_epoch"], metrics["best_value"], metrics["monitor"]) == (epoch, acc, "valid/acc")
    assert (metrics["valid/acc"], metrics["valid/loss_total"], metrics["test/acc"]) == (acc, 1 - acc, 0.3)
    kept = {2: "best epoch 2: valid/acc 0.7500", 3: "last epoch is reported (cv.selection=last): 3, valid/acc 0.2500; best was epoch 2"}
    assert kept[epoch] in caplog.text


def test_a_last_epoch_without_a_monitored_value_reports_none_rather_than_an_earlier_ones(tmp_path, monkeypatch):
    progress = trained()
    progress.close_epoch({"train/loss_total": 1.0}, ())  # not validated
    metrics = written(tmp_path, "last", progress, monkeypatch)
    assert metrics["best_epoch"] == 4 and metrics["best_value"] is None and "valid/acc" not in metrics
    assert finish.reported(trained([0.5, float("nan")]), last=True) == (2, None)


@dataclass
class Started:
    folder: Path
    cfg: dict = field(default_factory=lambda: {"trainer": {"epochs": 9, "max_steps": 7, "early_stopping": {"patience": 2}}})


@pytest.mark.parametrize("selection, epochs", [("inner", 2), ("last", 3)])
def test_refit_trains_as_long_as_the_reported_epochs(tmp_path, monkeypatch, selection, epochs):
    folds = [Fold(number, 1, ["a"], [], ["b"], []) for number in (1, 2)]
    for fold in folds:
        written(fold.folder(tmp_path), selection, trained(), monkeypatch)
    assert final_session(Started(tmp_path), folds).cfg["trainer"]["epochs"] == epochs
