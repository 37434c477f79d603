"""Soft dynamic time warping (arXiv 1703.01541) as a similarity in [-1, 1]."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCKED = 1e6  # cost of a cell outside the table


def soft_dtw_scores(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float) -> Tensor:
    """table S [A, B, L, M], real lengths [A] and [B] -> [A, B] = 1 - (v - v0) / (steps + tokens - 1).

    v: soft minimum over warping paths of the sum of 1 - S. v0: the same of an all-zero cost (-gamma log of the number of paths).
    """
    ends = steps[:, None] + tokens - 2  # anti-diagonal of each pair's last cell
    value = _walk(1 - table.to(torch.promote_types(table.dtype, torch.float32)), steps, ends, gamma)
    free = _free(table.shape[2], table.shape[3]).to(value)[steps[:, None] - 1, tokens - 1]
    return 1 - (value + gamma * free) / (steps[:, None] + tokens - 1)


def _walk(cost: Tensor, steps: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """Soft-min path cost of each pair, read at its own last cell. Cells of one anti-diagonal depend on the two before alone."""
    a, b, length, width = cost.shape
    # row l shifted right by l: column d then holds the cells (l, d - l) of anti-diagonal d
    skewed = F.pad(cost, (0, length), value=_BLOCKED).flatten(2)[..., : length * (width + length - 1)]
    diagonals = skewed.view(a, b, length, width + length - 1).permute(3, 0, 1, 2).contiguous().unbind(0)
    blocked = cost.new_full((a, b, length), _BLOCKED)
    before, last = blocked, diagonals[0]
    at = (steps - 1)[:, None, None].expand(a, b, 1)
    value = last.gather(2, at)[..., 0]
    for number, diagonal in enumerate(diagonals[1:], 1):
        up, across = F.pad(last[..., :-1], (1, 0), value=_BLOCKED), F.pad(before[..., :-1], (1, 0), value=_BLOCKED)
        softest = -gamma * torch.logsumexp(torch.stack([up, last, across]) / -gamma, 0)
        before, last = last, (diagonal + softest).clamp(max=_BLOCKED)
        value = torch.where(ends == number, last.gather(2, at)[..., 0], value)
    return value


@lru_cache(maxsize=8)
def _free(length: int, width: int) -> Tensor:
    """log of the number of warping paths to each cell [length, width] (Delannoy numbers), float64."""
    table = torch.zeros(length, width, dtype=torch.float64)
    for i in range(1, length):
        for j in range(1, width):
            table[i, j] = torch.logsumexp(torch.stack([table[i - 1, j], table[i, j - 1], table[i - 1, j - 1]]), 0)
    return table
