"""From tokens to one vector, and the transformer over time tokens that comes before it.

Shapes: B rows, L tokens, D width; mask [B, L] bool, True = real. What lies under a False never matters, NaN included.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.types import ConfigError


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens [B, D]; zero where a row has none."""
    kept = tokens.where(mask[..., None], torch.zeros((), dtype=tokens.dtype, device=tokens.device))
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def require_fit(length: int, context_length: int) -> None:
    """Raises ConfigError where a clip has more time tokens than there are learned positions."""
    if length > context_length:
        raise ConfigError(
            f"a clip has {length} time tokens, but encoder.radar.trunk.context_length={context_length}: raise it or dataset.unit_length, "
            f"or lower dataset.max_length"
        )


class Attention(nn.Module):
    """Multi-head attention through torch's scaled_dot_product_attention. width: D. heads: divide D."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"heads={heads} does not divide the width {width}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """query [B, Q, D], tokens [B, L, D], mask [B, L] or None (all real) -> [B, Q, D]."""
        split = lambda x: x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        key, value = self.key_value(tokens).chunk(2, dim=2)
        allowed = None if mask is None else mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(split(self.query(query)), split(key), split(value), allowed, dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer layer: attention, then a GELU network of width 4 D."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """tokens [B, L, D] -> [B, L, D]."""
        normed = self.norm1(tokens)
        tokens = tokens + self.drop(self.attention(normed, normed, mask))
        return tokens + self.drop(self.network(self.norm2(tokens)))


class AttentionPool(nn.Module):
    """A learned query that attends to the real tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.randn(1, 1, width))
        self.attention = Attention(width, heads, 0.0)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """tokens [B, L, D] -> [B, D]."""
        return self.attention(self.seed.expand(tokens.shape[0], -1, -1), tokens, mask)[:, 0]


class Trunk(nn.Module):
    """Transformer over time tokens, then pooling.

    dim: D. layers: 0 or more (eot: 1 or more). context_length: most tokens. pooling: attention (learned query) | eot (a learned token
    with a position of its own, at the end of the real tokens' attention) | mean.
    """

    def __init__(self, dim: int, layers: int, heads: int, dropout: float, context_length: int, pooling: str) -> None:
        super().__init__()
        if pooling not in ("attention", "eot", "mean"):
            raise ConfigError(f"encoder.radar.trunk.pooling={pooling}: choose attention, eot or mean")
        if layers < 0 or not 0 <= dropout < 1 or context_length < 1:
            raise ConfigError(
                f"encoder.radar.trunk: layers={layers} is 0 or more, dropout={dropout} 0 to below 1, "
                f"context_length={context_length} 1 or more"
            )
        if pooling == "eot" and layers < 1:
            raise ConfigError(f"encoder.radar.trunk.layers={layers}: pooling=eot needs 1 or more, or its token sees no other")
        self.context_length, self.pooling = context_length, pooling
        self.positions = nn.Parameter(torch.randn(1, context_length, dim) * 0.3)  # beside normalised tokens 0.02 goes unseen
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        if pooling == "eot":
            self.end = nn.Parameter(torch.randn(1, 1, dim) * 0.02)  # token and position in one
        if pooling == "attention":
            self.pool = AttentionPool(dim, heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, L, D], mask [B, L] -> (tokens [B, L, D], pooled [B, D])."""
        length = tokens.shape[1]
        require_fit(length, self.context_length)
        tokens = tokens.where(mask[..., None], 0) + self.positions[:, :length]
        if self.pooling == "eot":
            tokens = torch.cat([tokens, self.end.expand(tokens.shape[0], -1, -1).to(tokens.dtype)], 1)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        tokens = self.norm(tokens)
        if self.pooling == "eot":
            return tokens[:, :-1], tokens[:, -1]
        if self.pooling == "mean":
            return tokens, masked_mean(tokens, mask)
        return tokens, self.pool(tokens, mask)
