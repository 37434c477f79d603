"""The chance level of the contrastive loss: what equal scores give, and the warning where training stays there."""

import logging
import math

import pytest
import torch

from mmexpert.engine.chance import chance_loss, contrastive_rows, warn_of_chance
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss


@pytest.mark.parametrize("keys", [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 2]])
def test_chance_is_the_loss_of_equal_scores_whatever_the_positives(keys):
    loss, keys = ClipLoss(0.07, True, "out", "both"), torch.tensor(keys)
    given = loss.from_scores(torch.full((6, 6), 0.3), keys[:, None] == keys)["loss_clip"].detach()
    assert chance_loss(loss, 6) == pytest.approx(float(given), abs=1e-6)


def test_losses_that_have_no_such_level_have_none():
    assert chance_loss(SigLipLoss(0.1, True, -10.0, 1.0), 64) is None
    assert chance_loss(ClipLoss(0.07, True, "in", "both"), 64) is None and chance_loss(ClipLoss(0.07, True, "out", "both"), 1) is None


def test_accumulation_contrasts_micro_batches_alone():
    assert contrastive_rows({"batch_size": 64, "accumulation": 4}) == 16
    assert contrastive_rows({"batch_size": 64, "accumulation": 4, "accumulate": "features"}) == 64


@pytest.mark.parametrize("share, warned", [(1.0, True), (0.981, True), (1.019, True), (0.97, False), (1.03, False)])
def test_an_epoch_within_two_percent_of_chance_is_warned_of(caplog, share, warned):
    with caplog.at_level(logging.WARNING):
        warn_of_chance({"epoch": 3, "train/loss_clip": share * math.log(16)}, math.log(16), 16)
    assert ("epoch 3: mean loss_clip" in caplog.text and "ln(16) = 2.7726" in caplog.text) == warned


def test_an_epoch_without_the_loss_or_a_loss_without_a_level_says_nothing(caplog):
    warn_of_chance({"epoch": 1, "train/loss_clip": None}, math.log(16), 16)
    warn_of_chance({"epoch": 1, "train/loss_clip": 2.77}, None, 16)
    assert not caplog.text
