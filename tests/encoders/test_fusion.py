"""Fusion joins the views of one clip and one time token, and of nothing else; an absent view is absent, not zero."""

import pytest
import torch

from mmexpert.encoders.fusion import Add, Concat, ViewAttention

DIM, ROWS, LENGTH, VIEWS = 8, 4, 5, 3
KINDS = ["concat", "add", "attention"]


def fusion(kind, view_dropout=0.0):
    torch.manual_seed(0)
    made = {
        "concat": lambda: Concat(DIM, view_dropout, VIEWS),
        "add": lambda: Add(DIM, view_dropout),
        "attention": lambda: ViewAttention(DIM, view_dropout, 2),
    }[kind]()
    if kind == "concat":
        torch.nn.init.normal_(made.absent)
    return made.eval()


def views():
    return torch.randn(ROWS, LENGTH, VIEWS, DIM, generator=torch.Generator().manual_seed(0))


def everywhere(*present):
    return torch.tensor(present).expand(ROWS, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_rows_and_time_tokens_permute_the_output(kind):
    join, x = fusion(kind), views()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, True]])
    rows, times = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    expected = join(x, present)[rows][:, times]
    torch.testing.assert_close(join(x[rows][:, times], present[rows]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_place_of_an_absent_view_never_matters(kind):
    join, x = fusion(kind), views()
    present = everywhere(False, True, True)
    clean = join(x, present)
    x[:, :, 0] = float("nan")
    assert torch.equal(join(x, present), clean)
    assert clean.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_present_view_matters(kind):
    join, x = fusion(kind), views()
    for view in range(VIEWS):
        changed = x.clone()
        changed[:, :, view] += 1 + torch.rand(DIM)
        assert not torch.allclose(join(changed, everywhere(True, True, True)), join(x, everywhere(True, True, True)))


def test_add_is_the_mean_over_the_views_that_are_there():
    x = views()
    torch.testing.assert_close(fusion("add")(x, everywhere(True, False, True)), (x[:, :, 0] + x[:, :, 2]) / 2)
    torch.testing.assert_close(fusion("add")(x, everywhere(False, True, False)), x[:, :, 1])


def test_concat_puts_the_learned_vector_in_the_place_of_an_absent_view():
    join, x = fusion("concat"), views()
    filled = x.clone()
    filled[:, :, 1] = join.absent[1].detach()
    expected = torch.cat([filled[:, :, view] for view in range(VIEWS)], -1) @ join.join.weight.T + join.join.bias
    torch.testing.assert_close(join(x, everywhere(True, False, True)), expected)
    join(x, everywhere(True, False, True)).sum().backward()
    assert join.absent.grad.abs().sum(1).gt(0).tolist() == [False, True, False]


def test_attention_over_one_view_equals_attention_over_that_view_alone():
    join, x = fusion("attention"), views()
    alone = x[:, :, 2:].flatten(0, 1)
    normed = join.norm(alone)
    expected = (alone + join.attention(normed, normed, None))[:, 0].unflatten(0, (ROWS, LENGTH))
    torch.testing.assert_close(join(x, everywhere(False, False, True)), expected)


def test_view_dropout_hides_views_per_sample_in_training_and_never_all():
    join = fusion("add", view_dropout=0.6).train()
    seen = []
    join.fuse = lambda views, present: seen.append(present)
    torch.manual_seed(0)
    present = torch.tensor([[True, True, True], [True, False, True]]).repeat(500, 1)
    join(torch.zeros(1000, 1, VIEWS, DIM), present)
    kept = seen[0]
    assert kept.any(1).all()
    assert not kept[1::2, 1].any()
    full = kept[::2].sum(1)
    assert {1, 2, 3} == set(full.tolist())
    # a view survives with 0.4, or because all three fell (0.6 ** 3) and the clip keeps them
    assert kept[::2].float().mean() == pytest.approx(0.4 + 0.6**3, abs=0.04)


def test_view_dropout_rests_in_evaluation():
    join, x = fusion("add", view_dropout=0.5), views().repeat(50, 1, 1, 1)
    torch.testing.assert_close(join(x, torch.ones(50 * ROWS, VIEWS, dtype=torch.bool)), x.mean(2))
