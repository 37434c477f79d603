"""The softmax loss in tiles of rows: gradients formed beside the value, never more than a tile (or one matrix) of scores.

Each pair's own logit is kept apart from the rest: softmax - 1 cancels once a model fits. Positives cost no mask (losses/positives.py).
Shapes: R rows of this rank, C columns of all ranks, D width. Logits are in base 2: c = scale * log2(e). Tests hold the plain formula
beside it. The idea of gradients in forward is that of fused cross-entropies (arXiv 2410.10989); the second derivative is refused.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx

from mmexpert.losses import tiling
from mmexpert.losses.gather import own_rank, processes
from mmexpert.losses.positives import Positives
from mmexpert.losses.tiling import STRIP, row_tiles

LN2, LOG2E = math.log(2), math.log2(math.e)
ONE_EXPONENTIAL = 75.0  # largest scale at which 2^(c cos - m) spans fp32; above, rows and columns have a maximum each
NEVER = -1e30  # a logit whose exponential is 0, and which is no infinity


def one_exponential(scale: Tensor) -> bool:
    """Whether one exponential serves rows and columns. The scale is read on the CPU alone; elsewhere that would stall the device."""
    return tiling.free_to_read(scale) and float(scale.detach()) <= ONE_EXPONENTIAL


def refuse_second_derivative() -> None:
    """Raises RuntimeError where backward is asked for a graph (create_graph=True): once_differentiable would leave it out in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError("a loss in tiles has no second derivative: set trainer.loss_tile=dense")


def clip_tiles(x: Tensor, y: Tensor, scale: Tensor, keys: tuple[Tensor, Tensor], both: bool, store: bool) -> dict[str, Tensor]:
    """Terms of ClipLoss (form out) of unit rows x [R, D] against y [C, D] of all ranks, rank r's own at r R; scale: a scalar tensor.

    keys: (of the rows [R], of the columns [C]), int64. both: columns too. store: one R x C buffer is kept. With several processes the
    sums of columns are reduced over them: each rank has the mean over its own rows and columns, and N times the whole's gradient.
    Only loss_clip carries a gradient.
    """
    loss, there, back, floor = _ClipTiles.apply(x, y, scale, Positives(*keys, own_rank() * len(x)), both, store)
    terms = {"loss_clip": loss, "loss_query_to_target": there} | ({"loss_target_to_query": back} if both else {})
    return terms | {"loss_clip_floor": floor, "loss_clip_excess": loss.detach() - floor}


class _ClipTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, y: Tensor, scale: Tensor, positives: Positives, both: bool, store: bool) -> tuple[Tensor, ...]:
        """(loss, query to target, target to query, floor); the gradients are formed here, for backward to scale."""
        with torch.autocast(x.device.type, enabled=False):
            pieces = (_OneExponential if one_exponential(scale) else _TwoPass)(x, y, scale, positives.first, store)
            terms, weights = _value(pieces, positives, both)
            ctx.save_for_backward(*(_gradients(pieces, positives, *weights) if any(ctx.needs_input_grad) else ()))
        ctx.mark_non_differentiable(*terms[1:])
        return terms

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return *(grad * gradient if needed else None for gradient, needed in wanted), None, None, None


class _Pieces:
    """Tiles of logits and their sums without the own pairs. lr [R], lc [C]: base-2 log-sum-exp of a row's, a column's other logits."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, first: int, store: bool) -> None:
        self.x, self.y, self.scale, self.first = x.contiguous(), y.contiguous(), scale.detach(), first
        self.c = self.scale * LOG2E
        self.tiles = list(row_tiles(len(x)))
        self.own_columns = slice(first, first + len(x))
        self.own = (self.x * self.y[self.own_columns]).sum(1).mul_(self.c)
        self.stored = store
        self.room = x.new_empty(len(x) if store else self.tiles[0].stop, len(y))
        self.second = x.new_empty(min(STRIP, len(x)), len(y))
        self.lr, self.lc = x.new_empty(len(x)), x.new_empty(len(y))

    def logits(self, rows: slice) -> Tensor:
        """The base-2 logits of a tile in its buffer."""
        room = self.room[rows] if self.stored else self.room[: rows.stop - rows.start]
        return torch.mm(self.x[rows] * self.c, self.y.T, out=room)

    def strips(self, tile: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows of the tile, those rows, a second buffer of their size), a few rows after the other: they stay in the cache."""
        for start in range(0, len(tile), STRIP):
            strip = tile[start : start + STRIP]
            yield slice(start, start + len(strip)), strip, self.second[: len(strip)]

    def make(self, rows: slice) -> Tensor:
        """The tile that pass 1 sums and pass 2 turns into gradients."""
        raise NotImplementedError

    def again(self, rows: slice) -> Tensor:
        """The same tile in pass 2: kept, or made once more."""
        return self.room[rows] if self.stored else self.make(rows)

    def sums(self) -> None:
        """Pass 1: fills lr and lc."""
        raise NotImplementedError

    def weights(self, tile: Tensor, rows: slice, lq: Tensor, lt: Tensor, shares: tuple[float, float]) -> Tensor:
        """Pass 2: the tile becomes share_row 2^(l - lq) + share_column 2^(l - lt), in place."""
        raise NotImplementedError


class _OneExponential(_Pieces):
    """One 2^(l - m) serves rows and columns: |l| <= c, and m keeps 2^-116..2^106 inside fp32, up to scale 75."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.m = self.c - (2 * self.c - 120).clamp(0, 106)

    def make(self, rows: slice) -> Tensor:
        tile = self.logits(rows).sub_(self.m).exp2_()
        tile.diagonal(self.first + rows.start).zero_()
        return tile

    def sums(self) -> None:
        """As _Pieces: the same exponentials summed along rows and columns."""
        self.lc.zero_()
        for rows in self.tiles:
            tile = self.make(rows)
            torch.sum(tile, 1, out=self.lr[rows])
            self.lc += tile.sum(0)
        if processes() > 1:
            dist.all_reduce(self.lc)
        self.lr.log2_().add_(self.m)
        self.lc.log2_().add_(self.m)

    def weights(self, tile: Tensor, rows: slice, lq: Tensor, lt: Tensor, shares: tuple[float, float]) -> Tensor:
        """As _Pieces: each exponential times what its row and its column have to give."""
        by_row, by_column = (self.m - lq[rows]).exp2_().mul_(shares[0]), (self.m - lt).exp2_().mul_(shares[1])
        for part, strip, second in self.strips(tile):
            strip.mul_(torch.add(by_row[part, None], by_column, out=second))
        return tile


class _TwoPass(_Pieces):
    """Two log-sum-exps a tile: rows complete in it, columns as running maximum and sum. For any scale."""

    def make(self, rows: slice) -> Tensor:
        tile = self.logits(rows)
        tile.diagonal(self.first + rows.start).fill_(NEVER)
        return tile

    def sums(self) -> None:
        """As _Pieces: each row about its own maximum, each column about the highest so far."""
        top, total = torch.full_like(self.lc, 2 * NEVER), torch.zeros_like(self.lc)
        for rows in self.tiles:
            tile = self.make(rows)
            most, higher = tile.amax(1), torch.maximum(top, tile.amax(0))
            total.mul_((top - higher).exp2_())
            for part, strip, second in self.strips(tile):
                torch.sum(torch.sub(strip, most[part, None], out=second).exp2_(), 1, out=self.lr[rows][part])
                total += torch.sub(strip, higher, out=second).exp2_().sum(0)
            self.lr[rows].log2_().add_(most)
            top = higher
        if processes() > 1:
            highest = top.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            total.mul_((top - highest).exp2_())
            dist.all_reduce(total)
            top = highest
        torch.add(total.log2_(), top, out=self.lc)

    def weights(self, tile: Tensor, rows: slice, lq: Tensor, lt: Tensor, shares: tuple[float, float]) -> Tensor:
        """As _Pieces: an exponential for the row and one for the column."""
        for part, strip, second in self.strips(tile):
            torch.sub(strip, lt, out=second).exp2_()
            strip.sub_(lq[rows][part, None]).exp2_().mul_(shares[0])
            strip.add_(second, alpha=shares[1])
        return tile


@dataclass
class _Weights:
    """Of pass 2: lq [R], lt [C] base-2 log-sum-exps with the own pair; uq, ut log odds rest : own; shares of a row, a column."""

    lq: Tensor
    lt: Tensor
    uq: Tensor
    ut: Tensor
    shares: tuple[float, float]


def _value(pieces: _Pieces, positives: Positives, both: bool) -> tuple[tuple[Tensor, ...], tuple[_Weights, Tensor | None]]:
    """(loss, rows' mean, own columns' mean, floor), and what the gradients need."""
    x, y, own = pieces.x, pieces.y, pieces.own
    pieces.sums()
    row_others = positives.row_others(y) if positives.any_others else None
    others = pieces.x.new_zeros(2, len(y))  # of each column: own logit, sum of its other positives' logits
    others[0, pieces.own_columns] = own
    if both and positives.any_others:
        others[1] = pieces.c * (positives.column_others(x) * y).sum(1)
    if processes() > 1:
        dist.all_reduce(others)
    uq, ut = LN2 * (pieces.lr - own), LN2 * (pieces.lc - others[0])
    zero, mine = own.new_zeros(()), pieces.own_columns
    rest_q, rest_t = torch.logaddexp(uq, zero), torch.logaddexp(ut, zero)  # softplus, exact for tiny losses too
    count = positives.row_count.to(x.dtype)
    above = own * (1 - 1 / count)
    there = rest_q + LN2 * (above - (pieces.c * (x * row_others).sum(1) / count if row_others is not None else 0))
    back = rest_t[mine] + LN2 * (above - others[1, mine] / count)
    there, back, floor = there.mean(), back.mean(), count.log().mean()
    shares = (1 / (2 * len(x)),) * 2 if both else (1 / len(x), 0.0)
    weights = _Weights(own + rest_q / LN2, others[0] + rest_t / LN2, uq, ut[mine], shares)
    return ((there + back) / 2 if both else there.clone(), there, back, floor), (weights, row_others)


def _gradients(pieces: _Pieces, positives: Positives, weights: _Weights, row_others: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(dx [R, D], dy [C, D], dscale) of the loss."""
    x, y, mine, shares = pieces.x, pieces.y, pieces.own_columns, weights.shares
    dx, dy = torch.empty_like(x), torch.zeros_like(y)
    for rows in pieces.tiles:
        tile = pieces.weights(pieces.again(rows), rows, weights.lq, weights.lt, shares)
        torch.mm(tile, y, out=dx[rows])
        dy.addmm_(tile.T, x[rows])
    pieces.room = pieces.second = None
    count = positives.row_count.to(x.dtype)
    own = shares[0] * ((1 - 1 / count) - weights.uq.sigmoid()) + shares[1] * ((1 - 1 / count) - weights.ut.sigmoid())
    dx.addcmul_(own[:, None], y[mine])
    dy[mine].addcmul_(own[:, None], x)
    if row_others is not None:
        dx.addcmul_(row_others, (sum(shares) / count)[:, None], value=-1)
        dy.addcmul_(positives.column_others(x), (sum(shares) / positives.column_group_size.to(x.dtype))[:, None], value=-1)
    dscale = (x * dx).sum().to(pieces.scale.dtype)
    return dx.mul_(pieces.scale), dy.mul_(pieces.scale), dscale
