"""Monotone alignment: every step of one sequence takes a token of the other, and their order never goes back.

Soft over all such paths: a log-mean-exp of their mean cosines, so that length buys nothing.
"""

import math

import torch
from torch import Tensor

from mmexpert.similarity.base import Head, Similarity, Tokens, check_directions
from mmexpert.similarity.soft_dtw import soft_dtw_scores
from mmexpert.types import ConfigError

_LOG_RANGE = 650.0  # float64 holds e^709
_FILL = -1e4


class TemporalHead(Head):
    """method: monotone | soft_dtw. gamma: smoothing, above 0; small = the best path alone. moves (monotone): free, a step may stay, go
    on or skip | step, it stays or goes on, from the first token to the last. directions (monotone): both (half of each) | query
    (query steps walk over target tokens) | target."""

    def __init__(self, method: str, gamma: float, moves: str, directions: str) -> None:
        super().__init__()
        if method not in ("monotone", "soft_dtw") or moves not in ("free", "step"):
            raise ConfigError(f"similarity.method={method} is monotone or soft_dtw; similarity.moves={moves} is free or step")
        if gamma <= 0:
            raise ConfigError(f"similarity.gamma={gamma}: above 0")
        check_directions(directions)
        self.method, self.gamma, self.moves, self.directions = method, gamma, moves, directions

    def forward(self, query: Tokens, target: Tokens, table: Tensor) -> Tensor:
        """Scores [Bq, Bt]. Raises ConfigError for moves=step where a walking sequence has fewer steps than the other has tokens."""
        if self.method == "soft_dtw":
            return soft_dtw_scores(table, query.length, target.length, self.gamma)
        scores = []
        if self.directions != "target":
            scores.append(monotone_scores(table, query.length, target.length, self.gamma, self.moves))
        if self.directions != "query":
            scores.append(monotone_scores(table.permute(1, 0, 3, 2), target.length, query.length, self.gamma, self.moves).T)
        return sum(scores) / len(scores)


class Temporal(Similarity):
    """TemporalHead alone."""

    def __init__(
        self, method: str, gamma: float, moves: str, directions: str, dim: int, project: bool, row_chunk: int, chunk_bytes: int
    ) -> None:
        super().__init__({"temporal": TemporalHead(method, gamma, moves, directions)}, dim, project, row_chunk, chunk_bytes)


def monotone_scores(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str) -> Tensor:
    """table [A, B, L, M], steps [A] of L, tokens [B] of M that are real -> [A, B]: gamma (log sum over paths of exp(sum S / gamma)
    - log of their number) / steps."""
    if moves == "step" and bool(steps.min() < tokens.max()):
        raise ConfigError(
            f"similarity.moves=step needs a step for each token; the shortest walk has {int(steps.min())}, the longest sequence "
            f"{int(tokens.max())}: choose moves=free, or directions of the longer side alone"
        )
    n, m = steps.double()[:, None], tokens.double()
    paths = log_choose(n + m - 1, n) if moves == "free" else log_choose(n - 1, m - 1)
    length, width = table.shape[2:]
    bound = length / gamma + math.lgamma(length + width) - math.lgamma(length + 1) - math.lgamma(width)
    align = _Alignment if bound <= _LOG_RANGE else _LogAlignment
    total = align.apply(table, steps, tokens, gamma, moves)
    return (gamma * (total - paths) / n).to(table.dtype)


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log of the binomial coefficient."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


class _Alignment(torch.autograd.Function):
    """log of the paths' sum [A, B], float64, by a recursion in linear scale: a_l = e_l * (a_{l-1} @ reach), e = exp(S / gamma).

    No logarithm and no autograd through the steps: the gradient on S is the share of paths through each cell, a * b / total / gamma,
    with b from one recursion backwards. Float64 holds while steps / gamma + log(paths) <= 650.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str) -> Tensor:
        energy = _energy(table, tokens, gamma)
        reach = _reach(table.shape[3], moves, table.device)
        here = _start(energy, moves)
        walked = torch.empty_like(energy) if ctx.needs_input_grad[0] else None
        for step, row in enumerate(energy.unbind(0)):
            there = row * (here if step == 0 else here @ reach)
            here = torch.where((step < steps)[:, None, None], there, here)
            if walked is not None:
                walked[step] = here
        total = _end(here, tokens, moves)
        ctx.save_for_backward(energy, walked, steps, tokens, total)
        ctx.gamma, ctx.moves, ctx.dtype = gamma, moves, table.dtype
        return total.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        energy, walked, steps, tokens, total = ctx.saved_tensors
        back = _reach(energy.shape[3], ctx.moves, energy.device).T
        share = (grad / total / ctx.gamma)[..., None]
        onward = torch.ones_like(energy[0]) if ctx.moves == "free" else _last(energy[0], tokens)
        gradient = torch.empty_like(energy, dtype=ctx.dtype)
        for step in range(len(energy) - 1, -1, -1):
            real = (step < steps)[:, None, None]
            gradient[step] = (walked[step] * onward).mul_(share).masked_fill_(~real, 0)
            onward = torch.where(real, (energy[step] * onward) @ back, onward)
        return gradient.permute(1, 2, 0, 3), None, None, None, None


def _energy(table: Tensor, tokens: Tensor, gamma: float) -> Tensor:
    """exp(S / gamma), float64 [L, A, B, M]; 0 at target pads."""
    energy = table.permute(2, 0, 1, 3).to(torch.float64, memory_format=torch.contiguous_format)
    energy = energy.div_(gamma) if energy.data_ptr() != table.data_ptr() else energy / gamma
    real = torch.arange(table.shape[3], device=table.device) < tokens[:, None]
    return energy.exp_().mul_(real)


def _reach(width: int, moves: str, device: torch.device) -> Tensor:
    """[M, M], 1 where a path may go from row m to column m' in one step."""
    ones = torch.ones(width, width, dtype=torch.float64, device=device)
    return ones.triu() if moves == "free" else ones.triu().tril(1)


def _start(energy: Tensor, moves: str) -> Tensor:
    """Where the first step may be: anywhere, or on the first token."""
    here = torch.ones_like(energy[0])
    if moves == "step":
        here[..., 1:] = 0
    return here


def _end(here: Tensor, tokens: Tensor, moves: str) -> Tensor:
    """Sum over the tokens where a path may end: anywhere, or on the last one."""
    return here.sum(-1) if moves == "free" else (here * _last(here, tokens)).sum(-1)


def _last(like: Tensor, tokens: Tensor) -> Tensor:
    """1 at the last real token of each sequence, as [A, B, M]."""
    at = torch.arange(like.shape[-1], device=like.device) == tokens[:, None] - 1
    return at.to(like.dtype).expand_as(like).contiguous()


class _LogAlignment(torch.autograd.Function):
    """The alignment for longer sequences: the same two recursions on logarithms, in float64, about three times slower."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str) -> Tensor:
        energy = _log_energy(table, tokens, gamma)
        here = (1 - _start(energy, moves)) * (_FILL / gamma)
        walked = torch.empty_like(energy)
        for step, row in enumerate(energy.unbind(0)):
            there = row + (here if step == 0 else _log_reach(here, moves))
            here = torch.where((step < steps)[:, None, None], there, here)
            walked[step] = here
        ends = here if moves == "free" else here + (1 - _last(here, tokens)) * (_FILL / gamma)
        total = ends.logsumexp(-1)
        ctx.save_for_backward(energy, walked, steps, tokens, total)
        ctx.gamma, ctx.moves, ctx.dtype = gamma, moves, table.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        energy, walked, steps, tokens, total = ctx.saved_tensors
        free = ctx.moves == "free"
        onward = torch.zeros_like(energy[0]) if free else (1 - _last(energy[0], tokens)) * (_FILL / ctx.gamma)
        gradient = torch.empty_like(energy, dtype=ctx.dtype)
        for step in range(len(energy) - 1, -1, -1):
            real = (step < steps)[:, None, None]
            share = (walked[step] + onward - total[..., None]).exp() * (grad / ctx.gamma)[..., None]
            gradient[step] = share.masked_fill_(~real, 0)
            before = _log_reach((energy[step] + onward).flip(-1), ctx.moves).flip(-1)
            onward = torch.where(real, before, onward)
        return gradient.permute(1, 2, 0, 3), None, None, None, None


def _log_energy(table: Tensor, tokens: Tensor, gamma: float) -> Tensor:
    real = torch.arange(table.shape[3], device=table.device) < tokens[:, None]
    return (table.permute(2, 0, 1, 3).double().masked_fill(~real, _FILL) / gamma).contiguous()


def _log_reach(x: Tensor, moves: str) -> Tensor:
    if moves == "free":
        return x.logcumsumexp(-1)
    shifted = torch.cat([torch.full_like(x[..., :1], 10 * _FILL), x[..., :-1]], -1)
    return torch.logaddexp(x, shifted)
