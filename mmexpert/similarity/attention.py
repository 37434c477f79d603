"""Each token attends to the other sequence and is compared with what it sees there (stacked cross attention, SCAN 1803.08024)."""

from collections.abc import Iterator

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
    with sum_m W_m t_m, W = softmax_m(S / temperature), [A, B, L], and of each target token with what it attends to [A, B, M].

    The attended vector is never formed: its product with the token is sum W S, its squared length W G W. Cost A B L M^2 instead of
    A B L M D, and nothing of a table's size is kept but S: blocks of rows, of cache size, form the rest again.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        table: Tensor, q_gram: Tensor, t_gram: Tensor, q_mask: Tensor, t_mask: Tensor, temperature: float, directions: str,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """As the class says; None for a direction that is not asked for."""
        forth, forth_square = table.new_empty(2, *table.shape[:3]) if directions != "target" else (None, None)
        back, back_square = table.new_empty(2, *table.shape[:2], table.shape[3]) if directions != "query" else (None, None)
        blocks = _Blocks(table, temperature)
        for at in blocks:
            if forth is not None:
                cosine, square = blocks.cosine(table[at], t_gram, t_mask)
                forth[at], forth_square[at] = cosine.transpose(0, 1), square.transpose(0, 1)
            if back is not None:
                back[at], back_square[at] = blocks.cosine(table[at].permute(1, 0, 3, 2), q_gram[at], q_mask[at])
        ctx.save_for_backward(table, q_gram, t_gram, q_mask, t_mask, forth, forth_square, back, back_square)
        ctx.temperature = temperature
        return forth, back

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, by_forth: Tensor | None, by_back: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the table and both gram matrices; each block's attention is formed again."""
        table, q_gram, t_gram, q_mask, t_mask, forth, forth_square, back, back_square = ctx.saved_tensors
        by_table = torch.empty_like(table) if forth is not None else torch.zeros_like(table)
        by_q_gram, by_t_gram = torch.zeros_like(q_gram), torch.zeros_like(t_gram)
        blocks = _Blocks(table, ctx.temperature)
        for at in blocks:
            if forth is not None:
                result = (x[at].transpose(0, 1) for x in (forth, forth_square, by_forth))
                by_scores, by_gram = blocks.gradients(table[at], t_gram, t_mask, *result)
                by_table[at] = by_scores.transpose(0, 1)
                by_t_gram += by_gram
            if back is not None:
                mirrored = table[at].permute(1, 0, 3, 2)
                by_scores, by_q_gram[at] = blocks.gradients(mirrored, q_gram[at], q_mask[at], back[at], back_square[at], by_back[at])
                by_table[at].add_(by_scores.mT)
        return by_table, by_q_gram, by_t_gram, None, None, None, None


class _Blocks:
    """Blocks of a table's rows, of cache size, and the room that all of them work in: memory taken anew for each would cost more time
    than the arithmetic. What a block gives is overwritten by the next."""

    def __init__(self, table: Tensor, temperature: float) -> None:
        self.rows, self.count, self.temperature = block_rows(table[0].numel(), table), len(table), temperature
        self.room = table.new_empty(4, min(self.rows, self.count) * table[0].numel())

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, start + self.rows) for start in range(0, self.count, self.rows))

    def cosine(self, table: Tensor, gram: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """table [A, B, L, M] of this block, gram [B, M, M], mask [B, M] -> cosine and squared length of the attended vectors,
        [B, A, L]."""
        scores, weights, spread, product = self._attend(table, gram, mask)
        square = torch.mul(weights, spread, out=product).sum(-1).clamp_(min=_LEAST)
        cosine = torch.mul(weights, scores, out=product).sum(-1).mul_(self.temperature) * square.rsqrt()
        square.masked_fill_(cosine.abs() > 1, torch.inf)  # tokens that cancel out, to rounding: a cosine at its bound, without gradient
        cosine.clamp_(-1, 1)
        return cosine.view(len(mask), len(table), -1), square.view(len(mask), len(table), -1)

    def gradients(
        self, table: Tensor, gram: Tensor, mask: Tensor, cosine: Tensor, square: Tensor, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """upstream [B, A, L], the loss's gradient on the cosines -> gradients on the scores [B, A, L, M] and on the gram matrices.

        A cosine does not change with the length of W: its gradient on W has no part along W (but where the length is clamped), which
        spares the softmax's sum.
        """
        scores, weights, spread, product = self._attend(table, gram, mask)
        cosine, square, upstream = (x.flatten(1)[..., None] for x in (cosine, square, upstream))
        by_product = upstream * square.rsqrt()  # d / d sum W S
        held = square > _LEAST
        by_square = torch.where(held, -upstream * cosine / (2 * square), 0)  # d / d W G W
        along = torch.where(held, 0, upstream * cosine)
        by_scores = spread.mul_(2 / self.temperature * by_square).addcmul_(scores, by_product)
        by_scores.add_(by_product - along / self.temperature).mul_(weights)
        by_gram = torch.mul(weights, by_square, out=product).mT @ weights
        return by_scores.view(len(mask), len(table), -1, table.shape[3]), by_gram

    def _attend(self, table: Tensor, gram: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S / temperature, weights W, W G and one more of the size, all [B, A L, M]: one matrix product an attended sequence."""
        scores, weights, spread, product = (flat[: table.numel()].view(len(mask), -1, table.shape[3]) for flat in self.room)
        torch.div(table.transpose(0, 1), self.temperature, out=scores.view(len(mask), len(table), -1, table.shape[3]))
        torch.softmax(scores.masked_fill_(~mask[:, None], _FILL / self.temperature), -1, out=weights)
        return scores, weights, torch.bmm(weights, gram, out=spread), product
