"""The lines of progress for people, cross-validation.md section 3: which terms stand in them."""

import re

import pytest

from mmexpert.engine.console import Console

TERMS = {
    "superclip": ({"loss_class": 1.5028, "loss_clip": 1.1816}, r"Class: 1\.5028, Contrastive: 1\.1816", r"cls=1\.5028, clip=1\.1816"),
    "clip": ({"loss_clip": 1.1816}, None, r"clip=1\.1816"),
    "superclip_token": ({"loss_clip": 1.1816, "loss_token": 2.5}, r"Contrastive: 1\.1816, Token: 2\.5000", r"clip=1\.1816, tok=2\.5000"),
    "composite": (
        {"loss_class": 1.0, "loss_clip": 1.1816, "loss_token": 2.5},
        r"Class: 1\.0000, Contrastive: 1\.1816, Token: 2\.5000",
        r"cls=1\.0000, clip=1\.1816, tok=2\.5000",
    ),
}


@pytest.mark.parametrize("loss", TERMS)
def test_lines_of_progress_name_every_term_that_the_loss_has(caplog, loss):
    terms, told, short = TERMS[loss]
    row = {
        f"{part}/{name}": value for part in ("train", "valid") for name, value in (terms | {"loss_total": 2.6845, "acc": 0.1225}).items()
    }
    console = Console("[fold 2/5] ", 17, ["map"])
    with caplog.at_level("INFO"):
        console.step(row | {"epoch": 1, "step": 17, "lr/all": 1e-3, "data_time": 0.0, "batch_time": 1.0})
        console.epoch(row | {"epoch": 1, "valid/map": 0.5})
    step, train, val = caplog.messages
    assert re.search(rf"^\[fold 2/5\] Epoch 1 .*loss=2\.6845, {short}, acc=12\.25%", step), step
    beside = "" if told is None else rf" \({told}\)"
    assert re.search(rf"Train Loss: 2\.6845{beside}, Train Acc: 12\.25%$", train), train
    assert re.search(rf"Val Loss: 2\.6845{beside}, Val Acc: 12\.25%, Val map: 0\.50$", val), val
