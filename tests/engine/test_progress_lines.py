"""What a run prints while it goes on: the lines of a run's log, matched as a person's script would, and the numbers that stand in them."""

import logging
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from mmexpert.engine.console import Console
from mmexpert.engine.meter import Meter
from mmexpert.engine.progress import Choice, Progress
from mmexpert.engine.progress_lines import summary, terms

F, P = r"(\d+\.\d{4})", r"(\d+\.\d{2})%"
MEANS = {"loss_total": 2.68447, "loss_class": 1.50284, "loss_clip": 1.18163, "acc": 0.12254}
LOSSES = {
    "superclip": (MEANS, rf"loss={F}, cls={F}, clip={F}, acc={P}", rf"Loss: {F} \(Class: {F}, Contrastive: {F}\), \w+ Acc: {P}"),
    "clip": ({k: MEANS[k] for k in ("loss_total", "loss_clip", "acc")}, rf"loss={F}, clip={F}, acc={P}", rf"Loss: {F}, \w+ Acc: {P}"),
    "superclip_token": (
        {"loss_total": 5.2, "loss_clip": 1.18, "loss_token": 4.02, "acc": 0.1},
        rf"loss={F}, clip={F}, tok={F}, acc={P}",
        rf"Loss: {F} \(Contrastive: {F}, Token: {F}\), \w+ Acc: {P}",
    ),
    "composite": (
        MEANS | {"loss_token": 4.02},
        rf"loss={F}, cls={F}, clip={F}, tok={F}, acc={P}",
        rf"Loss: {F} \(Class: {F}, Contrastive: {F}, Token: {F}\), \w+ Acc: {P}",
    ),
}


def row(means: dict[str, float], epoch: int = 1, step: int = 2) -> dict[str, float]:
    history = {f"train/{name}": value for name, value in means.items()}
    history |= {f"valid/{name}": value for name, value in means.items()} | {"valid/map": 0.15571, "valid/RSum": 123.4}
    return history | {"epoch": epoch, "step": step, "lr/all": 1e-3, "data_time": 0.0, "batch_time": 1.0}


def epoch_of(console: Console, means: dict[str, float]) -> None:
    """An epoch of three steps, of which the second is logged, and a validation of two batches that the evaluator walks through twice."""
    console.step(row(means), means, 2)
    console.trained(1, means, 3)
    console.validation(2)
    for _ in range(4):
        console.validated()
    console.epoch(row(means, step=3))


@pytest.mark.parametrize("prefix", ["", "[fold 2/5] "])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_line_of_an_epoch_has_the_form_that_is_promised(loss, prefix, caplog):
    means, bar, line = LOSSES[loss]
    with caplog.at_level(logging.INFO):
        epoch_of(Console(prefix, 3, ["acc", "map", "RSum"]), means)
    forms = [
        rf"Epoch 1 \[Train\]: 2/3 \[step 2: {bar}, lr=1.00e-03, data=0.000s\]",
        rf"Epoch 1 \[Train\]: 3/3 \[{bar}\]",
        rf"\[Val\]: 2/2 \[\d+\.\ds, {bar}\]",
        f"Train {line}",
        rf"Val {line}, Val mAP: 15\.57%, Val RSum: 123\.40",
    ]
    assert len(caplog.messages) == len(forms)
    for found, form in zip(caplog.messages, forms, strict=True):
        assert re.fullmatch(re.escape(prefix) + form, found), found


def test_on_a_terminal_bars_end_full_and_with_the_epochs_means(monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO):
        epoch_of(Console("[fold 1/2] ", 3, ["map"]), MEANS)
    shown, means = capsys.readouterr().err, "loss=2.6845, cls=1.5028, clip=1.1816, acc=12.25%"
    for head, count in (("Epoch 1 [Train]", "3/3"), ("[Val]", "2/2")):
        assert re.search(rf"\[fold 1/2\] {re.escape(head)}: 100%\|\S+\| {count} \[.*{means}\]", shown), shown
    assert [message[:22] for message in caplog.messages] == ["[fold 1/2] Train Loss:", "[fold 1/2] Val Loss: 2"]


def test_the_sources_lines_are_met_to_the_letter():
    assert terms(MEANS) == "loss=2.6845, cls=1.5028, clip=1.1816, acc=12.25%"
    valid = {"loss_total": 2.7011, "loss_class": 1.5101, "loss_clip": 1.1910, "acc": 0.1411, "map": 0.1557}
    line = "Val Loss: 2.7011 (Class: 1.5101, Contrastive: 1.1910), Val Acc: 14.11%, Val mAP: 15.57%"
    assert summary("Val", valid, ["acc", "map"]) == line


def test_step_rows_are_means_since_the_last_row_and_the_bar_shows_means_of_the_epoch():
    rows, bars = [], []
    tracker = SimpleNamespace(log_step=rows.append)
    console = SimpleNamespace(step=lambda row, means, done: bars.append((means, done)))
    ranks = SimpleNamespace(
        rank=0, processes=2, sum=lambda values: 2 * values, largest=lambda value: value
    )  # another rank with the same numbers
    meter = Meter(tracker, console, ranks, torch.device("cpu"), 2, 8, 8)
    module = SimpleNamespace(scales=lambda: {"logit_scale": torch.tensor(14.0)})
    schedule = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"name": "all"}]), get_last_lr=lambda: [1e-3])
    progress = Progress(Choice(None, 1, None, None, 0.0))
    losses, sizes = [3.0, 1.0, 2.0, 6.0, 5.0, 1.0, 4.0, 8.0], [8, 4] * 4  # two micro-batches a step
    for step in range(4):
        for i in (2 * step, 2 * step + 1):
            progress.add({"loss_total": torch.tensor(losses[i])}, sizes[i])
        progress.advance(8)
        meter.step(progress, torch.tensor(0.5), module, schedule)
    weighted = [loss * size for loss, size in zip(losses, sizes, strict=True)]
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["train/loss_total"] for row in rows] == pytest.approx([sum(weighted[:4]) / 24, sum(weighted[4:]) / 24])
    assert (rows[0]["train/grad_norm"], rows[0]["train/logit_scale"]) == (0.5, 14.0)
    assert [(means["loss_total"], done) for means, done in bars] == [(sum(weighted[:4]) / 24, 2), (sum(weighted) / 48, 4)]
    assert progress.epoch_means(lambda sums: sums)["loss_total"] == sum(weighted) / 48
