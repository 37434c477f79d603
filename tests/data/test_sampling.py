"""Order, batches and draws are functions of seed, epoch and id: check values of reliability.md section 2."""

import numpy as np
import pytest

from mmexpert.data.sampling import Plan, blocked_order, epoch_order, evaluation_draws, hash_order, sample_rng
from mmexpert.types import ConfigError


@pytest.mark.parametrize("n, seed, epoch, order", [
    (10, 0, 0, "0 2 9 1 8 5 4 3 6 7"),
    (10, 0, 1, "5 3 7 8 2 4 1 0 6 9"),
    (10, 42, 3, "1 6 3 4 5 9 2 8 0 7"),
    (1000, 0, 0, "998 162 670 664 185 322"),
])  # fmt: skip
def test_the_order_has_the_published_check_values(n, seed, epoch, order):
    expected = [int(number) for number in order.split()]
    assert epoch_order(n, seed, epoch)[: len(expected)].tolist() == expected
    assert sorted(epoch_order(n, seed, epoch).tolist()) == list(range(n))


def test_the_draws_of_a_sample_have_the_published_check_values_and_depend_on_every_key():
    np.testing.assert_allclose(sample_rng(0, 1, "img0001", 0).random(3), [0.813313659, 0.594950744, 0.241010187], atol=1e-9)
    draws = {sample_rng(*key).random() for key in ((0, 1, "a", 0), (1, 1, "a", 0), (0, 2, "a", 0), (0, 1, "b", 0), (0, 1, "a", 1))}
    assert len(draws) == 5


def plan(order, **keys):
    usual = {"epoch": 0, "batch_size": 8, "accumulation": 1, "processes": 1, "rank": 0, "start_step": 0, "drop_last": True}
    return Plan(order, **(usual | keys))


@pytest.mark.parametrize("processes, accumulation", [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_a_step_sees_the_same_samples_however_it_is_shared_out(processes, accumulation):
    order = epoch_order(35, 3, 0).tolist()
    whole = [[draw[0] for draw in batch] for batch in plan(order)]
    shared = [[] for _ in whole]
    for rank in range(processes):
        for number, batch in enumerate(plan(order, processes=processes, accumulation=accumulation, rank=rank)):
            shared[number // accumulation] += [draw[0] for draw in batch]
    assert [sorted(step) for step in shared] == [sorted(step) for step in whole]


def test_starting_at_a_step_is_the_tail_of_the_whole_epoch():
    order = epoch_order(64, 0, 0).tolist()
    assert list(plan(order, start_step=3)) == list(plan(order))[3:]
    assert list(plan(order, start_step=8)) == []


def test_the_rest_of_an_epoch_is_left_out_or_a_smaller_step():
    assert [len(batch) for batch in plan(list(range(21)))] == [8, 8]
    assert [len(batch) for batch in plan(list(range(21)), drop_last=False)] == [8, 8, 5]
    assert [len(batch) for batch in plan(list(range(21)), drop_last=False, processes=2)] == [4, 4, 2]


def test_repeats_of_a_sample_are_counted_within_the_epoch():
    assert [draw for batch in plan([5, 5, 7, 5], batch_size=2) for draw in batch] == [(5, 0, 0), (5, 0, 1), (7, 0, 0), (5, 0, 2)]


def test_a_batch_that_does_not_divide_names_the_three_numbers_and_one_that_is_too_large_both():
    with pytest.raises(ConfigError, match=r"batch_size=9 .* = 2 x 2"):
        plan(list(range(40)), batch_size=9, processes=2, accumulation=2)
    with pytest.raises(ConfigError, match="batch_size=64 is larger than the training part of 40 samples"):
        plan(list(range(40)), batch_size=64)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_sees_every_sample_and_gives_every_rank_as_much(processes):
    shares = [evaluation_draws(list(range(17)), 4, processes, rank) for rank in range(processes)]
    assert {draw for share in shares for batch in share for draw in batch} == {(i, -1, 0) for i in range(17)}
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1


def test_blocks_stay_together_and_hash_order_does_not_follow_the_names():
    order = blocked_order([[0, 1], [2, 3], [4, 5]], 0, 0, 2)
    assert sorted(order) == list(range(6)) and all(order.index(i + 1) == order.index(i) + 1 for i in (0, 2, 4))
    ids = [f"class_{k}/{i}" for k in range(3) for i in range(10)]
    assert sorted(hash_order(ids)) == list(range(30)) and hash_order(ids) != list(range(30))


@pytest.mark.parametrize("share", [4, 6, 8])
def test_pairs_and_single_clips_mixed_are_never_cut_by_a_micro_batch(share):
    pairs, singles = [[i, i + 1] for i in range(0, 60, 2)], [[i] for i in range(60, 85)]
    order = blocked_order(pairs + singles, 3, 1, share)
    assert sorted(order) == list(range(85)) and order != blocked_order(pairs + singles, 3, 2, share)
    assert all(order.index(a) // share == order.index(b) // share for a, b in pairs)


def test_blocks_are_cut_only_where_nothing_fits():
    order = blocked_order([[2 * i, 2 * i + 1] for i in range(9)], 0, 0, 3)
    assert sorted(order) == list(range(18))
    assert sum(order.index(2 * i) // 3 != order.index(2 * i + 1) // 3 for i in range(9)) == 3  # one in each two micro-batches
    assert sorted(blocked_order([list(range(7))], 0, 0, 2)) == list(range(7))


def test_a_rest_smaller_than_the_processes_is_an_error_that_names_them():
    with pytest.raises(ConfigError, match="training part of 3 samples .* = 2 x 2"):
        plan(list(range(3)), drop_last=False, processes=2, accumulation=2)


def test_evaluation_is_padded_by_repeats_from_the_start():
    shares = [evaluation_draws([7, 8, 9, 4, 5], 2, 3, rank) for rank in range(3)]
    assert [[draw[0] for batch in share for draw in batch] for share in shares] == [[7, 8], [9, 4], [5, 7]]
    assert evaluation_draws([], 4, 2, 1) == []
