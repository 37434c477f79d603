"""The sigmoid loss against the double loop over pairs, known values and finite differences."""

import itertools
import math

import pytest
import torch

from mmexpert.losses.composite import CompositeLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.types import ConfigError


def siglip(bias=-10.0, temperature=0.1, positive_weight=1.0):
    loss = SigLipLoss(temperature, True, bias, positive_weight).double()
    loss.logit_scale.data.fill_(-math.log(temperature))  # to the last digit: it was made in fp32
    return loss


def scores_and_positives(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    own = torch.arange(columns) % rows == torch.arange(rows)[:, None]  # one or more in every row and column
    return scores, (torch.rand(rows, columns, generator=generator) < 0.3) | own


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


@pytest.mark.parametrize("side, keys", [("query", [[0, 1], [0]]), ("target", [[0], [0, 1]])])
def test_a_row_or_column_of_whole_scores_without_a_positive_is_named_by_its_side(side, keys):
    positives = torch.tensor(keys[0])[:, None] == torch.tensor(keys[1])
    with pytest.raises(ValueError, match=f"{side} row 1 has no positive"):
        siglip().from_scores(torch.zeros(positives.shape), positives)


def test_columns_beyond_the_own_pairs_need_no_positive():
    keys, target_keys = torch.tensor([0, 1]), torch.tensor([0, 1, 7])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    scores, positives = target[:2] @ target.T, keys[:, None] == target_keys
    expected = siglip().from_row_block(scores, positives)["loss_clip"].item()
    assert siglip().eval()(target[:2], target, keys, target_keys)["loss_clip"].item() == pytest.approx(expected, rel=1e-12)


def mean_share(keys, rows):
    """Positives among the pairs of a batch, over every batch of so many of the keys."""
    batches = list(itertools.combinations(keys, rows))
    return sum(a == b for batch in batches for a in batch for b in batch) / (len(batches) * rows**2)


@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("keys", [[4, 4, 4, 7, 7, 9], [1, 2, 3, 4, 5, 6]], ids=["shared", "unique"])
def test_an_automatic_bias_is_the_log_odds_of_the_positives_that_a_batch_has_on_average(keys, rows):
    loss, share = siglip(bias="auto"), mean_share(keys, rows)
    loss.see_keys(torch.tensor(keys), rows)
    assert loss.logit_bias.item() == pytest.approx(math.log(share / (1 - share)), rel=1e-6)
    if len(set(keys)) == len(keys):
        assert share == pytest.approx(1 / rows)


def test_an_automatic_bias_is_that_of_the_scores_of_a_similarity_too_and_a_composite_hands_the_keys_on():
    inner = siglip(bias="auto")
    whole = CompositeLoss({"pairs": {"weight": 1.0, "loss": inner}})
    whole.see_keys(torch.arange(100), 8)
    assert inner.logit_bias.item() == whole.for_scores().logit_bias.item() == pytest.approx(-math.log(7), rel=1e-6)


@pytest.mark.parametrize("keys, rows", [([3, 3, 3], 2), ([1, 2], 1), ([5], 8)])
def test_an_automatic_bias_is_finite_where_every_pair_is_positive(keys, rows):
    loss = siglip(bias="auto")
    loss.see_keys(torch.tensor(keys), rows)
    assert loss.logit_bias.item() == 10.0


def test_a_bias_in_numbers_does_not_look_at_the_keys():
    loss = siglip(bias=-3.0)
    loss.see_keys(torch.arange(100), 8)
    assert loss.logit_bias.item() == -3.0


def test_another_word_for_the_bias_is_a_config_error():
    with pytest.raises(ConfigError, match="loss.init_bias=automatic: write a number, or auto"):
        siglip(bias="automatic")
