"""Late interaction of short windows: each window looks for its best partner (token level: ColBERT 2004.12832, FILIP 2111.07783)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.similarity.base import Head, Similarity, Tokens, block_rows, masked_mean, token_cosines
from mmexpert.types import ConfigError

_BELOW = -2.0  # under any cosine


class WindowHead(Head):
    """Mean over query windows of their best target window, and mirrored; half of each.

    Windows of query_window tokens begin every query_stride tokens, likewise on the target side; a window counts that holds
    min(length, half of itself) real tokens or more. Windows of 1 with stride 1 are token-level MaxSim.
    """

    reads_table = False

    def __init__(self, query_window: int, query_stride: int, target_window: int, target_stride: int) -> None:
        super().__init__()
        sizes = (query_window, query_stride, target_window, target_stride)
        if min(sizes) < 1:
            raise ConfigError(f"similarity windows and strides are 1 or more; query {sizes[:2]}, target {sizes[2:]}")
        self.query_sizes, self.target_sizes = sizes[:2], sizes[2:]

    def forward(self, query: Tokens, target: Tokens, table: None) -> Tensor:
        """Scores [Bq, Bt]."""
        (q, q_counts), (t, t_counts) = windows(query, *self.query_sizes), windows(target, *self.target_sizes)
        forth, back = _BestPartner.apply(q, t, q_counts, t_counts)
        return (masked_mean(forth, q_counts[:, None]) + masked_mean(back, t_counts)) / 2


class Local(Similarity):
    """WindowHead alone."""

    def __init__(
        self, query_window: int, query_stride: int, target_window: int, target_stride: int,
        dim: int, project: bool, row_chunk: int, chunk_bytes: int,
    ) -> None:  # fmt: skip
        heads = {"local": WindowHead(query_window, query_stride, target_window, target_stride)}
        super().__init__(heads, dim, project, row_chunk, chunk_bytes)


def windows(tokens: Tokens, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Window means of length 1 [B, W, D] and which of them count [B, W]; windows begin at 0, stride, ... below L."""
    length = tokens.mask.shape[1]
    first = torch.arange(0, length, stride, device=tokens.mask.device)[:, None]
    inside = torch.arange(length, device=tokens.mask.device) - first  # [W, L]
    band = ((inside >= 0) & (inside < size)).to(tokens.unit.dtype)
    sums = band @ tokens.unit  # pads add nothing; a mean's length is normalised away
    held = tokens.mask.to(band.dtype) @ band.T
    counts = held >= tokens.length.clamp(max=(size + 1) // 2)[:, None]
    return F.normalize(sums, dim=-1, eps=1e-6), counts


class _BestPartner(torch.autograd.Function):
    """q [Bq, W, D], t [Bt, V, D] -> best cosine of each query window [Bq, Bt, W] and of each target window [Bq, Bt, V].

    The products of all windows are never held: blocks of query rows, of cache size, and the places of the maxima alone are kept. Of
    equal partners the first has the whole gradient.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, q: Tensor, t: Tensor, q_counts: Tensor, t_counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q_counts [Bq, W], t_counts [Bt, V] bool: whether a window counts as a partner."""
        pairs, sizes = (len(q), len(t)), (q.shape[1], t.shape[1])
        forth, back = q.new_empty(*pairs, sizes[0]), q.new_empty(*pairs, sizes[1])
        t_best, q_best = torch.empty_like(forth, dtype=torch.int32), torch.empty_like(back, dtype=torch.int32)
        for at in _blocks(q, t):
            scores = token_cosines(q[at], t)
            forth[at], t_best[at] = scores.masked_fill_(~t_counts[None, :, None, :], _BELOW).max(3)
            back[at], q_best[at] = scores.masked_fill_(~q_counts[at, None, :, None], _BELOW).max(2)
        ctx.save_for_backward(q, t, t_best, q_best)
        return forth, back

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, forth: Tensor, back: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q and t: each goes to the pair of windows that was the maximum."""
        q, t, t_best, q_best = ctx.saved_tensors
        by_q, by_t = torch.empty_like(q), t.new_zeros(len(t) * t.shape[1], t.shape[2])
        for at in _blocks(q, t):
            grad = forth.new_zeros(len(q[at]), q.shape[1], len(t), t.shape[1])
            pairs = grad.transpose(1, 2)  # [rows, Bt, W, V]
            pairs.scatter_(3, t_best[at].long()[..., None], forth[at][..., None])
            pairs.scatter_add_(2, q_best[at].long()[..., None, :], back[at][..., None, :])
            flat = grad.view(-1, len(t) * t.shape[1])
            by_q[at] = (flat @ t.flatten(0, 1)).view_as(q[at])
            by_t.addmm_(flat.T, q[at].flatten(0, 1))
        return by_q, by_t.view_as(t), None, None


def _blocks(q: Tensor, t: Tensor) -> list[slice]:
    """Query rows a block."""
    rows = block_rows(len(t) * q.shape[1] * t.shape[1], q)
    return [slice(start, start + rows) for start in range(0, len(q), rows)]
