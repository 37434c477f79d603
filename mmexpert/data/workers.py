"""Loader processes of one loader: how they start, how their failures are told, how they end."""

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mmexpert.data.collate import Collate
from mmexpert.data.records import Draw, RecordDataset
from mmexpert.types import Batch, MmexpertError, ProcessError

log = logging.getLogger(__name__)
_START_S, _STARTS = 30.0, 3  # a worker is up in milliseconds; on a machine that swaps, in seconds
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


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
        under_way = draws
        try:
            samples = []
            for draw in draws:
                under_way = [draw]
                samples.append(self.dataset[draw])
            under_way = draws
            return self.collate(samples)
        except MmexpertError as error:
            return error
        except Exception:  # noqa: BLE001  any defect of a data set: told with the samples that show it, raised in the main process
            return ProcessError(f"loading {_told(self.names(under_way))} failed:\n{traceback.format_exc()}")

    def names(self, draws: Iterable[Draw]) -> list[str]:
        """Ids of the draws' records."""
        return [self.dataset.records[index].id for index, _, _ in draws]


class Requests:
    """The sampler of a loader: its batches change by epoch, the loader and its workers stay. Remembers what has not come back yet."""

    def __init__(self) -> None:
        self.batches: Iterable[list[Draw]] = ()
        self.under_way: deque[list[Draw]] = deque()  # oldest first; that one is awaited
        self.arrived = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        self.under_way.clear()
        self.arrived = 0
        for draws in self.batches:
            self.under_way.append(draws)
            yield draws

    def arrive(self) -> None:
        """The oldest batch has come; they come in order."""
        self.under_way.popleft()
        self.arrived += 1

    def of_worker(self, number: int, workers: int) -> list[Draw]:
        """What a worker had to do: torch hands the batches round."""
        return [draw for i, draws in enumerate(self.under_way, self.arrived) if i % workers == number for draw in draws]


class Stream:
    """One loader and its workers. Every failure of a worker is an error of types.py that names the samples under way.

    persistent: the workers stay when an epoch ends.
    """

    def __init__(self, source: BatchSource, settings: WorkerSettings, seed: int, persistent: bool) -> None:
        self.source, self.settings, self.requests = source, settings, Requests()
        parallel = settings.num_workers > 0
        self._iterator: Any = None
        self._up = multiprocessing.RawArray("b", settings.num_workers) if parallel else []  # set by each worker once it runs
        self._loader = DataLoader(
            source,
            batch_size=None,
            sampler=self.requests,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch_factor if parallel else None,
            persistent_workers=persistent and parallel,
            pin_memory=settings.pin_memory,
            timeout=settings.timeout_s if parallel else 0,
            worker_init_fn=partial(start_worker, self._up) if parallel else None,
            generator=torch.Generator().manual_seed(seed),  # its own: else the iterator draws from torch's global one
        )

    def batches(self, requests: Iterable[list[Draw]]) -> Iterator[Batch]:
        """The batches of the requests, in order. The workers start with this call, not with the first batch."""
        self.requests.batches = requests
        for _ in range(_STARTS):
            if self._loader._iterator is None:  # no workers that stayed
                self._up[:] = [0] * len(self._up)
            self._iterator = self._await(iter, self._loader)
            if not (stuck := self._stuck()):
                return self._deliver()
            log.warning("loader workers %s have not come up in %g s and are started anew", stuck, _START_S)
            for pid in stuck:
                os.kill(pid, signal.SIGKILL)
            self.close()
        raise ProcessError(f"some loader workers did not come up in {_STARTS} starts of {_START_S:g} s; trainer.num_workers=0 needs none")

    def _stuck(self) -> list[int]:
        """Ids of the workers that do not come up. A fork copies the locks that other threads (gloo's) hold at that moment, and a child
        that needs one of them waits for ever: rare, and seen (pytorch issue 130610 is another case)."""
        deadline = time.monotonic() + _START_S
        while not all(self._up) and not self.dead():
            if time.monotonic() > deadline:
                return [worker.pid for worker, up in zip(self._iterator._workers, self._up, strict=True) if not up]
            time.sleep(0.001)
        return []

    def close(self) -> None:
        """Ends the workers: torch asks first; one that hangs and ignores TERM is killed, by its own id."""
        iterator, self._iterator, self._loader._iterator = self._iterator, None, None
        if not hasattr(iterator, "_shutdown_workers"):
            return
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
                worker.join()

    def _deliver(self) -> Iterator[Batch]:
        while True:
            try:
                batch = self._await(next, self._iterator)
            except StopIteration:
                return
            self.requests.arrive()
            if isinstance(batch, MmexpertError):
                raise batch
            yield batch

    def _await(self, step: Callable[[Any], Any], subject: Any) -> Any:
        """step(subject), in which alone a worker's death is raised. Raises ProcessError."""
        try:
            with _CHILDREN.watched_for(self):
                if dead := self.dead():
                    raise RuntimeError(f"DataLoader worker (pid {dead[0][1]}) has died")
                return step(subject)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise ProcessError(self._failure(error)) from error
        finally:
            _CHILDREN.adopt()

    def dead(self) -> list[tuple[int, int]]:
        """(number, pid) of this loader's workers that ended with an error or by a signal."""
        workers = getattr(self._iterator, "_workers", [])
        return [(number, worker.pid) for number, worker in enumerate(workers) if not worker.is_alive() and worker.exitcode]

    def _failure(self, error: RuntimeError) -> str:
        requests, count = self.requests, self.settings.num_workers
        remedy = "trainer.num_workers=0 shows the sample at fault"
        if dead := self.dead():
            number, pid = dead[0]
            names = self.source.names(requests.of_worker(number, count))
            task = (
                f"while it had to load {_told(names)}; {remedy}, unless memory ran out"
                if names
                else "between two epochs; did memory run out?"
            )
            return f"loader worker {number} (pid {pid}) died ({error}) {task}"
        awaited = requests.under_way[0] if requests.under_way else []
        task = f"load {_told(self.source.names(awaited))}; {remedy}" if awaited else "begin an epoch"
        return f"a loader worker gave nothing for trainer.loader_timeout_s={self.settings.timeout_s} while it had to {task}"


class Children:
    """torch raises a worker's death from a signal handler, wherever the main thread is: in a backward pass, in a save. Here it is raised
    only in the stream that awaits a batch of that worker; what dies meanwhile is found at the next batch."""

    def __init__(self) -> None:
        self.stream: Stream | None = None

    @contextmanager
    def watched_for(self, stream: Stream) -> Iterator[None]:
        """The stream awaits a batch."""
        self.stream = stream
        try:
            yield
        finally:
            self.stream = None

    def adopt(self) -> None:
        """Puts itself before torch's handler, which is there from a process's first loader with workers on."""
        theirs = signal.getsignal(signal.SIGCHLD)
        if not callable(theirs) or getattr(theirs, "of_children", False) or threading.current_thread() is not threading.main_thread():
            return

        def handler(number: int, frame: FrameType | None) -> None:
            """torch's, while the stream awaits a batch."""
            if self.stream is None:
                return
            try:
                theirs(number, frame)
            except RuntimeError:
                if self.stream.dead():  # else it is another stream's: that one will find it
                    raise

        handler.of_children = True
        signal.signal(signal.SIGCHLD, handler)


_CHILDREN = Children()


def start_worker(up: Any, worker: int) -> None:
    """Deaf to what stops a run: a signal to the group must not end the worker before the run has saved. torch gives it one thread.

    up[worker] = 1 says that it runs, after it has done once what every batch needs.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    torch.stack([torch.zeros(1)]).share_memory_()
    up[worker] = 1


def _told(names: list[str]) -> str:
    return f"sample {names[0]}" if len(names) == 1 else f"one of the samples {', '.join(names)}"
