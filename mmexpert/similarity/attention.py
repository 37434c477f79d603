"""Each token attends to the other sequence and is compared with what it sees there (stacked cross attention, SCAN 1803.08024)."""

import torch
from torch import Tensor

from mmexpert.similarity.base import Head, Similarity, Tokens, block_rows, check_directions, masked_mean
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
        grams = [side.unit @ side.unit.mT for side in (query, target)]
        forth, back = _Attended.apply(table, *grams, query.mask, target.mask, self.temperature, self.directions)
        scores = [masked_mean(forth, query.mask[:, None])] if self.directions != "target" else []
        scores += [masked_mean(back, target.mask)] if self.directions != "query" else []
        return sum(scores) / len(scores)


class Attention(Similarity):
    """AttentionHead alone."""

    def __init__(
        self, attention_temperature: float, directions: str, dim: int, project: bool, row_chunk: int, chunk_bytes: int
    ) -> None:  # fmt: skip
        super().__init__({"attention": AttentionHead(attention_temperature, directions)}, dim, project, row_chunk, chunk_bytes)


class _Attended(torch.autograd.Function):
    """table S [A, B, L, M], gram matrices [A, L, L], [B, M, M] of the unit tokens, masks [A, L], [B, M] -> cosine of each query token
    with sum_m A_m t_m, A = softmax_m(S / temperature), [A, B, L], and of each target token with what it attends to [A, B, M].

    The attended vector is never formed: its product with the token is sum A S, its squared length A G A. Cost A B L M^2 instead of
    A B L M D, and nothing of a table's size is kept but S: blocks of rows, of cache size, form the rest again.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        table: Tensor, q_gram: Tensor, t_gram: Tensor, q_mask: Tensor, t_mask: Tensor, temperature: float, directions: str,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """As the class says; None for a direction that is not asked for."""
        forth = table.new_empty(table.shape[:3]) if directions != "target" else None
        back = table.new_empty(*table.shape[:2], table.shape[3]) if directions != "query" else None
        for at in _blocks(table):
            if forth is not None:
                cosine = _attend(_rows(table[at]), t_gram, t_mask, temperature)[2]
                forth[at] = cosine.view(len(t_gram), -1, table.shape[2]).transpose(0, 1)
            if back is not None:
                cosine = _attend(_rows(table[at].permute(1, 0, 3, 2)), q_gram[at], q_mask[at], temperature)[2]
                back[at] = cosine.view(-1, len(t_gram), table.shape[3])
        ctx.save_for_backward(table, q_gram, t_gram, q_mask, t_mask)
        ctx.temperature = temperature
        return forth, back

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, forth: Tensor | None, back: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the table and both gram matrices; each block's attention is formed again."""
        table, q_gram, t_gram, q_mask, t_mask = ctx.saved_tensors
        by_table, by_q_gram, by_t_gram = torch.zeros_like(table), torch.zeros_like(q_gram), torch.zeros_like(t_gram)
        for at in _blocks(table):
            if forth is not None:
                upstream = forth[at].transpose(0, 1).flatten(1)
                by_scores, by_gram = _attend_backward(_rows(table[at]), t_gram, t_mask, ctx.temperature, upstream)
                by_table[at] += by_scores.view(len(t_gram), -1, *table.shape[2:]).transpose(0, 1)
                by_t_gram += by_gram
            if back is not None:
                mirrored = _rows(table[at].permute(1, 0, 3, 2))
                by_scores, by_q_gram[at] = _attend_backward(mirrored, q_gram[at], q_mask[at], ctx.temperature, back[at].flatten(1))
                by_table[at] += by_scores.view(-1, len(t_gram), table.shape[3], table.shape[2]).mT
        return by_table, by_q_gram, by_t_gram, None, None, None, None


def _blocks(table: Tensor) -> list[slice]:
    """Rows a block: some tensors of its size are at work at once."""
    rows = block_rows(table.shape[1:], 2 * table.element_size())
    return [slice(start, start + rows) for start in range(0, len(table), rows)]


def _rows(table: Tensor) -> Tensor:
    """table [A, B, L, M] -> [B, A L, M]: one matrix product an attended sequence. A view where it can be one."""
    return table.transpose(0, 1).reshape(table.shape[1], -1, table.shape[3])


def _attend(scores: Tensor, gram: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights A [B, A L, M], A G, cosine [B, A L] and squared length of the attended vectors."""
    weights = (scores / temperature).masked_fill_(~mask[:, None], _FILL).softmax(-1)
    spread = weights @ gram
    square = (weights * spread).sum(-1).clamp_(min=_LEAST)
    return weights, spread, (weights * scores).sum(-1) * square.rsqrt(), square


def _attend_backward(scores: Tensor, gram: Tensor, mask: Tensor, temperature: float, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """upstream [B, A L], the loss's gradient on the cosines -> gradients on the scores and on the gram matrices."""
    weights, spread, cosine, square = _attend(scores, gram, mask, temperature)
    by_product = (upstream * square.rsqrt())[..., None]  # d / d sum A S
    by_square = torch.where(square > _LEAST, -upstream * cosine / (2 * square), 0)[..., None]  # d / d A G A
    by_weight = spread.mul_(2 * by_square).addcmul_(scores, by_product)
    by_weight -= (weights * by_weight).sum(-1, keepdim=True)
    by_gram = (weights * by_square).mT @ weights
    return by_weight.div_(temperature).add_(by_product).mul_(weights), by_gram
