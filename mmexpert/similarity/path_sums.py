"""Sums over paths of products of exp(S / gamma), float64: as they are where float64 holds them, else as logarithms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RANGE = 650.0  # float64 holds e^709


@dataclass(frozen=True)
class PathSums:
    """The arithmetic of one way to hold a sum."""

    none: float  # of no path: -1e30 and not -inf in logarithms, whose difference with itself is NaN
    one: float
    times: Callable[..., Tensor]
    plus: Callable[..., Tensor]
    cumulated: Callable[..., Tensor]
    held: Callable[[Tensor], Tensor]  # from a logarithm, in place
    log: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]  # in place


def path_sums(log_most: float) -> PathSums:
    """How to hold sums whose logarithm, and that of a single path, lies within +- log_most. Logarithms take three times as long."""
    return _PLAIN if log_most <= LOG_RANGE else _LOGARITHMS


def _same(x: Tensor) -> Tensor:
    return x


_PLAIN = PathSums(0.0, 1.0, torch.mul, torch.add, torch.cumsum, Tensor.exp_, Tensor.log, _same)
_LOGARITHMS = PathSums(-1e30, 0.0, torch.add, torch.logaddexp, torch.logcumsumexp, _same, _same, Tensor.exp_)
