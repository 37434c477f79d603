"""Pooling and the trunk see real tokens only; references are plain loops and torch's own attention module."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmexpert.encoders.pooling import Attention, AttentionPool, Block, Trunk, masked_mean
from mmexpert.types import ConfigError

DIM = 8


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def tokens_and_mask():
    tokens = torch.randn(3, 5, DIM, generator=seeded(0))
    return tokens, torch.arange(5) < torch.tensor([5, 3, 1])[:, None]


def trunk(pooling="attention", layers=2, context_length=6):
    torch.manual_seed(0)
    return Trunk(DIM, layers, 2, 0.0, context_length, pooling).eval()


def test_masked_mean_is_the_mean_of_the_real_tokens_and_zero_without_any():
    tokens, mask = tokens_and_mask()
    tokens[~mask] = float("nan")
    mask[2] = False
    expected = torch.stack([tokens[0].sum(0) / 5, tokens[1, :3].sum(0) / 3, torch.zeros(DIM)])
    torch.testing.assert_close(masked_mean(tokens, mask), expected)


def test_attention_equals_softmax_attention_written_out():
    torch.manual_seed(0)
    attention = Attention(DIM, 2, 0.0).eval()
    tokens, mask = tokens_and_mask()
    query, (key, value) = attention.query(tokens), attention.key_value(tokens).chunk(2, dim=2)
    expected = torch.zeros_like(tokens)
    for row in range(3):
        for head in (slice(0, 4), slice(4, 8)):
            for q in range(5):
                real = [k for k in range(5) if mask[row, k]]
                weight = torch.stack([query[row, q, head] @ key[row, k, head] / math.sqrt(4) for k in real]).softmax(0)
                expected[row, q, head] = sum(w * value[row, k, head] for w, k in zip(weight, real, strict=True))
    torch.testing.assert_close(attention(tokens, tokens, mask), attention.out(expected))


def test_a_block_is_pre_norm_attention_then_a_gelu_network():
    torch.manual_seed(0)
    block = Block(DIM, 2, 0.5).eval()
    tokens, mask = tokens_and_mask()
    normed = F.layer_norm(tokens, (DIM,))
    middle = tokens + block.attention(normed, normed, mask)
    first, last = block.network[0], block.network[3]
    expected = middle + last(F.gelu(first(F.layer_norm(middle, (DIM,)))))
    torch.testing.assert_close(block(tokens, mask), expected)


@pytest.mark.parametrize("pooling", ["attention", "eot", "mean"])
def test_what_lies_under_the_mask_never_matters(pooling):
    module = trunk(pooling)
    tokens, mask = tokens_and_mask()
    clean, pooled = module(tokens, mask)
    tokens[~mask] = float("nan")
    dirty, dirty_pooled = module(tokens, mask)
    assert torch.equal(pooled, dirty_pooled)
    assert torch.equal(clean[mask], dirty[mask])


@pytest.mark.parametrize("pooling", ["attention", "eot", "mean"])
def test_more_padding_changes_no_pooled_vector(pooling):
    module = trunk(pooling)
    tokens, mask = tokens_and_mask()
    longer, longer_mask = F.pad(tokens, (0, 0, 0, 1), value=7.0), F.pad(mask, (0, 1))
    torch.testing.assert_close(module(tokens, mask)[1], module(longer, longer_mask)[1])


@pytest.mark.parametrize("pooling", ["attention", "eot", "mean"])
def test_the_pooled_vector_depends_on_every_real_token_and_on_their_order(pooling):
    module = trunk(pooling)
    tokens, mask = tokens_and_mask()
    pooled = module(tokens, mask)[1]
    for position in range(5):
        changed = tokens.clone()
        changed[:, position] += torch.randn(DIM, generator=seeded(position))
        moved = (module(changed, mask)[1] != pooled).any(1)
        assert moved.tolist() == mask[:, position].tolist()
    flipped = module(tokens.flip(1), mask.new_ones(3, 5))[1]
    assert not torch.allclose(flipped[0], pooled[0], atol=1e-4)


def test_eot_pooling_gives_the_end_token_and_leaves_it_out_of_the_sequence():
    module = trunk("eot", layers=1)
    tokens, mask = tokens_and_mask()
    sequence, pooled = module(tokens, mask)
    placed = torch.cat([tokens.where(mask[..., None], 0) + module.positions[:, :5], module.end.expand(3, -1, -1)], 1)
    whole = module.norm(module.blocks[0](placed, F.pad(mask, (0, 1), value=True)))
    assert sequence.shape == (3, 5, DIM)
    torch.testing.assert_close(pooled, whole[:, 5])
    torch.testing.assert_close(sequence, whole[:, :5])


def test_attention_pooling_learns_where_to_look():
    torch.manual_seed(0)
    pool = AttentionPool(DIM, 2)
    tokens, mask = tokens_and_mask()
    pool(tokens, mask).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in pool.named_parameters() if name != "attention.key_value.bias")


def test_a_trunk_without_layers_keeps_the_tokens_in_place():
    module = trunk("mean", layers=0)
    tokens, mask = tokens_and_mask()
    sequence, pooled = module(tokens, mask)
    expected = F.layer_norm(tokens.where(mask[..., None], 0) + module.positions[:, :5], (DIM,))
    torch.testing.assert_close(sequence, expected)
    torch.testing.assert_close(pooled, masked_mean(expected, mask))


def test_more_tokens_than_context_length_is_an_error_that_names_the_key():
    module = trunk(context_length=4)
    with pytest.raises(ConfigError, match=r"5 time tokens.*encoder\.radar\.trunk\.context_length=4"):
        module(*tokens_and_mask())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((DIM, 1, 2, 0.0, 4, "max"), "pooling=max: choose attention, eot or mean"),
        ((DIM, 1, 3, 0.0, 4, "mean"), "heads=3 does not divide the width 8"),
        ((DIM, 0, 2, 0.0, 4, "eot"), "layers=0: pooling=eot needs 1 or more"),
    ],
)
def test_a_wrong_key_of_the_trunk_is_named(arguments, text):
    with pytest.raises(ConfigError, match=text):
        Trunk(*arguments)
