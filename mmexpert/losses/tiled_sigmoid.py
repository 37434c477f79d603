"""The sigmoid loss in tiles of rows and blocks of columns: value and gradients of a tile right after each other, one pass.

Own pairs are kept apart from the rest, positives beside them are group sums. Shapes: R rows, C columns of a block, D width.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from mmexpert.losses import tiling
from mmexpert.losses.gather import own_rank
from mmexpert.losses.positives import Positives
from mmexpert.losses.ring import around
from mmexpert.losses.tiled import NEVER, refuse_second_derivative
from mmexpert.losses.tiling import STRIP, row_tiles


def sigmoid_tiles(x: Tensor, y: Tensor, keys: tuple[Tensor, Tensor], scale: Tensor, bias: Tensor, positive_weight: float) -> Tensor:
    """The loss of unit rows x [R, D] against y [C, D] of all ranks, rank r's own at r R; keys: int64 ([R], [C]); scale, bias: scalars."""
    return _SigmoidTiles.apply(x, y, scale, _learned(bias), keys, positive_weight, False)


def sigmoid_ring(x: Tensor, y: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, positive_weight: float) -> Tensor:
    """The same of each rank's own rows x, y [R, D]: blocks of targets travel with their keys and gradients, none is ever gathered."""
    return _SigmoidTiles.apply(x, y, scale, _learned(bias), (keys, keys), positive_weight, True)


def _learned(bias: Tensor) -> Tensor:
    """The bias, a leaf: under no_grad it would still ask for its gradient, and so for a second pass."""
    return bias if torch.is_grad_enabled() else bias.detach()


class _SigmoidTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, keys: tuple[Tensor, Tensor], positive_weight: float, ring: bool
    ) -> Tensor:
        """The mean over rows; the gradients are formed here, for backward to scale."""
        with torch.autocast(x.device.type, enabled=False):
            sums = _Sums(x, scale.detach(), bias.detach(), positive_weight, any(ctx.needs_input_grad))
            if ring:
                own = own_rank()
                dy = around(y, keys[1], lambda block, names, rank, dy: sums.add(block, (keys[0], names), 0 if rank == own else None, dy))
            else:
                dy = torch.zeros_like(y, memory_format=torch.contiguous_format)
                sums.add(y.contiguous(), keys, own_rank() * len(x), dy)
            ctx.save_for_backward(*sums.gradients(dy))
            return (sums.value / len(x)).to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return *((grad * gradient).to(gradient.dtype) if needed else None for gradient, needed in wanted), None, None, None


class _Sums:
    """Value and gradients of rows x, added up over blocks of columns; sums in float64."""

    def __init__(self, x: Tensor, scale: Tensor, bias: Tensor, positive_weight: float, wants: bool) -> None:
        self.x, self.scale, self.bias, self.weight, self.wants = x.contiguous(), scale, bias, positive_weight, wants
        self.value, self.dbias = x.new_zeros((), dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
        self.dx = torch.zeros_like(self.x)
        self.tiles = list(row_tiles(len(x)))
        self.threshold = 40.0 if x.dtype == torch.float64 else 20.0  # where softplus(z) = z to the last digit

    def add(self, y: Tensor, keys: tuple[Tensor, Tensor], first: int | None, dy: Tensor) -> None:
        """One block of columns: y [C, D], contiguous, first as in Positives; its gradient is added to dy [C, D]."""
        positives = Positives(*keys, first)
        room = y.new_empty(self.tiles[0].stop, len(y))
        for rows in self.tiles:
            tile = torch.mm(self.x[rows] * self.scale, y.T, out=room[: rows.stop - rows.start]).add_(self.bias)
            if first is not None:
                tile.diagonal(first + rows.start).fill_(NEVER)
            self._add_tile(tile, rows, y, positives, keys, dy)
        del room
        if positives.any_others:
            self._add_others(y, positives, dy)
        if first is not None:
            self._add_own(y[first : first + len(self.x)], dy[first : first + len(self.x)])

    def _add_tile(self, tile: Tensor, rows: slice, y: Tensor, positives: Positives, keys: tuple[Tensor, Tensor], dy: Tensor) -> None:
        """softplus of all logits, as if all were negatives; positives count positive_weight times, their own part comes later."""
        extra = self.weight - 1
        for start in range(0, len(tile), STRIP):  # a strip stays in the cache
            strip, names = tile[start : start + STRIP], keys[0][rows][start : start + STRIP, None]
            factor = 1 + extra * (names == keys[1]) if extra and positives.any_others else None
            soft = softplus_(strip, self.threshold)
            if factor is not None:
                soft.mul_(factor), strip.mul_(factor)
            self.value += soft.sum()
            self.dbias += strip.sum()
        if self.wants:
            self.dx[rows].addmm_(tile, y)
            dy.addmm_(tile.T, self.x[rows])

    def _add_others(self, y: Tensor, positives: Positives, dy: Tensor) -> None:
        """minus the logits of positives beside the own pairs: softplus(-z) = softplus(z) - z."""
        others, count = positives.row_others(y), positives.row_count - (0 if positives.first is None else 1)
        logits = self.scale.double() * (self.x * others).sum(1).double() + self.bias.double() * count
        self.value -= self.weight * logits.sum()
        if self.wants:
            self.dx.sub_(others, alpha=self.weight)
            dy.sub_(positives.column_others(self.x), alpha=self.weight)
            self.dbias -= self.weight * count.sum()

    def _add_own(self, y: Tensor, dy: Tensor) -> None:
        """softplus(-z) of the own pairs; dy is changed in place."""
        logits = (self.x * y).sum(1).mul_(self.scale) + self.bias
        self.value += self.weight * F.softplus(-logits, threshold=self.threshold).sum(dtype=torch.float64)
        if self.wants:
            pull = -self.weight * (-logits).sigmoid()
            self.dx.addcmul_(pull[:, None], y)
            dy.addcmul_(pull[:, None], self.x)
            self.dbias += pull.sum(dtype=torch.float64)

    def gradients(self, dy: Tensor) -> tuple[Tensor, ...]:
        """(dx, dy, dscale, dbias) of the mean over rows; none where no gradient is asked for."""
        if not self.wants:
            return ()
        share = self.scale / len(self.x)
        dscale = (self.x * self.dx).sum() / len(self.x)
        return self.dx.mul_(share), dy.mul_(share), dscale.to(self.scale.dtype), (self.dbias / len(self.x)).to(self.bias.dtype)


def softplus_(z: Tensor, threshold: float) -> Tensor:
    """log(1 + exp(z)); z becomes its sigmoid. threshold: where softplus(z) = z to the last digit.

    torch's softplus takes log1p, on a CPU 5 times as slow as log. With u = 1 + e rounded, log(1 + e) = log(u) + (1 + e - u) / u to the
    last digit: the second term is what rounding took, for small e all there is.
    """
    if not tiling.free_to_read(z) or float(z.amax()) > threshold:
        soft = F.softplus(z, threshold=threshold)
        z.sigmoid_()
        return soft
    e = z.exp_()
    u = e + 1
    lost = e - (u - 1)
    soft = u.log().add_(lost.div_(u))
    e.div_(u)
    return soft
