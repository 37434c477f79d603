"""Which samples a step sees and what is drawn for each: functions of seed, epoch and sample id, of nothing else."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mmexpert.data.records import Draw
from mmexpert.types import ConfigError

EVALUATION = -1
"""The epoch of evaluation draws: nothing is random there."""


def sample_rng(seed: int, epoch: int, sample_id: str, repeat: int) -> np.random.Generator:
    """The generator of one draw of one sample. Keyed by the id, not the index: a new file moves nobody else's draws."""
    key = int.from_bytes(hashlib.sha256(str(sample_id).encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch, key, repeat))))


def epoch_order(n: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """A permutation of range(n), int64. Philox's raw stream is stable over NumPy versions, Generator.permutation is not."""
    keys = np.random.Philox(key=[seed, stream * 2**32 + epoch]).random_raw(n)
    return np.argsort(keys, kind="stable")


def blocked_order(blocks: Sequence[Sequence[int]], seed: int, epoch: int, share: int) -> list[int]:
    """The members of all blocks, blocks in random order, each within one micro-batch of `share` samples.

    Micro-batches are filled by the next block that fits. Where none does, a block gives way to a larger one that fills the place; where
    that fails too (only pairs are left, and share is odd), one is cut.
    """
    waiting = [list(blocks[i]) for i in epoch_order(len(blocks), seed, epoch)]
    order: list[int] = []
    batch: list[list[int]] = []  # blocks of the micro-batch that is being filled
    while waiting:
        room = share - sum(map(len, batch))
        if (fitting := _first(len(block) <= room for block in waiting)) is not None:
            batch.append(waiting.pop(fitting))
        elif pairs := [(i, k) for i, here in enumerate(batch) for k, there in enumerate(waiting) if 0 < len(there) - len(here) <= room]:
            i, k = pairs[0]
            batch[i], waiting[k] = waiting[k], batch[i]
        else:
            batch.append(waiting[0][:room])
            waiting[0] = waiting[0][room:]
        if sum(map(len, batch)) == share:
            order += [index for block in batch for index in block]
            batch = []
    return order + [index for block in batch for index in block]


def _first(conditions: Iterable[bool]) -> int | None:
    return next((i for i, holds in enumerate(conditions) if holds), None)


def hash_order(ids: Sequence[str]) -> list[int]:
    """Positions by the SHA-256 of the id: an evaluation order that mixes classes and is the same in every epoch."""
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())


def micro_batch(batch_size: int, processes: int, accumulation: int) -> int:
    """Samples of one micro-batch on one process. Raises ConfigError where the global batch does not divide."""
    if batch_size % (processes * accumulation):
        raise ConfigError(
            f"trainer.batch_size={batch_size} is the batch over all processes and must be a multiple of processes x "
            f"trainer.accumulation = {processes} x {accumulation}"
        )
    return batch_size // (processes * accumulation)


class Plan:
    """A batch sampler: the micro-batches of one rank in one epoch, from a given step on.

    order: data-set indices of the whole epoch, the same on all ranks. Step s takes order[s G : (s+1) G], whatever the number of
    processes; micro-batch a on rank r is the (a N + r)-th slice of it. drop_last=False: one more step with the rest, cut to a
    multiple of N A. Raises ConfigError where the batch does not divide or no step is left.
    """

    def __init__(
        self,
        order: Sequence[int],
        epoch: int,
        batch_size: int,
        accumulation: int,
        processes: int,
        rank: int,
        start_step: int,
        drop_last: bool,
    ) -> None:
        self.order, self.epoch, self.start_step = order, epoch, start_step
        self.accumulation, self.processes, self.rank = accumulation, processes, rank
        self.sizes = step_sizes(len(order), batch_size, processes, accumulation, drop_last)

    def __len__(self) -> int:
        return (len(self.sizes) - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Draw]]:
        seen: dict[int, int] = {}
        repeats = []
        for index in self.order:
            repeats.append(seen.get(index, 0))
            seen[index] = repeats[-1] + 1
        begin = sum(self.sizes[: self.start_step])
        for size in self.sizes[self.start_step :]:
            share = size // (self.processes * self.accumulation)
            for a in range(self.accumulation):
                first = begin + (a * self.processes + self.rank) * share
                yield [(int(self.order[i]), self.epoch, repeats[i]) for i in range(first, first + share)]
            begin += size


def step_sizes(n: int, batch_size: int, processes: int, accumulation: int, drop_last: bool) -> list[int]:
    """Samples of each optimizer step of an epoch over n samples. Raises ConfigError where there is no step."""
    micro_batch(batch_size, processes, accumulation)
    sizes = [batch_size] * (n // batch_size)
    rest = n % batch_size // (processes * accumulation) * (processes * accumulation)
    if not drop_last and rest:
        sizes.append(rest)
    if not sizes and drop_last:
        raise ConfigError(
            f"trainer.batch_size={batch_size} is larger than the training part of {n} samples: choose at most {n}, "
            "or trainer.drop_last=false to train on smaller batches"
        )
    if not sizes:
        raise ConfigError(
            f"the training part of {n} samples has not one for each micro-batch of processes x trainer.accumulation = "
            f"{processes} x {accumulation}: give more data or fewer of these"
        )
    return sizes


def evaluation_draws(indices: Sequence[int], batch: int, processes: int, rank: int) -> list[list[Draw]]:
    """Batches of one rank over a part, in the given order: every rank gets as many, of equal sizes; padded by repeats from the start."""
    batches = []
    for begin in range(0, len(indices), batch * processes):
        rows = list(indices[begin : begin + batch * processes])
        rows += [indices[i % len(indices)] for i in range(-len(rows) % processes)]
        share = len(rows) // processes
        batches.append([(int(i), EVALUATION, 0) for i in rows[rank * share : (rank + 1) * share]])
    return batches
