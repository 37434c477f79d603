"""The softmax loss against slow loops, cross-entropy and known values; and what every loss of conf/loss must do."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmexpert.losses.clip import ClipLoss
from mmexpert.types import ConfigError


def clip(form="out", directions="both", temperature=0.07):
    loss = ClipLoss(temperature, True, form, directions).double()
    loss.logit_scale.data.fill_(-math.log(temperature))  # to the last digit: it was made in fp32
    return loss


def features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def own_and_others(seed, rows, columns):
    """Random positives with at least one in every row and column."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, columns, generator=generator) < 0.3) | torch.eye(rows, columns, dtype=torch.bool)


def slow_direction(scores, positives, scale, form):
    rows = []
    for i in range(len(scores)):
        logits = [scale * float(s) for s in scores[i]]
        total = sum(math.exp(z) for z in logits)
        shares = [math.exp(z) / total for z, p in zip(logits, positives[i], strict=True) if p]
        rows.append(-math.log(sum(shares)) if form == "in" else -sum(math.log(s) for s in shares) / len(shares))
    return sum(rows) / len(rows)


def test_with_unique_keys_it_is_the_usual_cross_entropy_on_the_diagonal():
    query, target, own = features(0, 6, 8), features(1, 6, 8), torch.arange(6)
    terms = clip()(query, target, own * 3 - 7)
    logits = F.normalize(query, dim=1) @ F.normalize(target, dim=1).T / 0.07
    there, back = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
    expected = {"loss_clip": (there + back) / 2, "loss_query_to_target": there, "loss_target_to_query": back}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("seed", range(3))
def test_with_any_positives_it_is_the_double_loop_over_rows(form, seed):
    scores, positives = torch.tanh(features(seed, 5, 7)), own_and_others(seed, 5, 7)
    positives[0, 5:] = True  # columns 5 and 6 need one too
    terms = {name: float(value.detach()) for name, value in clip(form).from_scores(scores, positives).items()}
    there = slow_direction(scores.tolist(), positives.tolist(), 1 / 0.07, form)
    back = slow_direction(scores.T.tolist(), positives.T.tolist(), 1 / 0.07, form)
    assert terms["loss_query_to_target"] == pytest.approx(there, rel=1e-9)
    assert terms["loss_target_to_query"] == pytest.approx(back, rel=1e-9)
    assert terms["loss_clip"] == pytest.approx((there + back) / 2, rel=1e-9)


@pytest.mark.parametrize("form", ["out", "in"])
def test_gradients_agree_with_finite_differences(form):
    loss, keys = clip(form, temperature=0.5), torch.tensor([4, 4, 1, 2])

    def total(query, target, scale):
        loss.logit_scale.data = scale.detach()
        return torch.func.functional_call(loss, {"logit_scale": scale}, (query, target, keys))["loss_clip"]

    torch.autograd.gradcheck(total, (features(0, 4, 3), features(1, 4, 3), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)))


def test_one_way_has_the_row_direction_only():
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    terms, both = clip(directions="query")(query, target, keys), clip()(query, target, keys)
    assert "loss_target_to_query" not in terms
    torch.testing.assert_close(terms["loss_clip"], both["loss_query_to_target"])


def test_k_positives_a_row_leave_log_k_and_the_excess_goes_to_zero():
    scores = torch.tensor([[1.0, 1, -1, -1]] * 2 + [[-1.0, -1, 1, 1]] * 2, dtype=torch.float64)
    terms = clip(temperature=0.01).from_scores(scores, scores > 0)
    assert float(terms["loss_clip"].detach()) == pytest.approx(math.log(2), abs=1e-9)
    assert float(terms["loss_clip_floor"]) == pytest.approx(math.log(2), abs=1e-12)
    assert float(terms["loss_clip_excess"].detach()) == pytest.approx(0, abs=1e-9)


def test_the_floor_is_the_mean_over_rows_of_both_directions():
    positives = torch.tensor([[True, True, True], [False, True, False]])
    terms = clip().from_scores(torch.zeros(2, 3, dtype=torch.float64), positives)
    assert float(terms["loss_clip_floor"]) == pytest.approx((math.log(3) / 2 + math.log(2) / 3) / 2)


def test_further_target_rows_are_columns_of_the_row_direction_and_need_no_positive():
    query, target = features(0, 3, 8), features(1, 5, 8)
    keys, target_keys = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 8, 9])
    terms = clip()(query, target, keys, target_keys)
    unit_query, unit_target = F.normalize(query, dim=1), F.normalize(target, dim=1)
    there = F.cross_entropy(unit_query @ unit_target.T / 0.07, torch.arange(3))
    back = F.cross_entropy(unit_target[:3] @ unit_query.T / 0.07, torch.arange(3))
    torch.testing.assert_close(terms["loss_query_to_target"], there, rtol=1e-9, atol=0)
    torch.testing.assert_close(terms["loss_target_to_query"], back, rtol=1e-9, atol=0)


def test_a_repeated_caption_at_equal_scores_is_pulled_and_not_pushed():
    scores = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    keys = torch.tensor([5, 5, 1, 2])
    (gradient,) = torch.autograd.grad(clip().from_scores(scores, keys[:, None] == keys)["loss_clip"], scores)
    assert gradient[0, 1] < 0 and gradient[1, 0] < 0 and gradient[0, 2] > 0


def test_all_rows_of_one_key_at_equal_scores_give_log_b_and_no_gradient():
    scores = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    value = clip().from_scores(scores, torch.ones(6, 6, dtype=torch.bool))["loss_clip"]
    (gradient,) = torch.autograd.grad(value, scores)
    assert float(value.detach()) == pytest.approx(math.log(6))
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.0, 0.009, 1.01, -1, math.nan])
def test_a_temperature_out_of_range_is_a_config_error(temperature):
    with pytest.raises(ConfigError, match="loss.temperature=.*: 0.01..1"):
        ClipLoss(temperature, True, "out", "both")


@pytest.mark.parametrize("form, directions", [("mean", "both"), ("out", "rows")])
def test_unknown_forms_and_directions_are_config_errors(form, directions):
    with pytest.raises(ConfigError, match="out or in.*both, query or"):
        ClipLoss(0.07, True, form, directions)


# every loss of conf/loss


def contrastive(loss, *given):
    return loss(*given)["loss_clip"]


def test_swapping_two_rows_with_one_caption_changes_nothing(loss):
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    torch.testing.assert_close(loss(query, target[[1, 0, 2, 3]], keys), loss(query, target, keys))


def test_permuting_the_batch_changes_nothing(loss):
    query, target, keys, order = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9]), [2, 0, 3, 1]
    torch.testing.assert_close(loss(query[order], target[order], keys[order]), loss(query, target, keys))


def test_the_length_of_features_does_not_matter(loss):
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    torch.testing.assert_close(loss(3 * query, 0.1 * target, keys), loss(query, target, keys))


def test_given_scores_and_features_give_one_value(loss):
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    scores = F.normalize(query, dim=1) @ F.normalize(target, dim=1).T
    torch.testing.assert_close(loss.from_scores(scores, keys[:, None] == keys), loss(query, target, keys))


def test_a_step_down_the_gradient_lowers_the_loss_and_reaches_scale_and_features(loss):
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    before = contrastive(loss, query, target, keys)
    gradients = torch.autograd.grad(before, [query, target, loss.logit_scale])
    assert all(float(g.abs().sum()) > 0 for g in gradients)
    after = contrastive(loss, query - 0.01 * gradients[0], target - 0.01 * gradients[1], keys)
    assert after < before


def test_one_pair_alone_and_equal_captions_throughout_are_finite(loss):
    for rows in (1, 3):
        value = contrastive(loss, features(0, rows, 8), features(1, rows, 8), torch.zeros(rows, dtype=torch.long))
        assert torch.isfinite(value.detach())


def test_float64_stays_and_half_precision_is_raised(loss):
    query, target, keys = features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9])
    assert contrastive(loss, query, target, keys).dtype == torch.float64
    loss = loss.float()
    half = query.detach().bfloat16().requires_grad_(), target.detach().bfloat16().requires_grad_()
    plain = contrastive(loss, half[0].float(), half[1].float(), keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(contrastive(loss, *half, keys), plain, rtol=0, atol=0)
        scores = F.normalize(half[0].float(), dim=1).bfloat16() @ F.normalize(half[1].float(), dim=1).bfloat16().T
        assert loss.from_scores(scores, keys[:, None] == keys)["loss_clip"].dtype == torch.float32
    torch.testing.assert_close(
        loss.from_scores(scores, keys[:, None] == keys)["loss_clip"], loss.from_scores(scores.float(), keys[:, None] == keys)["loss_clip"]
    )


@pytest.mark.parametrize("directions", ["both", "query"])
@pytest.mark.parametrize("form", ["out", "in"])
def test_columns_beyond_the_own_pairs_count_in_the_row_direction_only_and_need_no_positive(form, directions):
    scores = torch.tanh(features(3, 4, 7))
    keys, target_keys = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 8, 0, 9])
    positives = keys[:, None] == target_keys
    there = slow_direction(scores.tolist(), positives.tolist(), 1 / 0.07, form)
    back = slow_direction(scores[:, :4].T.tolist(), positives[:, :4].T.tolist(), 1 / 0.07, form)
    found = clip(form, directions).from_row_block(scores, positives)["loss_clip"].item()
    assert found == pytest.approx((there + back) / 2 if directions == "both" else there, rel=1e-9)


def test_the_scale_starts_at_one_over_temperature_and_is_clamped_to_1_100(loss):
    for start, end in ((-3.0, 1.0), (9.0, 100.0), (math.log(20.0), 20.0)):
        loss.logit_scale.data.fill_(start)
        loss.clamp_()
        assert float(loss.logit_scale.detach().exp()) == pytest.approx(end)
    assert loss.logit_scale.requires_grad


def test_a_row_without_a_positive_is_named(loss):
    positives = torch.eye(3, dtype=torch.bool)
    positives[1, 1] = False
    with pytest.raises(ValueError, match="query row 1 has no positive"):
        loss.from_scores(torch.zeros(3, 3, dtype=torch.float64), positives)
    with pytest.raises(ValueError, match="query row 2 has no positive"):
        loss(features(0, 3, 8), features(1, 3, 8), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))


def test_features_without_gradient_are_refused_in_training_only(loss):
    query, target, keys = features(0, 4, 8).detach(), features(1, 4, 8).detach(), torch.tensor([7, 7, 3, 9])
    with pytest.raises(RuntimeError, match="features carry no gradient: Accelerator.gather has none; pass the local rows"):
        loss(query, target, keys)
    loss(query, target.requires_grad_(), keys)  # one frozen tower is fine
    with torch.no_grad():
        loss(query, target, keys)
    loss.eval()(query, target.detach(), keys)


def test_gathered_features_with_local_keys_are_refused(loss):
    with pytest.raises(ValueError, match="8 query and 8 target rows, but 4 and 4 keys"):
        loss(features(0, 8, 8), features(1, 8, 8), torch.arange(4))


def test_terms_are_scalars_and_every_weight_belongs_to_a_term(loss):
    terms = loss(features(0, 4, 8), features(1, 4, 8), torch.tensor([7, 7, 3, 9]))
    assert all(value.shape == () for value in terms.values())
    assert set(loss.term_weights) <= set(terms) | {"loss_class", "loss_token"}


def test_the_scale_is_part_of_the_state(loss):
    loss.logit_scale.data.fill_(1.5)
    stored = [float(value) for name, value in loss.state_dict().items() if name.endswith("logit_scale")]
    assert 1.5 in stored
