"""Loaders of all parts of a data set for one rank: windows for training, batches for evaluation."""

import logging
import os
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from mmexpert.data.collate import Collate, to_device
from mmexpert.data.records import Draw, RecordDataset
from mmexpert.data.sampling import Plan, blocked_order, epoch_order, evaluation_draws, hash_order, step_sizes
from mmexpert.types import Batch, MmexpertError, ProcessError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanSettings:
    """batch_size: samples per optimizer step over all processes; eval_batch_size: samples per evaluation batch of one process."""

    batch_size: int
    eval_batch_size: int
    accumulation: int
    processes: int
    rank: int
    drop_last: bool


@dataclass(frozen=True)
class WorkerSettings:
    """num_workers: loader processes (0 = this one); prefetch_factor: batches ahead per worker; timeout_s: a silent worker is an error."""

    num_workers: int
    prefetch_factor: int
    pin_memory: bool
    timeout_s: int


class BatchSource(Dataset):
    """A whole batch a request. Errors come back as values: torch would bury their text in a traceback of the worker's."""

    def __init__(self, dataset: RecordDataset, collate: Collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, draws: list[Draw]) -> Batch | MmexpertError:
        try:
            return self.collate([self.dataset[draw] for draw in draws])
        except MmexpertError as error:
            return error
        except Exception:  # noqa: BLE001  any defect of a data set: told with the samples that show it, raised in the main process
            ids = [self.dataset.records[index].id for index, _, _ in draws]
            return ProcessError(f"loading one of the samples {ids} failed:\n{traceback.format_exc()}")


class CurrentPlan:
    """The sampler of the training loader: plans change by epoch, the loader and its workers stay."""

    def __init__(self) -> None:
        self.plan: Plan | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


class Loaders:
    """Training windows and evaluation batches of one rank.

    parts: indices of the data set's records by part name (train, valid, test). on_batch is called at every evaluation batch, so that
    a stop signal is seen there too.
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
        self.dataset, self.parts, self.collate, self.seed, self.device = dataset, parts, collate, seed, device
        self.plan, self.workers, self.batch_size = plan, workers, plan.batch_size
        self.on_batch: Callable[[], None] = lambda: None
        self.blocks = _blocks(dataset, parts["train"])
        self.steps_per_epoch = len(step_sizes(len(parts["train"]), plan.batch_size, plan.processes, plan.accumulation, plan.drop_last))
        self._current = CurrentPlan()
        self._train = self._loader(self._current, persistent=True)
        weakref.finalize(self, end_workers, self._train)  # at exit too: workers ignore TERM, and multiprocessing would wait for them
        left = len(parts["train"]) - sum(
            step_sizes(len(parts["train"]), plan.batch_size, plan.processes, plan.accumulation, plan.drop_last)
        )
        if left and plan.rank == 0:
            log.info("%d of %d training samples are left out of each epoch, other ones each time", left, len(parts["train"]))

    def train(self, epoch: int, start_step: int) -> Iterator[list[Batch]]:
        """Windows (the A micro-batches of one optimizer step) of an epoch from a step on; order = f(seed, epoch)."""
        if self.blocks is None:
            train = self.parts["train"]
            order = [train[i] for i in epoch_order(len(train), self.seed, epoch)]
        else:
            order = blocked_order(self.blocks, self.seed, epoch)
        plan = self.plan
        self._current.plan = Plan(
            order, epoch, plan.batch_size, plan.accumulation, plan.processes, plan.rank, start_step, plan.drop_last
        )
        return self._windows(self._batches(self._train))

    def part(self, name: str) -> Iterator[Batch]:
        """This rank's evaluation batches of a part: deterministic samples, in hash order of their ids, padded by repeats."""
        rows = self.parts[name]
        order = [rows[i] for i in hash_order([self.dataset.records[i].id for i in rows])]
        draws = evaluation_draws(order, self.plan.eval_batch_size, self.plan.processes, self.plan.rank)
        for batch in self._batches(self._loader(draws, persistent=False)):
            self.on_batch()
            yield batch

    def close(self) -> None:
        """Ends this loader's workers."""
        end_workers(self._train)

    def _windows(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        window: list[Batch] = []
        for batch in batches:
            window.append(batch)
            if len(window) == self.plan.accumulation:
                yield window
                window = []

    def _batches(self, loader: DataLoader) -> Iterator[Batch]:
        iterator = iter(loader)  # made here, before the loop restores the random state: torch draws a seed for it
        return self._checked(iterator)

    def _checked(self, iterator: Iterator[Batch | MmexpertError]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader" not in str(error):
                    raise
                raise ProcessError(
                    f"{error}. A loader worker died or gave nothing for trainer.loader_timeout_s={self.workers.timeout_s}; "
                    "trainer.num_workers=0 shows the sample at fault"
                ) from error
            if isinstance(batch, MmexpertError):
                raise batch
            yield to_device(batch, self.device)

    def _loader(self, draws: object, persistent: bool) -> DataLoader:
        parallel = self.workers.num_workers > 0
        return DataLoader(
            BatchSource(self.dataset, self.collate),
            batch_size=None,
            sampler=draws,
            num_workers=self.workers.num_workers,
            prefetch_factor=self.workers.prefetch_factor if parallel else None,
            persistent_workers=persistent and parallel,
            pin_memory=self.workers.pin_memory,
            timeout=self.workers.timeout_s if parallel else 0,
            worker_init_fn=_start_worker if parallel else None,
            generator=torch.Generator().manual_seed(self.seed),  # its own: else the iterator draws from torch's global one
        )


def end_workers(loader: DataLoader) -> None:
    """Ends persistent workers: torch asks first; one that hangs and ignores TERM is killed, by its own id."""
    iterator, loader._iterator = getattr(loader, "_iterator", None), None
    if iterator is None or not hasattr(iterator, "_shutdown_workers"):
        return
    workers = iterator._workers
    iterator._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGKILL)


def _start_worker(_: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a signal to the group must not end the worker before the run has saved
    torch.set_num_threads(1)


def _blocks(dataset: RecordDataset, train: list[int]) -> list[list[int]] | None:
    if dataset.together is None:
        return None
    index = {dataset.records[i].id: i for i in train}
    return [[index[name] for name in block if name in index] for block in dataset.together if any(name in index for name in block)]
