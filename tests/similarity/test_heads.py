"""Every head: its definition in loops, padding, pairs, order, range, numerics (similarity.md section 8)."""

import pytest
import torch
from similarity_toys import DIM, one, ragged
from slow import PAIRS, attention_one_way, monotone_one_way

from mmexpert.types import ConfigError, Encoding

QUERY, TARGET = [5, 3, 1, 4], [3, 4, 2, 1, 5]


def test_scores_are_the_definition_in_loops(build, name):
    query, target = ragged(QUERY, 0), ragged(TARGET, 1)
    got = build(name)(query, target)
    assert got.shape == (4, 5) and got.dtype == torch.float32
    for i in range(4):
        for j in range(5):
            q, t = one(query, i).sequence[0], one(target, j).sequence[0]
            assert got[i, j].item() == pytest.approx(PAIRS[name](q, t), abs=2e-6), (i, j)


def test_a_score_depends_on_its_own_pair_alone(build, name):
    query, target = ragged(QUERY, 2), ragged(TARGET, 3)
    head = build(name)
    got = head(query, target)
    alone = torch.tensor([[head(one(query, i), one(target, j)).item() for j in range(5)] for i in range(4)])
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_junk_in_pads_changes_nothing_wherever_it_stands(build, name):
    query, target = ragged(QUERY, 4), ragged(TARGET, 5)
    head = build(name)
    expected = head(query, target)

    def junk(encoding, before):
        rows, _, dim = encoding.sequence.shape
        pad, off = torch.full((rows, 7, dim), torch.nan), torch.zeros(rows, 7, dtype=torch.bool)
        order = (lambda parts: parts) if before else (lambda parts: parts[::-1])
        return Encoding(encoding.features, torch.cat(order([pad, encoding.sequence]), 1), torch.cat(order([off, encoding.mask]), 1))

    for before in (False, True):
        assert (head(junk(query, before), target) - expected).abs().max() == 0
        assert (head(query, junk(target, before)) - expected).abs().max() == 0


def test_permuting_rows_and_columns_permutes_the_scores(build, name):
    query, target = ragged(QUERY, 6), ragged(TARGET, 7)
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    head = build(name)
    moved = head(
        Encoding(query.features[rows], query.sequence[rows], query.mask[rows]),
        Encoding(target.features[columns], target.sequence[columns], target.mask[columns]),
    )
    torch.testing.assert_close(moved, head(query, target)[rows][:, columns], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["random", "equal", "opposite", "one token", "31 tokens"])
def test_scores_lie_between_minus_one_and_one(build, name, kind):
    lengths = {"one token": [1, 1], "31 tokens": [31, 31]}.get(kind, [6, 6])
    query, target = ragged(lengths, 8), ragged(lengths, 9)
    if kind in ("equal", "opposite"):
        same = torch.ones(2, 6, DIM)
        query = Encoding(query.features, same, query.mask)
        target = Encoding(query.features, -same if kind == "opposite" else same, query.mask)
    scores = build(name)(query, target)
    assert scores.abs().max() <= 1 + 1e-5
    if kind == "equal":
        torch.testing.assert_close(scores, torch.ones(2, 2), atol=1e-5, rtol=0)
    if kind == "opposite" and name != "soft_dtw":  # its shortest path is shorter than what divides it
        torch.testing.assert_close(scores, -torch.ones(2, 2), atol=1e-5, rtol=0)


def test_gradients_are_those_of_finite_differences(build, name):
    query, target = ragged([3, 2], 10), ragged([2, 3], 11)
    head = build(name).double()
    with torch.no_grad():
        for parameter in head.parameters():  # away from the identity, where maxima might tie
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim), dtype=torch.float64))
    inputs = [x.double().requires_grad_() for x in (query.sequence, target.sequence)]

    def scores(q, t, *parameters):
        return head(Encoding(query.features, q, query.mask), Encoding(target.features, t, target.mask))

    assert torch.autograd.gradcheck(scores, (*inputs, *head.parameters()), atol=1e-6)


@pytest.mark.parametrize("row_chunk", [1, 3])
def test_blocks_give_the_scores_and_gradients_of_the_whole(build, name, row_chunk):
    if name == "global":
        pytest.skip("global holds no table and has no blocks")
    results = []
    for chunk in (0, row_chunk):
        query, target = ragged(QUERY, 12), ragged(TARGET, 13)
        query.sequence.requires_grad_(), target.sequence.requires_grad_()
        head = build(name, row_chunk=chunk)
        weights = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        scores = head(query, target)
        (scores * weights).sum().backward()
        results.append([scores.detach(), query.sequence.grad, target.sequence.grad, *(p.grad for p in head.parameters())])
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(blocked, whole, atol=1e-6, rtol=1e-5)


def test_small_chunk_bytes_mean_many_blocks(build):
    query, target = ragged([31] * 9, 14), ragged([32] * 9, 15)
    from mmexpert.similarity.base import Tokens

    head = build("temporal", chunk_bytes=3 * 2 * 9 * 32 * 31 * 4)
    tokens = [Tokens(side.sequence, side.sequence, side.mask) for side in (query, target)]
    assert head._block_rows(*tokens) == 2
    torch.testing.assert_close(head(query, target), build("temporal")(query, target), atol=1e-6, rtol=0)


def test_bf16_autocast_is_finite_and_near_fp32(build, name):
    query, target = ragged(QUERY, 16), ragged(TARGET, 17)
    head = build(name)
    expected = head(query, target)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(
            Encoding(query.features, query.sequence.bfloat16(), query.mask),
            Encoding(target.features, target.sequence.bfloat16(), target.mask),
        )
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=2e-2, rtol=0)


def test_untrained_heads_tell_unrelated_sequences_no_better_than_chance(build, name):
    hits = 0
    for seed in range(20):
        scores = build(name, dim=32)(ragged([12] * 64, 2 * seed, dim=32), ragged([8] * 64, 2 * seed + 1, dim=32))
        hits += int((scores.argmax(1) == torch.arange(64)).sum())
    assert abs(hits - 20) < 3 * 20**0.5  # 1,280 queries at 1/64


def test_an_encoding_without_tokens_is_an_error_that_says_so(build, name):
    with pytest.raises(KeyError, match=r"target's encoder returned none: choose similarity=none"):
        build(name)(ragged([2], 0), Encoding(torch.zeros(1, DIM)))


def test_a_missing_mask_means_that_all_tokens_are_real(build, name):
    query, target = ragged([4, 4], 18), ragged([3, 3], 19)
    head = build(name)
    bare = head(Encoding(query.features, query.sequence), Encoding(target.features, target.sequence))
    assert torch.equal(bare, head(query, target))


def test_windows_of_one_are_token_level_maxsim(build):
    query, target = ragged(QUERY, 24), ragged(TARGET, 25)
    sizes = {"query_window": 1, "query_stride": 1, "target_window": 1, "target_stride": 1}
    got = build("local", **sizes)(query, target)
    unit = torch.nn.functional.normalize
    for i in range(4):
        for j in range(5):
            table = unit(one(query, i).sequence[0], dim=-1) @ unit(one(target, j).sequence[0], dim=-1).T
            expected = (table.amax(1).mean() + table.amax(0).mean()) / 2
            assert got[i, j].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("directions", ["query", "target"])
@pytest.mark.parametrize("name, one_way", [("attention", attention_one_way), ("temporal", monotone_one_way)])
def test_one_direction_is_that_half_of_the_definition(build, name, one_way, directions):
    query, target = ragged(QUERY, 28), ragged(TARGET, 29)
    got = build(name, directions=directions)(query, target)
    for i in range(4):
        for j in range(5):
            sides = one(query, i).sequence[0], one(target, j).sequence[0]
            expected = one_way(*(sides if directions == "query" else sides[::-1]))
            assert got[i, j].item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-4, 1e-5])
def test_attention_to_tokens_that_cancel_out_stays_a_cosine(build, share):
    """Opposite tokens but for a small common share along the query: their mean has almost no length, and rounding could make any of it."""
    target = torch.tensor([[[1.0, share] + [0.0] * (DIM - 2), [-1.0, share] + [0.0] * (DIM - 2)]], requires_grad=True)
    query = torch.eye(DIM)[1][None, None]
    score = build("attention", directions="query")(Encoding(torch.zeros(1, DIM), query), Encoding(torch.zeros(1, DIM), target))
    score.sum().backward()
    assert abs(score.item()) <= 1 and bool(target.grad.isfinite().all())
    assert score.item() == pytest.approx(1, abs=0.05) or share < 1e-3  # below, fp32 holds no digit of the length


@pytest.mark.parametrize("kept", ["global", "local", "attention", "temporal"])
def test_combined_with_one_weight_is_that_head_and_holds_nothing_else(build, kept):
    weights = {"global": 0.0, "local": 0.0, "attention": 0.0, "temporal": 0.0} | {kept: 2.0}
    combined, single = build("combined", weights=weights), build(kept)
    query, target = ragged(QUERY, 26), ragged(TARGET, 27)
    assert torch.equal(combined(query, target), single(query, target))
    assert len(list(combined.parameters())) == len(list(single.parameters()))


def test_combined_weights_start_as_given_and_learn_only_when_asked(build):
    head = build("combined")
    assert [round(weight.item(), 2) for weight in head.weights().values()] == [0.5, 0.25, 0.15, 0.1]
    assert "theta" in dict(head.named_parameters()) and "theta" not in dict(build("combined", learn_weights=False).named_parameters())
    without = build("combined", weights={"global": 1.0, "local": 0.0, "attention": 0.0, "temporal": 1.0})
    assert list(without.weights()) == ["global", "temporal"] and not [n for n, _ in without.named_parameters() if "local" in n]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("local", {"query_window": 0}, "windows and strides are 1 or more"),
        ("attention", {"attention_temperature": 0}, "attention_temperature=0: above 0"),
        ("attention", {"directions": "both ways"}, "choose both, query or target"),
        ("temporal", {"gamma": -1}, "gamma=-1: above 0"),
        ("temporal", {"method": "dtw"}, "monotone or soft_dtw"),
        ("combined", {"weights": {"local": -1.0}}, "one number of 0 or above"),
        ("local", {"row_chunk": -1}, "row_chunk=-1 is 0 or above"),
    ],
)
def test_impossible_keys_are_refused_by_name(build, name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_training_on_ordered_tokens_lifts_temporal_above_global(build):
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(6, DIM, generator=generator)
    sentences = torch.stack([torch.randperm(6, generator=generator) for _ in range(32)])  # the same words, other orders
    recalls = {}
    for name in ("global", "temporal"):
        head = build(name)
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        noise = torch.Generator().manual_seed(1)
        for step in range(151):
            radar = words[sentences].repeat_interleave(2, 1) @ torch.diag(torch.linspace(-1, 1, DIM)) + 0.1 * torch.randn(
                32, 12, DIM, generator=noise
            )
            scores = head(Encoding(torch.zeros(32, DIM), radar), Encoding(torch.zeros(32, DIM), words[sentences]))
            if step == 150:
                recalls[name] = (scores.argmax(1) == torch.arange(32)).float().mean().item()
                break
            loss = torch.nn.functional.cross_entropy(10 * scores, torch.arange(32))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert recalls["temporal"] > recalls["global"] + 0.2, recalls
