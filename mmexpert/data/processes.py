"""Simulation in several processes."""

import multiprocessing
import os
from collections.abc import Callable, Sequence

from mmexpert.types import ProcessError


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(tasks: Sequence[Callable[[], None]]) -> None:
    """Each task in a forked process of its own, a single one here. No Pool: it waits for ever where one of its processes is killed.

    Raises ProcessError where a task fails; the others are ended then.
    """
    if len(tasks) == 1:
        return tasks[0]()
    processes = [multiprocessing.get_context("fork").Process(target=task, daemon=True) for task in tasks]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
            if process.exitcode:
                raise ProcessError(
                    f"a process that simulates clips ended with code {process.exitcode} (-9: killed, did memory run out?); "
                    "dataset.workers=1 shows the error"
                )
    finally:
        for process in processes:
            process.terminate()  # does nothing to one that has ended
