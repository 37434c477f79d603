"""Soft monotone alignment: the log-mean-exp, over all order-keeping walks of one sequence's steps over the other's tokens, of the sum
of the cosines they meet. Two recursions over the steps give the score and its gradient; no autograd runs through them.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.similarity.base import block_rows
from mmexpert.similarity.path_sums import PathSums, path_sums
from mmexpert.types import ConfigError


def monotone_scores(table: Tensor, q_length: Tensor, t_length: Tensor, gamma: float, moves: str, directions: str) -> Tensor:
    """table [Bq, Bt, L, M], lengths [Bq], [Bt] of the real tokens -> [Bq, Bt]: gamma (log sum over paths of exp(sum S / gamma) - log
    of their number) / steps, mean over the directions; in [-1, 1]. Arguments as of TemporalHead."""
    if moves == "step":
        for walks, steps, tokens in (("query", q_length, t_length), ("target", t_length, q_length)):
            if directions in ("both", walks) and bool(steps.min() < tokens.max()):
                raise ConfigError(
                    f"similarity.moves=step needs a step for each token; the shortest walk has {int(steps.min())}, the longest sequence "
                    f"{int(tokens.max())}: choose moves=free, or directions of the longer side alone"
                )
    return _Aligned.apply(table, q_length, t_length, gamma, moves, directions)


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log of the binomial coefficient."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


class _Aligned(torch.autograd.Function):
    """table [Bq, Bt, L, M] -> scores [Bq, Bt]. A score's gradient on its own cells is the share of paths through them, known as soon
    as the score is: it is formed with it, block by block of rows, and kept instead of all that led to it."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        table: Tensor, q_length: Tensor, t_length: Tensor, gamma: float, moves: str, directions: str,
    ) -> Tensor:  # fmt: skip
        """As the class says; q_length [Bq], t_length [Bt] int64."""
        scores = table.new_zeros(table.shape[:2], dtype=torch.float64)
        gradient = torch.zeros_like(table) if ctx.needs_input_grad[0] else None
        portion = 0.5 if directions == "both" else 1.0
        rows = block_rows(table[0].numel(), table)
        room = table.new_empty(2, min(rows, len(table)) * table[0].numel(), dtype=torch.float64)  # see similarity/attention.py
        for start in range(0, len(table), rows):
            at = slice(start, start + rows)
            if directions != "target":
                score, share = _one_way(table[at], q_length[at], t_length, gamma, moves, gradient is not None, room)
                scores[at] += portion * score
                if share is not None:
                    gradient[at].add_(share, alpha=portion)
            if directions != "query":
                mirrored = table[at].permute(1, 0, 3, 2)
                score, share = _one_way(mirrored, t_length, q_length[at], gamma, moves, gradient is not None, room)
                scores[at] += portion * score.T
                if share is not None:
                    gradient[at].add_(share.permute(1, 0, 3, 2), alpha=portion)
        ctx.save_for_backward(gradient)
        return scores.to(table.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None, None, None, None, None


def _one_way(
    table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str, shares: bool, room: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Steps of table [A, B, L, M] walk over its tokens -> scores [A, B] and, where asked for, their gradients on the table, both
    float64. room [2, A B L M]: where it works, and where the gradients lie."""
    n, m = steps.double()[:, None], tokens.double()
    paths = log_choose(n + m - 1, n) if moves == "free" else log_choose(n - 1, m - 1)
    length, width = table.shape[2:]
    bound = length / gamma + math.lgamma(length + width) - math.lgamma(length + 1) - math.lgamma(width)
    total, share = _walk(table, steps, tokens, gamma, moves, shares, path_sums(bound), room)
    return gamma * (total - paths) / n, share


def _walk(
    table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str, shares: bool, sums: PathSums, room: Tensor
) -> tuple[Tensor, Tensor | None]:
    """log of the paths' sum [A, B], by a_l = e_l * reach(a_{l-1}), e = exp(S / gamma); and, where shares, the mean of each step's
    paths over the cells [A, B, L, M]: a_l * b_l / total / steps, b_l = reach_back(e_{l+1} * b_{l+1}).

    Padded steps keep what has arrived, as their e is one at the last token and nothing elsewhere.
    """
    energy, walked = (flat[: table.numel()].view(table.shape[2], *table.shape[:2], table.shape[3]) for flat in room)
    sums.held(energy.copy_(table.permute(2, 0, 1, 3)).div_(gamma))
    at = torch.arange(table.shape[3], device=table.device)
    last = torch.where(at == tokens[:, None] - 1, sums.one, sums.none).double()
    number = torch.arange(len(energy), device=table.device)[:, None]
    real = (number < steps)[..., None, None]
    torch.where(real, energy.masked_fill_(at >= tokens[:, None], sums.none), last, out=energy)
    if moves == "step":  # from the first token to the last; a token that no path has reached must not weigh on what goes on from it
        energy.masked_fill_(at > number[..., None, None], sums.none)
        energy.masked_fill_((number == steps - 1)[..., None, None] & (at != tokens[:, None] - 1), sums.none)

    here = torch.where(at == 0, sums.one, sums.none).double().expand_as(energy[0])
    for row, arrived in zip(energy, walked, strict=True):
        here = sums.times(row, _reach(here, moves, sums), out=arrived)
    total = sums.log(sums.cumulated(here, -1)[..., -1])
    if not shares:
        return total, None
    onward = sums.times(last, sums.held(-total - steps.double().log()[:, None])[..., None])
    for row, arrived in zip(reversed(energy.unbind(0)), reversed(walked.unbind(0)), strict=True):
        onward = _reach(onward.flip(-1), moves, sums).flip(-1)
        sums.times(arrived, onward, out=arrived)
        onward = sums.times(row, onward, out=onward)
    return total, sums.value(walked).masked_fill_(~real, 0).permute(1, 2, 0, 3)


def _reach(x: Tensor, moves: str, sums: PathSums) -> Tensor:
    """Sums over the tokens from which a path may go to each: all up to it, or itself and the one before."""
    if moves == "free":
        return sums.cumulated(x, -1)
    return sums.plus(x, F.pad(x[..., :-1], (1, 0), value=sums.none))
