"""Alignments: paths enumerated, lengths, extremes, and what a pass costs (similarity.md sections 3.4 and 8, performance.md 4)."""

import math

import pytest
import torch
from similarity_toys import DIM, blocks, one, ragged
from slow import monotone_one_way, paths, soft_dtw_pair
from torch.profiler import ProfilerActivity, profile

from mmexpert.similarity import path_sums
from mmexpert.similarity.monotone import monotone_scores
from mmexpert.similarity.soft_dtw import soft_dtw_scores
from mmexpert.types import ConfigError, Encoding

QUERY, TARGET = [5, 3, 1, 4], [3, 4, 2, 1, 5]


def test_order_counts_for_temporal_and_not_for_global(build):
    parts = [blocks(12, 4)[None], blocks(4, 4)[None], blocks(12, 4).flip(0)[None]]
    query, target, reversed_ = (Encoding(torch.zeros(1, DIM), x) for x in parts)
    temporal, mean = build("temporal"), build("global")
    assert temporal(query, target).item() - temporal(reversed_, target).item() > 0.3
    assert mean(query, target).item() == pytest.approx(mean(reversed_, target).item(), abs=1e-6)


@pytest.mark.parametrize(
    "changes, in_order, reversed_",
    [({"directions": "query"}, 0.949, 0.240), ({"method": "soft_dtw"}, 0.949, 0.373)],
)
def test_alignment_of_ordered_blocks_has_the_reference_values(build, changes, in_order, reversed_):
    query, target = Encoding(torch.zeros(1, DIM), blocks(12, 4)[None]), Encoding(torch.zeros(1, DIM), blocks(4, 4)[None])
    backwards = Encoding(torch.zeros(1, DIM), blocks(12, 4).flip(0)[None])
    head = build("temporal", **changes)
    assert head(query, target).item() == pytest.approx(in_order, abs=5e-4)
    assert head(backwards, target).item() == pytest.approx(reversed_, abs=5e-4)


def test_the_gradient_of_a_monotone_score_on_the_table_is_a_share_of_paths(build):
    table = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).requires_grad_()
    scores = monotone_scores(table, torch.tensor([5, 3]), torch.tensor([4, 2, 3]), 0.1, "free", "query")
    for i, j in ((0, 0), (1, 1), (1, 2)):
        (gradient,) = torch.autograd.grad(scores[i, j], table, retain_graph=True)
        assert gradient.min() >= 0 and gradient.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("moves", ["free", "step"])
@pytest.mark.parametrize("way", ["linear", "logarithms"])
def test_alignment_enumerates_all_paths_in_linear_scale_and_in_logarithms(monkeypatch, moves, way):
    if way == "logarithms":
        monkeypatch.setattr(path_sums, "LOG_RANGE", 0.0)
    query, target = ragged([4, 3], 20), ragged([3, 2], 21)
    unit = torch.nn.functional.normalize
    table = torch.einsum("ild,jmd->ijlm", unit(query.sequence, dim=-1), unit(target.sequence, dim=-1)).double().requires_grad_()
    steps, tokens = torch.tensor([4, 3]), torch.tensor([3, 2])
    got = monotone_scores(table, steps, tokens, 0.1, moves, "query")
    for i in range(2):
        for j in range(2):
            expected = monotone_one_way(one(query, i).sequence[0], one(target, j).sequence[0], moves)
            assert got[i, j].item() == pytest.approx(expected, abs=1e-6)
    assert torch.autograd.gradcheck(lambda x: monotone_scores(x, steps, tokens, 0.1, moves, "query"), (table,), atol=1e-6)
    assert len(paths(4, 3, "free")) == 15 and len(paths(4, 3, "step")) == 3


def test_sequences_too_long_for_plain_sums_are_scored_without_overflow(build):
    query = Encoding(torch.zeros(1, DIM), blocks(248, 8)[None])
    target = Encoding(torch.zeros(1, DIM), blocks(64, 8).flip(0)[None])
    for gamma in (0.05, 0.1):
        query.sequence.requires_grad_().grad = None
        score = build("temporal", gamma=gamma, directions="query")(query, target)
        score.backward()
        assert -1 <= score.item() <= 1 and bool(query.sequence.grad.isfinite().all())


def test_step_moves_need_a_step_for_each_token(build):
    head = build("temporal", moves="step", directions="query")
    assert head(ragged([4, 5], 0), ragged([3, 4], 1)).shape == (2, 2)
    with pytest.raises(ConfigError, match="shortest walk has 2, the longest sequence 4"):
        head(ragged([4, 2], 0), ragged([3, 4], 1))


def test_soft_dtw_enumerates_all_warping_paths(build):
    query, target = ragged(QUERY, 22), ragged(TARGET, 23)
    got = build("temporal", method="soft_dtw")(query, target)
    for i in range(4):
        for j in range(5):
            assert got[i, j].item() == pytest.approx(soft_dtw_pair(one(query, i).sequence[0], one(target, j).sequence[0]), abs=1e-5)


@pytest.mark.parametrize("moves", ["free", "step"])
def test_plain_sums_and_logarithms_agree_on_adverse_tables_near_the_limit_of_float64(monkeypatch, moves):
    """The best cells lie where no path can take them all: terms of the sums differ by e^600."""
    length, gamma = 38, 0.1
    steps = torch.arange(length)
    alternating, turned = 2 * ((steps[:, None] + steps) % 2) - 1, 1 - 2 * (steps[:, None] + steps < length).long()
    tables = torch.stack([alternating, turned, torch.full_like(turned, -1)]).double()
    results = []
    for limit in (1e9, 0.0):
        monkeypatch.setattr(path_sums, "LOG_RANGE", limit)
        table = tables[:, None].clone().requires_grad_()
        scores = monotone_scores(table, torch.full((3,), length), torch.tensor([length]), gamma, moves, "both")
        scores.sum().backward()
        results.append((scores.detach(), table.grad))
    for plain, logarithms in zip(*results, strict=True):
        torch.testing.assert_close(plain, logarithms, atol=1e-9, rtol=0)
    assert results[0][1].sum((2, 3)).tolist() == [[pytest.approx(1, abs=1e-9)]] * 3


def test_reversed_blocks_at_a_small_gamma_keep_their_digits(build):
    """fp32 without rescaling would pass its range after five adverse steps."""
    query, target = Encoding(torch.zeros(1, DIM), blocks(24, 8)[None]), Encoding(torch.zeros(1, DIM), blocks(8, 8).flip(0)[None])
    score = build("temporal", gamma=0.05, directions="query")(query, target).item()
    table = (blocks(24, 8) @ blocks(8, 8).flip(0).T).double()
    here = torch.tensor([0.0] + [-1e5] * 7, dtype=torch.float64)
    for row in table:
        here = row / 0.05 + here.logcumsumexp(0)
    assert score == pytest.approx(0.05 * (here.logsumexp(0).item() - math.log(math.comb(31, 24))) / 24, abs=1e-6)


def test_step_moves_leave_pads_and_blocks_without_effect(build):
    query, target = ragged([5, 4, 6], 32), ragged([3, 2], 33, width=9)
    whole = build("temporal", moves="step", directions="query")
    expected = whole(query, target)
    alone = [[whole(one(query, i), one(target, j)).item() for j in range(2)] for i in range(3)]
    assert expected.tolist() == [[pytest.approx(score, abs=1e-6) for score in row] for row in alone]
    blocked = build("temporal", moves="step", directions="query", row_chunk=1)(query, target)
    torch.testing.assert_close(blocked, expected, atol=1e-6, rtol=0)


def test_soft_dtw_in_plain_sums_and_in_logarithms_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for length, width in ((7, 4), (4, 7), (1, 5), (5, 1)):
        steps, tokens = torch.tensor([length, max(1, length - 2)]), torch.tensor([width, max(1, width - 3), 1])
        table = torch.rand(2, 3, length, width, dtype=torch.float64, generator=generator).mul(2).sub(1).requires_grad_()
        results = []
        for limit in (650.0, 0.0):
            monkeypatch.setattr(path_sums, "LOG_RANGE", limit)
            assert torch.autograd.gradcheck(soft_dtw_scores, (table, steps, tokens, 0.2), atol=1e-6)
            results.append(soft_dtw_scores(table, steps, tokens, 0.2))
        torch.testing.assert_close(*results, atol=1e-12, rtol=0)


ALIGNMENTS = {
    "monotone": lambda table, steps, tokens: monotone_scores(table, steps, tokens, 0.5, "free", "both"),
    "step": lambda table, steps, tokens: monotone_scores(table, steps, tokens, 0.5, "step", "query"),
    "soft_dtw": lambda table, steps, tokens: soft_dtw_scores(table, steps, tokens, 0.5),
}


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_four_times_the_steps_take_four_times_the_memory_traffic(kind):
    """Indexing S[:, :, l] in a loop under autograd would allocate a table for every step: sixteen times."""

    def allocated(length: int) -> int:
        table = torch.rand(4, 4, length, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            ALIGNMENTS[kind](table, torch.full((4,), length), torch.full((4,), 20)).sum().backward()
        events = trace.profiler.kineto_results.events()
        return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)

    assert allocated(248) < 6 * allocated(62)
