"""Frozen towers stay as they were, bit by bit; rates that would destroy a pretrained one are said."""

import logging

import pytest
import torch
from torch import nn

from mmexpert.build import build_objective
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.encoders.clip import ClipImage
from mmexpert.encoders.image import ConvImage, TimmImage
from mmexpert.encoders.text import ScratchText
from mmexpert.encoders.tokenizer import scratch_tokenizer
from mmexpert.engine.optim import parameter_groups, warn_of_few_steps, warn_of_rates
from mmexpert.models.dual_encoder import DualEncoder
from mmexpert.types import ConfigError

TEXTS = ["a red circle", "a blue square", "a green circle", "two small squares"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
COMMON = {"dim": 16, "lr_scale": 1.0, "side": 64, "in_chans": 3, "mean": MEAN, "std": STD}


def image_tower(kind, freeze_backbone, norm="batch"):
    torch.manual_seed(0)
    given = COMMON | {"freeze_backbone": freeze_backbone, "norm": norm}
    if kind == "conv":
        return ConvImage(**given, channels=[8, 12])
    if kind == "timm":
        return TimmImage(**given, name="test_resnet", weights=None, pooling="own")
    return ClipImage(**given, name="RN50" if kind == "clip resnet" else "ViT-B/32", weights=None, backend="auto", layers=1)


def objective_of(image, freeze_text):
    tokenizer = scratch_tokenizer(TEXTS * 2, 200, 16)
    bert = {"width": 16, "layers": 1, "heads": 2, "feedforward": 32, "dropout": 0.1, "init_std": 0.02}
    text = ScratchText(tokenizer, 16, 1.0, bert, 200, 16, freeze_text)
    model = DualEncoder("image", "text", 16, {"image": image, "text": text}, None, None)
    return build_objective(check(composed()), model, None), tokenizer(TEXTS)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(objective, text, steps):
    optimizer = torch.optim.AdamW(parameter_groups(objective, 1e-2, 0.1))
    batch = {"image": torch.randn(4, 3, 64, 64), "text": text, "positive_key": torch.arange(4)}
    for _ in range(steps):
        objective.train()
        optimizer.zero_grad()
        objective(batch)[0]["loss_total"].backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["conv", "timm", "clip vit", "clip resnet"])
def test_after_three_steps_a_frozen_backbone_is_bit_equal_and_the_projection_has_moved(kind):
    objective, text = objective_of(image_tower(kind, freeze_backbone=True), freeze_text=True)
    towers = objective.model.encoders
    before = {role: snapshot(tower) for role, tower in towers.items()}
    train(objective, text, 3)
    for role, tower in towers.items():
        after = tower.state_dict()
        moved = {name for name, value in before[role].items() if not torch.equal(value, after[name])}
        assert moved and all(name.startswith(("projection", "joint")) for name in moved), (role, moved)


@pytest.mark.parametrize("kind", ["conv", "timm", "clip resnet"])
def test_norm_frozen_keeps_the_statistics_while_the_weights_learn(kind):
    objective, text = objective_of(image_tower(kind, freeze_backbone=False, norm="frozen"), freeze_text=False)
    image = objective.model.encoders["image"]
    before = snapshot(image)
    train(objective, text, 1)
    after = image.state_dict()
    statistics = [name for name in before if "running_" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    assert any(not torch.equal(before[name], after[name]) for name, p in image.named_parameters() if p.ndim == 4)


def test_a_run_in_which_nothing_is_trainable_is_an_error():
    objective, _ = objective_of(image_tower("conv", freeze_backbone=True), freeze_text=True)
    for tower in objective.model.encoders.values():
        tower.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing in the model can be trained"):
        parameter_groups(objective, 1e-3, 0.0)


def test_a_pretrained_tower_above_1e4_is_warned_of_and_a_frozen_or_slow_one_is_not(caplog):
    image = image_tower("conv", freeze_backbone=False)
    objective, _ = objective_of(image, freeze_text=False)
    warn_of_rates(objective, 1e-3)
    assert "encoder.image" not in caplog.text
    image.fine_tuned = True
    with caplog.at_level(logging.WARNING):
        warn_of_rates(objective, 1e-3)
    assert "optimizer.lr=0.001 x encoder.image.lr_scale=1 is 0.001 for a pretrained tower" in caplog.text
    caplog.clear()
    warn_of_rates(objective, 1e-4)
    image.lr_scale = 0.05
    warn_of_rates(objective, 1e-3)
    assert "encoder.image" not in caplog.text


def test_a_run_too_short_for_the_statistics_of_batch_norm_is_told_of_and_no_other_is(caplog):
    learning, _ = objective_of(image_tower("conv", freeze_backbone=False), freeze_text=False)
    frozen, _ = objective_of(image_tower("conv", freeze_backbone=True), freeze_text=False)
    with caplog.at_level(logging.WARNING):
        warn_of_few_steps(learning, 100)
        warn_of_few_steps(frozen, 24)
    assert "optimizer steps" not in caplog.text
    with caplog.at_level(logging.WARNING):
        warn_of_few_steps(learning, 24)
    assert "24 optimizer steps in all" in caplog.text and "a smaller trainer.batch_size" in caplog.text


def test_a_towers_own_rate_is_its_share_of_the_optimizers():
    image = image_tower("conv", freeze_backbone=False)
    image.lr_scale = 0.05
    objective, _ = objective_of(image, freeze_text=False)
    rates = {group["name"]: group["lr"] for group in parameter_groups(objective, 1e-3, 0.0)}
    assert rates["image"] == pytest.approx(5e-5) and rates["text"] == 1e-3


def test_batchnorm_is_what_norm_frozen_is_about():
    tower = image_tower("clip resnet", freeze_backbone=False, norm="frozen")
    assert tower.frozen_modules() and all(isinstance(part, nn.BatchNorm2d) for part in tower.frozen_modules())
