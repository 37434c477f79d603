"""Soft dynamic time warping (arXiv 1703.01541) as a similarity in [-1, 1].

With S in place of the cost 1 - S: n = steps + tokens - 1, v = n - gamma log W, where W sums over the warping paths the product of
exp(S / gamma) over their cells and of exp(1 / gamma) over their diagonal moves, which leave a cell out. So the score
1 - (v - v0) / n is gamma (log W - log of the number of paths) / n, and its gradient on a cell the share of W through it, over n.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mmexpert.similarity.base import block_rows
from mmexpert.similarity.path_sums import PathSums, path_sums


def soft_dtw_scores(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float) -> Tensor:
    """table S [A, B, L, M], real lengths [A] and [B] -> [A, B] = 1 - (v - v0) / (steps + tokens - 1).

    v: soft minimum over warping paths of the sum of 1 - S. v0: the same of an all-zero cost (-gamma log of the number of paths).
    """
    return _Warped.apply(table, steps, tokens, gamma)


class _Warped(torch.autograd.Function):
    """As monotone.py's: scores and, with them, their gradient, block by block of rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, steps: Tensor, tokens: Tensor, gamma: float) -> Tensor:
        """table [A, B, L, M], steps [A], tokens [B] int64 -> [A, B]."""
        length, width = table.shape[2:]
        scores = torch.empty_like(table[..., 0, 0])
        gradient = torch.empty_like(table) if ctx.needs_input_grad[0] else None
        paths = _log_paths(length, width).to(table.device)
        sums = path_sums((length + width - 1) / gamma + float(paths[-1, -1]))
        cells = (length + width + 1) * (min(length, width) + 2) * table.shape[1]  # of a row's anti-diagonals with what frames them
        rows = min(len(table), 4 * block_rows(cells, table))
        room = table.new_empty(2, rows * cells, dtype=torch.float64)
        for start in range(0, len(table), rows):
            at = slice(start, start + rows)
            given = gamma, gradient is not None, sums, room
            if length <= width:
                total, share = _warp(table[at].permute(2, 3, 0, 1), steps[at, None], tokens, *given)
            else:  # the shorter side across
                total, share = _warp(table[at].permute(3, 2, 0, 1), tokens, steps[at, None], *given)
            scores[at] = gamma * (total - paths[steps[at, None] - 1, tokens - 1]) / (steps[at, None] + tokens - 1)
            if gradient is not None:
                gradient[at] = share.permute(2, 3, 0, 1) if length <= width else share.permute(2, 3, 1, 0)
        ctx.save_for_backward(gradient)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradient, scaled."""
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None, None, None


def _warp(
    table: Tensor, rows: Tensor, columns: Tensor, gamma: float, shares: bool, sums: PathSums, room: Tensor
) -> tuple[Tensor, Tensor | None]:
    """table [L, M, A, B], real rows and columns of each pair [A, B] or what broadcasts to it -> log W [A, B] and, where asked for, the
    share of W through each cell over rows + columns - 1 [L, M, A, B].

    Cells of one anti-diagonal depend on the two before alone: [number of the anti-diagonal, row, A, B], so that all work is on whole
    rows of pairs; a row of none before and after, and two anti-diagonals of none behind, stand for what lies outside the table.
    """
    length, width, *pairs = table.shape
    diagonals = length + width - 1
    shape = (diagonals + 2, length + 2, *pairs)
    energy, arrived = room[:, : torch.Size(shape).numel()].view(2, *shape).fill_(sums.none)
    row, column = (torch.arange(n, device=table.device).view(n, 1, 1) for n in (length, width))
    real = (row < rows)[:, None] & (column < columns)
    cells = _cells(energy, length, width)
    sums.held(cells.copy_(table).div_(gamma)).masked_fill_(~real, sums.none)
    skip = sums.held(energy.new_tensor(1 / gamma))

    arrived[0, 1] = energy[0, 1]
    for number in range(1, diagonals):
        there, above = _inside(number, length, width)
        here = sums.plus(arrived[number - 1][there], arrived[number - 1][above], out=arrived[number][there])
        sums.plus(here, sums.times(arrived[number - 2][above], skip), out=here)  # number 1: the last one, of none
        sums.times(here, energy[number][there], out=here)
    ends = rows + columns - 2  # anti-diagonal of each pair's last cell
    last = (rows - 1).expand(*pairs)
    one, other = torch.arange(pairs[0], device=table.device)[:, None], torch.arange(pairs[1], device=table.device)
    total = sums.log(_cells(arrived, length, width)[last, columns - 1, one, other])
    if not shares:
        return total, None
    weight = sums.held(-total - (ends + 1).double().log())
    for number in range(diagonals - 1, -1, -1):  # energy becomes energy times what goes on from a cell
        there, _ = _inside(number, length, width)
        below = slice(there.start + 1, there.stop + 1)
        onward = torch.where((ends == number) & (row[there.start - 1 : there.stop - 1] == last), weight, sums.none)
        sums.plus(onward, energy[number + 1][there], out=onward)
        sums.plus(onward, energy[number + 1][below], out=onward)
        sums.plus(onward, sums.times(energy[number + 2][below], skip), out=onward)
        sums.times(arrived[number][there], onward, out=arrived[number][there])
        sums.times(energy[number][there], onward, out=energy[number][there])
    return total, sums.value(_cells(arrived, length, width)).masked_fill_(~real, 0)


def _inside(number: int, length: int, width: int) -> tuple[slice, slice]:
    """Rows of an anti-diagonal that lie in the table, counted with the row of none before them; and those one above."""
    first, end = max(0, number - width + 1), min(length, number + 1)
    return slice(first + 1, end + 1), slice(first, end)


def _cells(diagonals: Tensor, length: int, width: int) -> Tensor:
    """[anti-diagonal, row, A, B] as the cells [L, M, A, B] that lie on them: (l, m) on number l + m, in row 1 + l."""
    along, down, *others = diagonals.stride()
    return diagonals[:, 1:].as_strided((length, width, *diagonals.shape[2:]), (along + down, along, *others))


@lru_cache(maxsize=8)
def _log_paths(length: int, width: int) -> Tensor:
    """log of the number of warping paths to each cell [length, width] (Delannoy numbers), float64."""
    rows = [torch.zeros(width, dtype=torch.float64)]
    for _ in range(length - 1):
        above = rows[-1]
        rows.append(torch.cat([above[:1], torch.logaddexp(above[1:], above[:-1])]).logcumsumexp(0))
    return torch.stack(rows)
