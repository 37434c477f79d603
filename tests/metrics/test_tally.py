"""What a direction counts block by block, against sorts of the whole row."""

import warnings

import pytest
import torch

from mmexpert.metrics.tally import GROUP, Tally, pairs


def first_rows(scores, width):
    """The first rows of a tally that sees the gallery in blocks of some width."""
    tally = Tally(torch.zeros(len(scores), dtype=torch.float64), scores.shape[1], None)
    for start in range(0, scores.shape[1], width):
        block = scores[:, start : start + width]
        padded = torch.full((len(scores), -(-block.shape[1] // GROUP) * GROUP), -torch.inf)
        padded[:, : block.shape[1]] = block
        tally.join(padded, slice(0, len(scores)), start, block.shape[1])
    return tally.top.tolist()


@pytest.mark.parametrize("levels", [1, 2, 50, 100_000])
@pytest.mark.parametrize("width", [3, 32, 100, 320, 1000])
def test_the_first_rows_over_many_blocks_are_those_of_a_stable_sort(levels, width):
    generator = torch.Generator().manual_seed(levels + width)
    scores = torch.randint(-levels, levels, (9, 1000), generator=generator) / levels
    scores[0] = scores[0].sort().values  # every block has better ones
    scores[1] = scores[1].sort(descending=True).values
    scores[2, 4:700] = 0.5
    assert first_rows(scores, width) == scores.sort(dim=1, descending=True, stable=True).indices[:, :10].tolist()


def test_excluded_rows_come_last_among_the_first_ones_in_their_order():
    scores = torch.full((1, 60), -torch.inf)
    scores[0, [50, 7]] = torch.tensor([0.9, 0.1])
    assert first_rows(scores, 32) == [[50, 7, 0, 1, 2, 3, 4, 5, 6, 8]]


def test_pairs_are_all_rows_of_one_key_in_order_of_the_queries():
    queries, gallery = torch.tensor([4, 2, 9, 2]), torch.tensor([2, 4, 4, 2, 5])
    assert list(zip(*(side.tolist() for side in pairs(queries, gallery)), strict=True)) == [(0, 1), (0, 2), (1, 0), (1, 3), (3, 0), (3, 3)]


def test_a_column_of_a_table_of_keys_brings_no_warning():
    keys = torch.arange(12).view(6, 2)[:, 0]
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pairs(keys, keys)[1].tolist() == list(range(6))
    finally:
        torch.set_warn_always(before)
