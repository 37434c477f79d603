"""Monotone alignment: every step of one sequence takes a token of the other, and their order never goes back.

Soft over all such paths: a log-mean-exp of their mean cosines, so that length buys nothing.
"""

import math

import torch
from torch import Tensor

from mmexpert.similarity.base import Head, Similarity, Tokens, block_rows, check_directions
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
        return monotone_scores(table, query.length, target.length, self.gamma, self.moves, self.directions)


class Temporal(Similarity):
    """TemporalHead alone."""

    def __init__(
        self, method: str, gamma: float, moves: str, directions: str, dim: int, project: bool, row_chunk: int, chunk_bytes: int
    ) -> None:
        super().__init__({"temporal": TemporalHead(method, gamma, moves, directions)}, dim, project, row_chunk, chunk_bytes)


def monotone_scores(table: Tensor, q_length: Tensor, t_length: Tensor, gamma: float, moves: str, directions: str) -> Tensor:
    """table [Bq, Bt, L, M], lengths [Bq], [Bt] of the real tokens -> [Bq, Bt]: gamma (log sum over paths of exp(sum S / gamma) - log
    of their number) / steps, mean over the directions."""
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
        table: Tensor,
        q_length: Tensor,
        t_length: Tensor,
        gamma: float,
        moves: str,
        directions: str,
    ) -> Tensor:
        """As the class says; q_length [Bq], t_length [Bt] int64, the rest as of TemporalHead."""
        scores = table.new_empty(table.shape[:2])
        gradient = torch.empty_like(table, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        rows = block_rows(table.shape[1:], 2 * table.element_size())
        for start in range(0, len(table), rows):
            at = slice(start, start + rows)
            parts = []
            if directions != "target":
                parts.append(_one_way(table[at], q_length[at], t_length, gamma, moves, gradient is not None))
            if directions != "query":
                score, share = _one_way(table[at].permute(1, 0, 3, 2), t_length, q_length[at], gamma, moves, gradient is not None)
                parts.append((score.T, share if share is None else share.permute(1, 0, 3, 2)))
            scores[at] = sum(score for score, _ in parts) / len(parts)
            if gradient is not None:
                gradient[at] = sum(share for _, share in parts) / len(parts)
        ctx.save_for_backward(gradient)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad[..., None, None] * gradient, None, None, None, None, None


def _one_way(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str, shares: bool) -> tuple[Tensor, Tensor | None]:
    """Steps of table [A, B, L, M] walk over its tokens -> scores [A, B], float64, and their gradient on the table."""
    n, m = steps.double()[:, None], tokens.double()
    paths = log_choose(n + m - 1, n) if moves == "free" else log_choose(n - 1, m - 1)
    length, width = table.shape[2:]
    bound = length / gamma + math.lgamma(length + width) - math.lgamma(length + 1) - math.lgamma(width)
    walk = _walk if bound <= _LOG_RANGE else _log_walk
    total, share = walk(table, steps, tokens, gamma, moves, shares)
    return gamma * (total - paths) / n, share


def _walk(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str, shares: bool) -> tuple[Tensor, Tensor | None]:
    """log of the paths' sum [A, B], float64, by a recursion in linear scale: a_l = e_l * (a_{l-1} @ reach), e = exp(S / gamma); and,
    where shares, the mean of each step's paths over the cells [A, B, L, M].

    No logarithm and no autograd through the steps: a cell's share is a * b / total / steps, with b from one recursion backwards.
    Float64 holds while steps / gamma + log(paths) <= 650.
    """
    energy = _energy(table, tokens, gamma)
    reach = _reach(table.shape[3], moves, table.device)
    here = _start(energy, moves)
    walked = []
    for step, row in enumerate(energy.unbind(0)):
        there = row * (here if step == 0 else here @ reach)
        here = torch.where((step < steps)[:, None, None], there, here)
        walked.append(here)
    total = _end(here, tokens, moves)
    if not shares:
        return total.log(), None
    scale = (1 / total / steps[:, None])[..., None]
    onward = scale.expand_as(here) if moves == "free" else _last(here, tokens) * scale
    share = torch.empty(energy.shape, dtype=table.dtype, device=table.device)
    for step in range(len(energy) - 1, -1, -1):
        real = (step < steps)[:, None, None]
        share[step] = (walked.pop() * onward).masked_fill_(~real, 0)
        onward = torch.where(real, (energy[step] * onward) @ reach.T, onward)
    return total.log(), share.permute(1, 2, 0, 3)


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


def _log_walk(table: Tensor, steps: Tensor, tokens: Tensor, gamma: float, moves: str, shares: bool) -> tuple[Tensor, Tensor | None]:
    """_walk for longer sequences: the same two recursions on logarithms, in float64, about three times slower."""
    energy = _log_energy(table, tokens, gamma)
    here = (1 - _start(energy, moves)) * (_FILL / gamma)
    walked = []
    for step, row in enumerate(energy.unbind(0)):
        there = row + (here if step == 0 else _log_reach(here, moves))
        here = torch.where((step < steps)[:, None, None], there, here)
        walked.append(here)
    free = moves == "free"
    total = (here if free else here + (1 - _last(here, tokens)) * (_FILL / gamma)).logsumexp(-1)
    if not shares:
        return total, None
    onward = torch.zeros_like(here) if free else (1 - _last(here, tokens)) * (_FILL / gamma)
    share = torch.empty(energy.shape, dtype=table.dtype, device=table.device)
    for step in range(len(energy) - 1, -1, -1):
        real = (step < steps)[:, None, None]
        through = (walked.pop() + onward - total[..., None]).exp() / steps[:, None, None]
        share[step] = through.masked_fill_(~real, 0)
        before = _log_reach((energy[step] + onward).flip(-1), moves).flip(-1)
        onward = torch.where(real, before, onward)
    return total, share.permute(1, 2, 0, 3)


def _log_energy(table: Tensor, tokens: Tensor, gamma: float) -> Tensor:
    real = torch.arange(table.shape[3], device=table.device) < tokens[:, None]
    return (table.permute(2, 0, 1, 3).double().masked_fill(~real, _FILL) / gamma).contiguous()


def _log_reach(x: Tensor, moves: str) -> Tensor:
    if moves == "free":
        return x.logcumsumexp(-1)
    shifted = torch.cat([torch.full_like(x[..., :1], 10 * _FILL), x[..., :-1]], -1)
    return torch.logaddexp(x, shifted)
