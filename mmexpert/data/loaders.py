"""Loaders of all parts of a data set for one rank: windows for training, batches for evaluation."""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from mmexpert.data.balance import Balance
from mmexpert.data.class_samplers import balanced_order, distinct_classes, weighted_order
from mmexpert.data.collate import Collate, to_device
from mmexpert.data.frames import Window, compact, expanded
from mmexpert.data.records import RecordDataset
from mmexpert.data.sampling import Plan, blocked_order, epoch_order, evaluation_draws, hash_order, micro_batch, step_sizes
from mmexpert.data.workers import BatchSource, Stream, WorkerSettings
from mmexpert.types import Batch

log = logging.getLogger(__name__)
_DUPLICATES = 0.05  # share of a batch's texts that may repeat another row's without a word


@dataclass(frozen=True)
class PlanSettings:
    """batch_size: samples per optimizer step over all processes; eval_batch_size: samples per evaluation batch of one process."""

    batch_size: int
    eval_batch_size: int
    accumulation: int
    processes: int
    rank: int
    drop_last: bool


class Loaders:
    """Training windows and evaluation batches of one rank.

    parts: indices of the data set's records by part name (train, valid, test). on_batch is called at every evaluation batch, so that
    a stop signal is seen there too. The training workers live until close(), or until the last reference goes.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        parts: dict[str, list[int]],
        collate: Collate,
        plan: PlanSettings,
        workers: WorkerSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.parts, self.seed, self.device = dataset, parts, seed, device
        self.plan, self.workers, self.batch_size = plan, workers, plan.batch_size
        self.on_batch: Callable[[], None] = lambda: None
        self.blocks = _blocks(dataset, parts["train"])
        self.class_table = _class_table(dataset, parts["train"])
        self.balance = self.class_table if self.class_table is not None and dataset.balance_settings.apply != "none" else None
        self._counts_duplicates = dataset.positives == "instance" and plan.rank == 0
        sizes = step_sizes(len(parts["train"]), plan.batch_size, plan.processes, plan.accumulation, plan.drop_last)
        self.steps_per_epoch = len(sizes)
        self._source = BatchSource(dataset, collate)
        self._train = Stream(self._source, workers, seed, persistent=True)
        self._open = {self._train}
        weakref.finalize(self, _close, self._open)  # at exit too: workers ignore TERM, and multiprocessing would wait for them for ever
        if sum(sizes) < plan.batch_size and plan.rank == 0:
            log.warning("trainer.batch_size=%d is cut to the %d training samples", plan.batch_size, sum(sizes))
        if (left := len(parts["train"]) - sum(sizes)) and plan.rank == 0:
            log.info("%d of %d training samples are left out of each epoch, other ones each time", left, len(parts["train"]))

    def train(self, epoch: int, start_step: int) -> Iterator[Sequence[Batch]]:
        """Windows (the A micro-batches of one optimizer step) of an epoch from a step on; order = f(seed, epoch).

        The workers begin with this call: nothing is drawn from a global generator when the first window is taken.
        """
        plan, order = self.plan, self._order(epoch)
        if self.class_table is not None and plan.rank == 0:
            log.info("%s", self.class_table.table())
            self.class_table = None  # said once, where training begins: an evaluation has no use for it
        draws = Plan(order, epoch, plan.batch_size, plan.accumulation, plan.processes, plan.rank, start_step, plan.drop_last)
        return self._windows(self._train.batches(draws))

    def _order(self, epoch: int) -> list[int]:
        """Indices of an epoch's samples, the same on all ranks."""
        plan, train = self.plan, self.parts["train"]
        if self.blocks is not None:
            share = micro_batch(plan.batch_size, plan.processes, plan.accumulation)
            return blocked_order(self.blocks, self.seed, epoch, share)
        if self.balance is None or not self.dataset.balance_settings.draws:
            return [train[i] for i in epoch_order(len(train), self.seed, epoch)]
        labels = [self.dataset.records[i].label for i in train]
        sampler, batch = self.dataset.balance_settings.sampler, plan.batch_size // plan.accumulation
        if sampler == "weighted":
            order = weighted_order(self.balance.draw[labels], self.seed, epoch)
            if plan.rank == 0:
                log.info("epoch %d draws %d distinct of %d training samples", epoch + 1, len(set(order)), len(train))
        else:
            order = balanced_order(labels, batch, distinct_classes(sampler, batch, len(set(labels))), self.seed, epoch)
        return [train[i] for i in order]

    def part(self, name: str) -> Iterator[Batch]:
        """This rank's evaluation batches of a part: deterministic samples, in hash order of their ids, padded by repeats."""
        rows = self.parts[name]
        order = [rows[i] for i in hash_order([self.dataset.records[i].id for i in rows])]
        yield from self._evaluation(self._source, order)

    def batches(self, name: str) -> int:
        """How many evaluation batches part(name) gives."""
        return -(-len(self.parts[name]) // (self.plan.eval_batch_size * self.plan.processes))

    def gallery(self, name: str) -> Iterator[Batch]:
        """This rank's batches of the pictures that a part's queries are ranked against, of a data set that has pictures(part)."""
        pictures = self.dataset.pictures(name)
        yield from self._evaluation(BatchSource(pictures, self._source.collate), list(range(len(pictures))))

    def _evaluation(self, source: BatchSource, order: list[int]) -> Iterator[Batch]:
        draws = evaluation_draws(order, self.plan.eval_batch_size, self.plan.processes, self.plan.rank)
        stream = Stream(source, self.workers, self.seed, persistent=False)
        self._open.add(stream)
        try:
            for batch in stream.batches(draws):
                self.on_batch()
                yield expanded(to_device(batch, self.device))
        finally:
            stream.close()
            self._open.discard(stream)

    def close(self) -> None:
        """Ends all workers; a later train() starts new ones."""
        _close(self._open)

    def _windows(self, batches: Iterator[Batch]) -> Iterator[Sequence[Batch]]:
        large = self.plan.accumulation > 1 and self.device.type == "cpu"  # a large batch's padding is most of what it takes
        window: list[Batch] = []
        for batch in batches:
            if self.balance is not None and self.dataset.balance_settings.weighs:
                batch["weight"] = torch.from_numpy(self.balance.loss).float()[batch["label"]]
            if self._counts_duplicates and _warn_of_duplicates(batch):
                self._counts_duplicates = False
            window.append(to_device(compact(batch) if large else batch, self.device))
            if len(window) == self.plan.accumulation:
                yield Window(window)
                window = []


def _close(streams: set[Stream]) -> None:
    for stream in list(streams):
        stream.close()


def _class_table(dataset: RecordDataset, train: list[int]) -> Balance | None:
    """What dataset.balance makes of the classes of a training part, apply=none too; None without classes or without rows."""
    if dataset.balance_settings is None or dataset.classes is None or not train:
        return None
    labels = [dataset.records[i].label for i in train]
    counts = tuple(labels.count(k) for k in range(len(dataset.classes.names)))
    return dataset.balance_settings.of(replace(dataset.classes, counts=counts), "this fold")


def _warn_of_duplicates(batch: Batch) -> bool:
    """Whether more than 5 % of a batch's texts stand in it before already, which is then said. Looks on the CPU, before the batch travels.

    For positives=instance: each such row is a negative of a row with its own text.
    """
    tokens = batch["text_index"] if "text_index" in batch else batch.get("text", {}).get("input_ids")
    if tokens is None:
        return False
    again = len(tokens) - len({row.tobytes() for row in tokens.numpy()})
    if again <= _DUPLICATES * len(tokens):
        return False
    log.warning(
        "dataset.positives=instance: %d of %d texts of a batch repeat another row's, more than 5 %%, and the loss pushes such pairs "
        "apart; dataset.positives=text, or label, counts them as positives",
        again,
        len(tokens),
    )
    return True


def _blocks(dataset: RecordDataset, train: list[int]) -> list[list[int]] | None:
    """The blocks of dataset.together that have members in the training part, as indices; None where nothing belongs together."""
    if dataset.together is None:
        return None
    index = {dataset.records[i].id: i for i in train}
    return [block for names in dataset.together if (block := [index[name] for name in names if name in index])]
