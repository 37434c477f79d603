"""Ranks against a full sort in fp64, whatever the tile, the order and the ties."""

import numpy as np
import pytest
import torch

from mmexpert.metrics import ranks
from mmexpert.metrics.ranks import rank_directions, rank_features, rank_scores
from mmexpert.types import ConfigError, DataError, NonFiniteError


def full_sort(query, gallery, query_keys, gallery_keys, exclude=None):
    """Rank of each query's best positive by sorting all scores in fp64; ties count against."""
    query, gallery = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (query, gallery))
    found = []
    for i, row in enumerate(query @ gallery.T):
        positive = gallery_keys.numpy() == int(query_keys[i])
        best = row[positive].max()
        rivals = [s for j, s in enumerate(row) if not positive[j] and not (exclude is not None and j in exclude[i].tolist())]
        found.append(1 + sum(s > best - 1e-9 for s in rivals))
    return found


def random_case(seed, queries=23, gallery=31, width=6, keys=9):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(queries, width, generator=generator), torch.randn(gallery, width, generator=generator)
    gallery_keys = torch.cat([torch.arange(keys), torch.randint(0, keys, (gallery - keys,), generator=generator)])
    return *sides, torch.randint(0, keys, (queries,), generator=generator), gallery_keys


@pytest.mark.parametrize("seed", range(20))
def test_ranks_are_those_of_a_full_sort_whatever_the_block_of_queries(seed):
    case = random_case(seed)
    expected = full_sort(*case)
    for tile in (1, 7, 2048):
        assert rank_features(*case, tile=tile).rank.tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_a_permuted_gallery_gives_the_same_ranks(seed):
    query, gallery, query_keys, gallery_keys = random_case(seed, gallery=200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
    plain = rank_features(query, gallery, query_keys, gallery_keys)
    shuffled = rank_features(query, gallery[order], query_keys, gallery_keys[order])
    assert plain.rank.tolist() == shuffled.rank.tolist()
    torch.testing.assert_close(plain.positive, shuffled.positive, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_excluded_rows_are_no_rivals_and_positives_stay_even_if_named(seed):
    query, gallery, query_keys, gallery_keys = random_case(seed)
    exclude = torch.randint(-1, 31, (23, 4), generator=torch.Generator().manual_seed(seed))
    got = rank_features(query, gallery, query_keys, gallery_keys, exclude=exclude)
    assert got.rank.tolist() == full_sort(query, gallery, query_keys, gallery_keys, exclude)
    named = gallery_keys[exclude.clamp(min=0)] == query_keys[:, None]
    kept = {(i, int(c)) for i, row in enumerate(exclude) for c, own in zip(row, named[i], strict=True) if c >= 0 and not own}
    assert not kept & {(i, c) for i, row in enumerate(got.top.tolist()) for c in row}


def test_a_positive_that_is_named_among_the_excluded_stays_in_the_gallery():
    scores = torch.tensor([[0.9, 0.5, 0.7]])
    got = rank_scores(lambda rows: scores[rows], torch.tensor([0]), torch.arange(3), exclude=torch.tensor([[0, 2]]))
    assert got.rank.tolist() == [1] and got.top[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize("ties, expected", [("pessimistic", 100.0), ("optimistic", 1.0), ("mean", 50.5)])
@pytest.mark.parametrize("tile", [None, 7])
def test_equal_features_and_multiples_of_one_vector_tie_throughout(ties, expected, tile):
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(48, generator=generator)
    for lengths in (torch.ones(2, 100, 1), torch.rand(2, 100, 1, generator=generator) + 0.1):
        query, gallery = lengths * one
        got = rank_features(query, gallery, torch.arange(100), torch.arange(100), ties, tile)
        assert got.rank.tolist() == [expected] * 100


def test_a_difference_that_fp32_cannot_see_is_decided_in_fp64():
    query = torch.tensor([[1.0, 0.0]])
    near = torch.tensor([[1.0, 2e-4], [1.0, 1e-4], [1.0, 3e-4]])  # cosines 1 - 2e-8, 1 - 5e-9, 1 - 4.5e-8: all 1 in fp32
    for positive, expected in ((0, 2), (1, 1), (2, 3)):
        keys = torch.tensor([0 if i == positive else 1 for i in range(3)])
        for ties in ("pessimistic", "optimistic"):
            assert rank_features(query, near, torch.tensor([0]), keys, ties).rank.tolist() == [expected]


def test_the_best_of_several_positives_counts():
    query, gallery = torch.eye(3)[:1], torch.tensor([[0.1, 1.0, 0], [0.9, 0.1, 0], [1.0, 0.2, 0], [0.5, 1.0, 0]])
    assert rank_features(query, gallery, torch.tensor([5]), torch.tensor([5, 1, 2, 5])).rank.tolist() == [3]


def test_many_close_pairs_are_scored_in_bounded_blocks(monkeypatch):
    monkeypatch.setattr(ranks, "_SECOND_LOOK", 48 * 5)
    largest = []
    plain = ranks._pair_scores
    monkeypatch.setattr(ranks, "_pair_scores", lambda q, g, r, c: largest.append(len(r)) or plain(q, g, r, c))
    same = torch.ones(30, 48)
    assert rank_features(same, same, torch.arange(30), torch.arange(30)).rank.tolist() == [30.0] * 30
    assert max(largest) == 5 and sum(largest) > 800


def test_single_pairs_and_whole_products_give_one_score():
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(4, 8, generator=generator).double(), torch.randn(40, 8, generator=generator).double()
    every = torch.cartesian_prod(torch.arange(4), torch.arange(40))
    torch.testing.assert_close(ranks._pair_scores(query, gallery, *every.T), (query @ gallery.T).flatten(), rtol=0, atol=1e-13)
    few = every[[3, 50, 159]]
    torch.testing.assert_close(ranks._pair_scores(query, gallery, *few.T), (query @ gallery.T)[few[:, 0], few[:, 1]], rtol=0, atol=1e-13)


@pytest.mark.parametrize("difference, expected", [(5e-7, 2.0), (-5e-7, 2.0), (5e-6, 2.0), (-5e-6, 1.0)])
def test_given_scores_tie_within_a_millionth(difference, expected):
    scores = torch.tensor([[0.5, 0.5 + difference]], dtype=torch.float64)
    keys = torch.tensor([0]), torch.tensor([0, 1])
    assert rank_scores(lambda rows: scores[rows], *keys).rank.tolist() == [expected]


def test_given_scores_take_exclusions_and_unanswerable_queries_too():
    scores = torch.tensor([[0.5, 0.9, 0.7], [0.5, 0.9, 0.7]])
    keys = torch.tensor([0, 8]), torch.tensor([0, 1, 2])
    got = rank_scores(lambda rows: scores[rows], *keys, exclude=torch.tensor([[1], [-1]]), allow_unanswerable=True)
    assert got.rank.tolist() == [2.0] and got.kept.tolist() == [0]


def test_first_rows_are_in_order_of_score_and_the_lower_row_first_where_scores_tie():
    scores = torch.tensor([[0.1] * 30])
    scores[0, 17] = 0.9
    got = rank_scores(lambda rows: scores[rows], torch.tensor([0]), torch.arange(30))
    assert got.top.tolist() == [[17, 0, 1, 2, 3, 4, 5, 6, 7, 8]]


def test_best_rival_and_best_positive_are_reported():
    scores = torch.tensor([[0.5, 0.9, 0.7]])
    got = rank_scores(lambda rows: scores[rows], torch.tensor([0]), torch.arange(3))
    assert got.positive.tolist() == pytest.approx([0.5]) and got.rival.tolist() == pytest.approx([0.9])


def test_unknown_ties_scores_that_are_not_finite_and_nothing_to_rank_are_errors():
    case = random_case(0)
    with pytest.raises(ConfigError, match="evaluator.ties=lucky: choose pessimistic"):
        rank_features(*case, ties="lucky")
    with pytest.raises(NonFiniteError, match="not finite"):
        rank_scores(lambda rows: torch.full((len(rows), 3), torch.nan), torch.tensor([0]), torch.arange(3))
    with pytest.raises(DataError, match="no query has a positive"):
        rank_features(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor([8, 9]), allow_unanswerable=True)


def double_loop(query, gallery, query_keys, gallery_keys, ties):
    """Rank of each query by comparing one pair after the other in fp64."""
    weight, found = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties], []
    query, gallery = (np.asarray(x, np.float32).astype(np.float64) for x in (query, gallery))
    for q, key in zip(query, query_keys.tolist(), strict=True):
        scores = [float(np.dot(q, g)) / float(np.sqrt(np.dot(q, q)) * np.sqrt(np.dot(g, g))) for g in gallery]
        best = max(score for score, other in zip(scores, gallery_keys.tolist(), strict=True) if other == key)
        rank = 1.0
        for score, other in zip(scores, gallery_keys.tolist(), strict=True):
            if other != key and score - best > 1e-9:
                rank += 1
            elif other != key and score - best >= -1e-9:
                rank += weight
        found.append(rank)
    return found


def adversarial(kind):
    """Features whose scores tie, nearly tie in fp32, or lie on both sides of the band of the second look."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal(16)
    steps = {"repeated": 0.0, "below fp32": 1e-5, "inside the band": 1e-4, "around the band": 2e-3, "wide": 1.0}[kind]
    query = base + steps * rng.standard_normal((40, 16))
    gallery = base + steps * rng.standard_normal((70, 16))
    gallery[10:30] = gallery[rng.integers(10, size=20)] * (1 if kind == "repeated" else 4)  # exact copies; times a power of two
    return torch.from_numpy(query).float(), torch.from_numpy(gallery).float()


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("kind", ["repeated", "below fp32", "inside the band", "around the band", "wide"])
def test_ranks_are_a_double_loops_where_scores_tie_or_nearly_tie_for_any_tile_and_order(kind, ties):
    query, gallery = adversarial(kind)
    rng = torch.Generator().manual_seed(1)
    query_keys = torch.randint(0, 12, (40,), generator=rng)
    gallery_keys = torch.cat([torch.arange(12), torch.randint(0, 12, (58,), generator=rng)])
    expected = double_loop(query, gallery, query_keys, gallery_keys, ties)
    order = torch.randperm(70, generator=rng)
    for tile in (1, 7, 2048):
        assert rank_features(query, gallery, query_keys, gallery_keys, ties, tile).rank.tolist() == expected
        assert rank_features(query, gallery[order], query_keys, gallery_keys[order], ties, tile).rank.tolist() == expected


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("kind", ["repeated", "below fp32", "inside the band", "around the band", "wide"])
def test_both_directions_at_once_are_a_double_loops_each(kind, ties):
    query, target = adversarial(kind)
    rng = torch.Generator().manual_seed(1)
    sides = (
        query,
        target,
        torch.cat([torch.arange(12), torch.randint(0, 12, (28,), generator=rng)]),
        torch.randint(0, 12, (70,), generator=rng),
    )
    expected = double_loop(*sides, ties), double_loop(target, query, sides[3], sides[2], ties)
    for tile in (1, 7, 2048):
        assert tuple(ranking.rank.tolist() for ranking in rank_directions(*sides, ties, tile)) == expected


def test_both_directions_at_once_say_what_each_says_alone():
    query, target, query_keys, target_keys = random_case(4, queries=150, gallery=90)
    query_keys[5], target_keys[7] = 77, 88  # without a partner: left out as queries, rivals all the same
    for tile in (20, 64, 500):
        both = rank_directions(query, target, query_keys, target_keys, tile=tile, allow_unanswerable=True)
        forth = rank_features(query, target, query_keys, target_keys, allow_unanswerable=True)
        back = rank_features(target, query, target_keys, query_keys, allow_unanswerable=True)
        for got, alone in zip(both, (forth, back), strict=True):
            assert got.rank.tolist() == alone.rank.tolist() and got.kept.tolist() == alone.kept.tolist()
            assert got.top.tolist() == alone.top.tolist()
            torch.testing.assert_close(got.positive, alone.positive, rtol=0, atol=1e-12)
            torch.testing.assert_close(got.rival, alone.rival, rtol=0, atol=1e-6)  # of fp32 products
    with pytest.raises(DataError, match="1 queries have no positive in the gallery, the first is row 7"):
        rank_directions(query[query_keys != 77], target, query_keys[query_keys != 77], target_keys)


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("gallery", [5, 31, 32, 33, 400])
def test_the_first_rows_are_those_of_a_stable_sort_however_many_scores_tie(levels, gallery):
    rng = torch.Generator().manual_seed(levels + gallery)
    scores = torch.randint(-levels, levels, (9, gallery), generator=rng) / levels
    scores[0] = -0.0 * scores[0].abs()  # zeros of both signs are equal
    got = rank_scores(lambda rows: scores[rows], torch.zeros(9, dtype=torch.long), torch.arange(gallery), tile=4)
    assert got.top.tolist() == scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()


def test_coarser_products_elsewhere_in_the_process_change_no_rank_and_are_left_as_they_were():
    case = random_case(2)
    expected, before = rank_features(*case).rank.tolist(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert rank_features(*case).rank.tolist() == expected and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_beside_the_gallery_does_not_grow_with_the_queries():
    from torch.profiler import ProfilerActivity, profile

    def peak(queries):
        query, gallery = torch.randn(queries, 8), torch.randn(2000, 8)
        keys = torch.arange(2000)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            rank_features(query, gallery, keys[torch.arange(queries) % 2000], keys)
        live = most = 0
        for event in sorted((e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            live += event.nbytes()
            most = max(most, live)
        return most

    assert peak(4000) < 1.5 * peak(500) < 0.5 * 4 * 2000 * 2000  # the whole matrix of 2,000 queries is twice that
