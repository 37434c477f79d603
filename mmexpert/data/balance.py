"""Weights of unequally frequent classes, and what they do to the shares that training sees.

Letters: K classes, n_k rows of class k in the training part of a fold, N = their sum, w_k weight, a = smooth. A row is drawn in
proportion to w^p and counts w^r in the loss; `apply` names (p, r).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mmexpert.types import ClassTable, ConfigError, DataError

POWERS = {"none": (0.0, 0.0), "sampler": (1.0, 0.0), "loss": (0.0, 1.0), "half": (0.5, 0.5), "both": (1.0, 1.0)}
"""dataset.balance.apply -> (p, r)."""
SAMPLERS = ("weighted", "balanced", "unique_class")
METHODS = {
    "inverse_freq": lambda n, smooth, beta: (n.sum() / (len(n) * n)) ** smooth,
    "additive_smooth": lambda n, smooth, beta: n.sum() / (len(n) * (n + smooth)),
    "sqrt_inverse": lambda n, smooth, beta: n**-0.5,
    "effective_number": lambda n, smooth, beta: (1 - beta) / (1 - beta**n),  # Cui et al. 2019, arXiv 1901.05555
    "median_freq": lambda n, smooth, beta: np.median(n) / n,
}


def class_weights(counts: Sequence[int], method: str, smooth: float, beta: float, clip_ratio: float) -> np.ndarray:
    """w [K] float64 with sum_k n_k w_k = N and max(w) / min(w) <= clip_ratio.

    counts: n_k, all at least 1. method: inverse_freq (N / (K n))^a | additive_smooth N / (K (n + a)) | sqrt_inverse n^-1/2 |
    effective_number (1 - beta) / (1 - beta^n) | median_freq median(n) / n. The source has a `smooth factor` without a formula; as an
    exponent its 1.0 agrees with the additive reading within 1 / (n + 1). Raises ValueError for a count below 1, ConfigError for the rest.
    """
    BalanceSettings("none", "weighted", method, smooth, beta, clip_ratio)
    n = np.asarray(counts, np.float64)
    if not len(n) or n.min() < 1:
        raise ValueError(f"counts {list(counts)}: every class needs a row")
    weights = _normalized(METHODS[method](n, smooth, beta), n)
    if weights.max() > clip_ratio * weights.min():
        weights = _normalized(_clipped(weights, clip_ratio), n)
    return weights


def _clipped(weights: np.ndarray, ratio: float) -> np.ndarray:
    """The largest weights cut to ratio times the smallest: it is rare classes that a handful of rows must not rule."""
    return np.minimum(weights, ratio * weights.min())


def _normalized(weights: np.ndarray, n: np.ndarray) -> np.ndarray:
    return weights * n.sum() / (n @ weights)


@dataclass(frozen=True)
class BalanceSettings:
    """dataset.balance. apply: none | sampler | loss | half | both. sampler: weighted (N draws with replacement) | balanced (as many images
    of each of m classes) | unique_class (no class twice in a batch). method, smooth, beta, clip_ratio: as class_weights has them.
    Raises ConfigError.
    """  # fmt: skip

    apply: str
    sampler: str
    method: str
    smooth: float
    beta: float
    clip_ratio: float

    def __post_init__(self) -> None:
        for key, choices in (("apply", POWERS), ("sampler", SAMPLERS), ("method", METHODS)):
            if getattr(self, key) not in choices:
                raise ConfigError(f"dataset.balance.{key}={getattr(self, key)}: choose {', '.join(choices)}")
        if self.sampler != "weighted" and self.apply != "sampler":
            raise ConfigError(f"dataset.balance.sampler={self.sampler} draws by class: set dataset.balance.apply=sampler, not {self.apply}")
        for key in ("smooth", "beta", "clip_ratio"):
            if not isinstance(value := getattr(self, key), (int, float)):
                raise ConfigError(f"dataset.balance.{key}={value!r}: a number is needed")
        if self.smooth < 0:
            raise ConfigError(f"dataset.balance.smooth={self.smooth}: 0 (no weighting) or more")
        if not 0 <= self.beta < 1:
            raise ConfigError(f"dataset.balance.beta={self.beta}: 0 or more, below 1")
        if self.clip_ratio < 1:
            raise ConfigError(f"dataset.balance.clip_ratio={self.clip_ratio}: largest to smallest weight, 1 or more")

    @property
    def draws(self) -> bool:
        """Whether rows are drawn by class."""
        return POWERS[self.apply][0] > 0

    @property
    def weighs(self) -> bool:
        """Whether rows weigh differently in the loss."""
        return POWERS[self.apply][1] > 0

    @property
    def over_corrected(self) -> bool:
        """Whether weights act twice: 100:10 becomes 1:10. Kept to repeat old runs."""
        return self.apply == "both"

    def of(self, classes: ClassTable, fold: str) -> "Balance":
        """The balance of a fold's training part. classes: with its counts. Raises DataError naming class and fold where one has no row."""
        absent = [name for name, count in zip(classes.names, classes.counts, strict=True) if count < 1]
        if absent and self.apply != "none":
            raise DataError(
                f"{fold}: the class {absent[0]!r} has no row in the training part, so dataset.balance.apply={self.apply} has no weight for "
                "it; use fewer folds, give it more groups, or set dataset.balance.apply=none"
            )
        n = np.array(classes.counts, np.float64)
        if self.apply == "none":
            weights = np.ones(len(n))
        else:
            weights = class_weights(classes.counts, self.method, self.smooth, self.beta, self.clip_ratio)
        drawn, counted = POWERS[self.apply]
        return Balance(classes.names, classes.counts, weights**drawn, weights**counted)


def balance_settings(keys: Mapping[str, Any]) -> BalanceSettings:
    """The settings of a YAML node. Raises ConfigError for a key too many or too few."""
    wanted = [field.name for field in fields(BalanceSettings)]
    if odd := sorted(set(keys) ^ set(wanted)):
        raise ConfigError(f"dataset.balance.{odd[0]}: dataset.balance has the keys {', '.join(wanted)}, no other and none less")
    return BalanceSettings(*(keys[name] for name in wanted))


@dataclass(frozen=True, eq=False)
class Balance:
    """What a run does with its classes: rows n_k, weight of a row in the draw [K], weight of a row in the loss [K]."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    draw: np.ndarray
    loss: np.ndarray

    @property
    def sampler_share(self) -> np.ndarray:
        """Share of the rows drawn that are of class k."""
        return _shares(np.array(self.counts) * self.draw)

    @property
    def effective_share(self) -> np.ndarray:
        """Share of class k in the loss: n_k w_k^(p + r) over its sum."""
        return _shares(np.array(self.counts) * self.draw * self.loss)

    def table(self) -> str:
        """Class, count, sampler share, loss weight, effective share: how a run begins."""
        width = max(5, *(len(name) for name in self.names))
        rows = [f"{'class':<{width}}  count  drawn  weight  share"]
        columns = (self.names, self.counts, self.sampler_share, self.loss, self.effective_share)
        for name, count, drawn, weight, share in zip(*columns, strict=True):
            rows.append(f"{name:<{width}}  {count:>5}  {drawn:5.3f}  {weight:6.3f}  {share:5.3f}")
        return "\n".join(rows)


def _shares(parts: np.ndarray) -> np.ndarray:
    return parts / parts.sum()
