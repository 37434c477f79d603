"""The class term by hand and against torch's cross-entropy; how it joins the contrastive term."""

import logging
import math

import pytest
import torch
from torch.nn import functional as F

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.types import ConfigError, Encoding, Pair

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-1.0, 3.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 0])


def superclip(contrastive=1.0, classes=1.0, smoothing=0.0, gamma=0.0):
    return SuperClipLoss(0.07, True, "out", "both", contrastive, classes, smoothing, gamma)


def pair(logits):
    return Pair(Encoding(torch.zeros(3, 4)), Encoding(torch.zeros(3, 4)), logits)


def slow(weights, gamma=0.0, smoothing=0.0):
    total = 0.0
    for logits, label, weight in zip(LOGITS.tolist(), LABELS.tolist(), weights, strict=True):
        p = [math.exp(z) / sum(math.exp(x) for x in logits) for z in logits]
        target = [(1 - smoothing) * (k == label) + smoothing / 3 for k in range(3)]
        total += weight * (1 - p[label]) ** gamma * -sum(y * math.log(q) for y, q in zip(target, p, strict=True))
    return total / sum(weights)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.2, 3.0, 1.1], [0.0, 0.0, 5.0]])
@pytest.mark.parametrize("gamma, smoothing", [(0.0, 0.0), (2.0, 0.0), (0.5, 0.1)])
def test_the_class_term_is_the_weighted_mean_of_row_losses(weights, gamma, smoothing):
    batch = {"label": LABELS, "weight": torch.tensor(weights)}
    value = superclip(smoothing=smoothing, gamma=gamma).class_loss(pair(LOGITS), batch)["loss_class"]
    assert float(value) == pytest.approx(slow(weights, gamma, smoothing), rel=1e-6)


def test_without_weights_it_is_torchs_cross_entropy_in_the_logits_own_precision():
    value = superclip().class_loss(pair(LOGITS), {"label": LABELS})["loss_class"]
    torch.testing.assert_close(value, F.cross_entropy(LOGITS, LABELS), rtol=1e-14, atol=0)
    assert superclip().class_loss(pair(LOGITS.bfloat16()), {"label": LABELS})["loss_class"].dtype == torch.float32


def test_multiplying_all_weights_changes_nothing():
    weights = torch.tensor([0.2, 3.0, 1.1])
    one, ten = (superclip().class_loss(pair(LOGITS), {"label": LABELS, "weight": w}) for w in (weights, 10 * weights))
    torch.testing.assert_close(one, ten)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_term_has_a_finite_gradient_where_a_row_is_surely_right(gamma):
    logits = torch.tensor([[80.0, 0.0, 0.0]] * 3, requires_grad=True)
    superclip(gamma=gamma).class_loss(pair(logits), {"label": torch.tensor([0, 0, 0])})["loss_class"].backward()
    assert torch.isfinite(logits.grad).all()


def test_its_contrastive_term_is_clips():
    generator = torch.Generator().manual_seed(0)
    query, target = (torch.randn(4, 8, generator=generator, requires_grad=True) for _ in range(2))
    keys = torch.tensor([7, 7, 3, 9])
    torch.testing.assert_close(superclip()(query, target, keys), ClipLoss(0.07, True, "out", "both")(query, target, keys))


def test_with_identical_texts_a_class_the_multi_positive_gradient_is_the_one_to_one_losss():
    """hip.md section 6, reference 8e-17: texts of one class are one vector, so a softmax over columns splits it evenly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 8, (32,), generator=generator)
    query = torch.randn(32, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(8, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = superclip().double()
    several = torch.autograd.grad(loss(query, texts[labels], labels)["loss_clip"], [query, texts])
    alone = torch.autograd.grad(loss(query, texts[labels], torch.arange(32))["loss_clip"], [query, texts])
    for a, b in zip(several, alone, strict=True):
        assert float((a - b).abs().max()) < 1e-15


def test_without_class_logits_there_is_no_class_term_and_it_is_said_once(caplog):
    loss = superclip()
    with caplog.at_level(logging.WARNING, logger="mmexpert"):
        assert loss.class_loss(pair(None), {"label": LABELS}) == {} and loss.class_loss(pair(None), {}) == {}
    assert [record.message for record in caplog.records if "no class term" in record.message][1:] == []
    assert "choose model/head=text or linear" in caplog.text


def test_without_class_logits_and_without_contrastive_weight_nothing_would_train():
    with pytest.raises(ConfigError, match="leave nothing to train"):
        superclip(contrastive=0.0).class_loss(pair(None), {})


def test_a_batch_without_labels_is_told_with_what_it_holds():
    with pytest.raises(KeyError, match="batch has no 'label'; it holds id, radar"):
        superclip().class_loss(pair(LOGITS), {"radar": 1, "id": 2})


def test_both_weights_stand_in_the_terms_that_the_objective_sums():
    assert superclip(0.5, 2.0).term_weights == {"loss_clip": 0.5, "loss_class": 2.0}


@pytest.mark.parametrize("given", [(0.0, 0.0, 0.0, 0.0), (-1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 0.0, -1.0)])
def test_weights_out_of_range_are_config_errors(given):
    with pytest.raises(ConfigError, match="loss."):
        superclip(*given)
