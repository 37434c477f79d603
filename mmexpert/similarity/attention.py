"""Each token attends to the other sequence and is compared with what it sees there (stacked cross attention, SCAN 1803.08024)."""

import torch
from torch import Tensor

from mmexpert.similarity.base import Head, Similarity, Tokens, check_directions, masked_mean
from mmexpert.types import ConfigError

_FILL = -1e4  # before a softmax: never -inf, whose product with 0 is NaN in the backward pass
_LEAST = 1e-12


class AttentionHead(Head):
    """Mean over tokens of their cosine with the other sequence's tokens, averaged by attention; both ways, half of each.

    attention_temperature: of the softmax over cosines, above 0. directions: both | query (query tokens attend) | target.
    """

    def __init__(self, attention_temperature: float, directions: str) -> None:
        super().__init__()
        if attention_temperature <= 0:
            raise ConfigError(f"similarity.attention_temperature={attention_temperature}: above 0")
        check_directions(directions)
        self.temperature, self.directions = attention_temperature, directions

    def forward(self, query: Tokens, target: Tokens, table: Tensor) -> Tensor:
        """Scores [Bq, Bt]."""
        scores = []
        if self.directions != "target":
            seen = _Attended.apply(table, target.unit @ target.unit.mT, target.mask, self.temperature)
            scores.append(masked_mean(seen, query.mask[:, None]))
        if self.directions != "query":
            seen = _Attended.apply(table.permute(1, 0, 3, 2), query.unit @ query.unit.mT, query.mask, self.temperature)
            scores.append(masked_mean(seen, target.mask[:, None]).T)
        return sum(scores) / len(scores)


class Attention(Similarity):
    """AttentionHead alone."""

    def __init__(
        self, attention_temperature: float, directions: str, dim: int, project: bool, row_chunk: int, chunk_bytes: int
    ) -> None:  # fmt: skip
        super().__init__({"attention": AttentionHead(attention_temperature, directions)}, dim, project, row_chunk, chunk_bytes)


class _Attended(torch.autograd.Function):
    """table S [A, B, L, M], gram G [B, M, M] of the attended side's unit tokens, its mask [B, M] -> cosine [A, B, L] of each token
    with sum_m A_m t_m, A = softmax_m(S / temperature).

    The attended vector is never formed: its product with the token is sum A S, its squared length A G A. Cost A B L M^2 instead of
    A B L M D, and nothing of a table's size is kept but S.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, gram: Tensor, mask: Tensor, temperature: float) -> Tensor:
        weights, spread, cosine, square = _attend(table, gram, mask, temperature)
        ctx.save_for_backward(table, gram, mask)
        ctx.temperature = temperature
        return cosine.view(len(gram), table.shape[0], table.shape[2]).transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, gram, mask = ctx.saved_tensors
        weights, spread, cosine, square = _attend(table, gram, mask, ctx.temperature)
        grad = grad.transpose(0, 1).reshape(cosine.shape)
        by_product = (grad * square.rsqrt())[..., None]  # d / d sum A S
        by_square = torch.where(square > _LEAST, -grad * cosine / (2 * square), 0)[..., None]  # d / d A G A
        scores = _rows(table, gram)
        by_weight = (by_product * scores).add_(spread.mul_(2 * by_square))
        by_weight -= (weights * by_weight).sum(-1, keepdim=True)
        by_table = weights * by_weight.div_(ctx.temperature).add_(by_product)
        by_gram = (weights * by_square).mT @ weights
        shape = (len(gram), table.shape[0], table.shape[2], table.shape[3])
        return by_table.view(shape).transpose(0, 1), by_gram, None, None


def _rows(table: Tensor, gram: Tensor) -> Tensor:
    """table [A, B, L, M] -> [B, A L, M]: one matrix product an attended sequence."""
    return table.transpose(0, 1).reshape(len(gram), -1, table.shape[3])


def _attend(table: Tensor, gram: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights A [B, A L, M], A G, cosine [B, A L] and squared length of the attended vectors."""
    scores = _rows(table, gram)
    weights = (scores / temperature).masked_fill_(~mask[:, None], _FILL).softmax(-1)
    spread = weights @ gram
    square = (weights * spread).sum(-1).clamp_(min=_LEAST)
    return weights, spread, (weights * scores).sum(-1) * square.rsqrt(), square
