"""Class heads: formulas in plain loops, the range of the scale, and what is refused."""

import math

import pytest
import torch
from torch import nn

from mmexpert.models.heads import ClassPrompts, LinearHead, TextHead, class_features
from mmexpert.types import ClassTable, ConfigError

CLASSES = ClassTable(("a", "b", "c"), (("x", "y"), ("z",), ("u", "v", "w")), (1, 1, 1))


def letters(texts):
    return {"input_ids": torch.tensor([[ord(t)] for t in texts]), "attention_mask": torch.ones(len(texts), 1, dtype=torch.int64)}


def rows(count, seed=0):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_prompts_lie_class_by_class_in_the_order_of_the_table():
    prompts = ClassPrompts.of(CLASSES, letters)
    assert "".join(chr(i) for i in prompts.input_ids[:, 0]) == "xyzuvw"
    assert prompts.owner.tolist() == [0, 0, 1, 2, 2, 2]


def test_a_class_without_a_text_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match=r"dataset\.class_texts: class 'b' has no text"):
        ClassPrompts.of(ClassTable(("a", "b"), (("x",), ()), (1, 1)), letters)


def test_a_class_feature_is_the_normalised_mean_of_normalised_prompts():
    prompts, owner = rows(6), torch.tensor([0, 0, 1, 2, 2, 2])
    features = class_features(prompts * torch.tensor([1.0, 50, 3, 1, 9, 2])[:, None], owner, 3)  # lengths say nothing
    for k in range(3):
        members = [prompts[p] / prompts[p].norm() for p in range(6) if owner[p] == k]
        mean = sum(members) / len(members)
        torch.testing.assert_close(features[k], mean / mean.norm())


def test_text_logits_are_the_scale_times_the_cosine():
    head, features, texts = TextHead(0.07, 0.0, CLASSES), rows(5), nn.functional.normalize(rows(3, 1), dim=1)
    expected = [[float(f @ t / f.norm()) / 0.07 for t in texts] for f in features]
    torch.testing.assert_close(head(features, texts), torch.tensor(expected))


def test_the_scale_starts_at_one_over_the_temperature_learns_and_stays_within_1_and_100():
    head = TextHead(0.07, 0.0, CLASSES)
    assert head.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    head(rows(5), rows(3, 1)).square().sum().backward()
    assert head.logit_scale.grad.abs() > 0
    for value, expected in ((math.log(500), 100), (-2.0, 1), (math.log(20), 20)):
        nn.init.constant_(head.logit_scale, value)
        head.clamp_()
        assert head.logit_scale.exp().item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.0, 0.005, 1.5])
def test_a_temperature_out_of_range_is_an_error(temperature):
    with pytest.raises(ConfigError, match=r"model\.head\.temperature=.*0\.01\.\.1"):
        TextHead(temperature, 0.0, CLASSES)


def test_without_a_class_term_the_text_head_is_frozen_and_the_linear_one_refused():
    head = TextHead(0.07, 0.0, CLASSES)
    head.without_loss()
    assert not head.logit_scale.requires_grad
    with pytest.raises(ConfigError, match="model/head=linear learns from a class term alone"):
        LinearHead(4, 0.0, CLASSES).without_loss()


def test_linear_logits_are_a_linear_map_in_fp32_even_under_autocast():
    head, features = LinearHead(4, 0.0, CLASSES), rows(5)
    expected = features @ head.linear.weight.T + head.linear.bias
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features, None)
    torch.testing.assert_close(logits, expected)
    assert logits.dtype == torch.float32


def test_the_prior_is_added_in_training_alone_and_needs_every_class():
    from mmexpert.models.heads import BothHead

    counted = ClassTable(CLASSES.names, CLASSES.texts, (6, 3, 1))
    head, features = LinearHead(4, 2.0, counted), rows(5)
    with_prior, plain = head.train()(features, None), head.eval()(features, None)
    torch.testing.assert_close(with_prior - plain, 2 * torch.tensor([0.6, 0.3, 0.1]).log().expand(5, 3))
    with pytest.raises(ConfigError, match="has no training row"):
        LinearHead(4, 1.0, ClassTable(CLASSES.names, CLASSES.texts, (6, 0, 1)))
    texts = nn.functional.normalize(rows(3, 1), dim=1)
    both = BothHead(4, 0.07, 0.0, counted)
    torch.testing.assert_close(both(features, texts), both.text(features, texts) + both.linear(features, None))
    assert both.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)
