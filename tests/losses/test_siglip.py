"""The sigmoid loss against the double loop over pairs, known values and finite differences."""

import math

import pytest
import torch

from mmexpert.losses.siglip import SigLipLoss
from mmexpert.types import ConfigError


def siglip(bias=-10.0, temperature=0.1, positive_weight=1.0):
    loss = SigLipLoss(temperature, True, bias, positive_weight).double()
    loss.logit_scale.data.fill_(-math.log(temperature))  # to the last digit: it was made in fp32
    return loss


def scores_and_positives(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    return scores, (torch.rand(rows, columns, generator=generator) < 0.3) | torch.eye(rows, columns, dtype=torch.bool)


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_double_loop_over_pairs_summed_and_divided_by_rows(seed, weight):
    scores, positives = scores_and_positives(seed, 4, 6)
    total = 0.0
    for i in range(4):
        for j in range(6):
            sign, factor = (1, weight) if positives[i, j] else (-1, 1.0)
            total += factor * math.log1p(math.exp(-sign * (10 * float(scores[i, j]) - 3)))
    value = siglip(bias=-3.0, positive_weight=weight).from_scores(scores, positives)["loss_clip"]
    assert float(value.detach()) == pytest.approx(total / 4, rel=1e-12)


def test_at_the_start_with_scores_of_zero_it_has_the_papers_value():
    value = siglip().from_scores(torch.zeros(8, 8, dtype=torch.float64), torch.eye(8, dtype=torch.bool))["loss_clip"]
    assert float(value.detach()) == pytest.approx(math.log(1 + math.exp(10)) + 7 * math.log(1 + math.exp(-10)), rel=1e-12)


def test_gradients_agree_with_finite_differences():
    loss, keys = siglip(bias=-1.0, temperature=0.5), torch.tensor([4, 4, 1, 2])
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, -0.7)]

    def total(query, target, scale, bias):
        given = {"logit_scale": scale, "logit_bias": bias}
        return torch.func.functional_call(loss, given, (query, target, keys))["loss_clip"]

    torch.autograd.gradcheck(total, (*sides, *numbers))


def test_raising_a_positive_score_lowers_it_and_raising_a_negative_raises_it():
    scores, positives = scores_and_positives(0, 4, 4)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(siglip().from_scores(scores, positives)["loss_clip"], scores)
    assert (gradient[positives] < 0).all() and (gradient[~positives] > 0).all()


def test_it_is_finite_with_finite_gradients_at_logits_of_ten_thousand():
    scores = torch.tensor([[1.0, -1], [1, -1]], requires_grad=True)
    loss = SigLipLoss(0.1, True, 0.0, 1.0)
    loss.logit_scale.data.fill_(math.log(1e4))
    value = loss.from_scores(scores, torch.eye(2, dtype=torch.bool))["loss_clip"]
    value.backward()
    assert float(value.detach()) == pytest.approx(1e4, rel=1e-5) and torch.isfinite(scores.grad).all()


def test_scale_and_bias_learn_together_or_not_at_all():
    assert [p.requires_grad for p in SigLipLoss(0.1, True, -10.0, 1.0).parameters()] == [True, True]
    assert [p.requires_grad for p in SigLipLoss(0.1, False, -10.0, 1.0).parameters()] == [False, False]


def test_the_bias_is_not_clamped():
    loss = siglip(bias=-20.0)
    loss.clamp_()
    assert loss.logit_bias.item() == -20.0


def test_no_direction_is_logged():
    scores, positives = scores_and_positives(0, 4, 4)
    assert set(siglip().from_scores(scores, positives)) == {"loss_clip"}


@pytest.mark.parametrize("bias, weight", [(math.inf, 1.0), (-10.0, 0.0), (-10.0, -1.0)])
def test_a_bias_or_weight_out_of_range_is_a_config_error(bias, weight):
    with pytest.raises(ConfigError, match="loss.init_bias=.*loss.positive_weight="):
        SigLipLoss(0.1, True, bias, weight)
