"""Orders of an epoch that see to the classes: functions of seed and epoch, one list for all ranks, which the plan then shares out."""

from collections.abc import Sequence

import numpy as np

from mmexpert.data.sampling import epoch_order
from mmexpert.types import ConfigError

_WEIGHTED, _CLASSES = 1, 2  # streams; 0 is the plain order


def weighted_order(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    """n draws with replacement from n rows in proportion to their weights."""
    raw = np.random.Philox(key=[seed, _WEIGHTED * 2**32 + epoch]).random_raw(len(weights))
    total = np.cumsum(np.asarray(weights, np.float64))
    return np.searchsorted(total, (raw >> np.uint64(11)) * 2.0**-53 * total[-1], side="right").tolist()


def balanced_order(labels: Sequence[int], batch: int, distinct: int, seed: int, epoch: int) -> list[int]:
    """Batches of `distinct` classes with batch / distinct rows each; classes take turns, and so do the rows of a class.

    As many batches as n rows fill. Raises ConfigError where batch is no multiple of distinct or there are fewer classes.
    """
    rows = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
    if batch % distinct or distinct > len(rows):
        raise ConfigError(f"{distinct} of {len(rows)} classes in a batch of {batch}: not so many classes, or no equal share for each")
    turns = _Turns(len(rows), seed, _CLASSES + 1, epoch)
    of_class = [_Turns(len(own), seed, _CLASSES + 2 + k, epoch) for k, own in enumerate(rows)]
    order: list[int] = []
    for _ in range(len(labels) // batch):
        for k in turns.take(distinct):
            order += rows[k][of_class[k].take(batch // distinct)].tolist()
    return order


class _Turns:
    """Numbers 0 .. n - 1 in random order, again and again; no number twice before all have had a turn, none twice in one take <= n."""

    def __init__(self, n: int, seed: int, stream: int, epoch: int) -> None:
        self.n, self.key, self.round = n, (seed, stream, epoch), 0
        self.waiting: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next count numbers."""
        taken: list[int] = []
        while len(taken) < count:
            if not self.waiting:
                seed, stream, epoch = self.key
                fresh = epoch_order(self.n, seed, epoch + 2**20 * self.round, stream).tolist()
                self.round += 1
                held = [number for number in fresh if number in taken[-self.n :]] if count <= self.n else []
                self.waiting = [number for number in fresh if number not in held] + held
            taken.append(self.waiting.pop(0))
        return taken


def distinct_classes(sampler: str, batch: int, classes: int) -> int:
    """How many classes a batch holds: balanced, the most that share it equally; unique_class, as many as rows.

    Raises ConfigError for unique_class with a batch of more rows than classes.
    """
    if sampler == "unique_class":
        if batch > classes:
            raise ConfigError(f"dataset.balance.sampler=unique_class: a batch of {batch} has more rows than the {classes} classes")
        return batch
    return max(m for m in range(1, classes + 1) if batch % m == 0)
