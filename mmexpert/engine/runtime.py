"""The processes of a run: Accelerator, ranks, seeds, threads, devices."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from mmexpert.types import ConfigError, MmexpertError, ProcessError

if TYPE_CHECKING:
    from mmexpert.engine.checkpoint import Checkpoints
    from mmexpert.engine.meter import Meter
    from mmexpert.engine.tracking import Tracker
    from mmexpert.engine.watch import Watch

T = TypeVar("T")
_RANK_STRIDE = 1000003  # a prime far above any number of ranks, so that rank r of seed s is no rank of seed s + 1


@dataclass
class Run:
    """What the loop needs beside model and data."""

    accelerator: Accelerator
    checkpoints: Checkpoints
    tracker: Tracker
    watch: Watch
    meter: Meter


class Ranks:
    """The process group as files and clocks see it: rank, number, barrier, exchange of small Python objects."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.processes > 1:
            self.accelerator.wait_for_everyone()

    def gather_objects(self, thing: Any) -> list[Any]:
        """One entry a rank, in rank order, on every rank."""
        if self.processes == 1:
            return [thing]
        gathered: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(gathered, thing)
        return gathered

    def largest(self, value: float) -> float:
        """The largest of one number a rank."""
        if self.processes == 1:
            return value
        values = torch.tensor([value], dtype=torch.float32, device=self.accelerator.device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return float(values)

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        if self.processes > 1:
            values = values.to(self.accelerator.device)
            torch.distributed.all_reduce(values)
        return values


@dataclass(frozen=True)
class LaunchSettings:
    """device: auto | cpu | cuda. mixed_precision: no | bf16 | fp16. group_timeout_s: a dead group is left after so long."""

    device: str
    mixed_precision: str
    accumulation: int
    deterministic: bool
    group_timeout_s: int
    expect_processes: int | None


def launch(settings: LaunchSettings, tracker_name: str | None, folder: Path) -> Accelerator:
    """The Accelerator of one fold. Raises ConfigError for what the device can not do, ProcessError where processes are missing."""
    precision = "no" if settings.mixed_precision is False else str(settings.mixed_precision)  # YAML reads a bare no as false
    if precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"trainer.mixed_precision={precision}: choose no, bf16 or fp16")
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: torch sees no GPU here; use trainer.device=auto")
    if precision == "fp16" and on_cpu:
        raise ConfigError("trainer.mixed_precision=fp16 on a CPU is about 80 times slower than fp32: use bf16 or no")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:  # said in any case, before gloo has threads: the first call registers with libc, under a lock that forks copy
        share = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        torch.set_num_threads(torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else share)
    AcceleratorState._reset_state(False)  # a second job of a multirun may have another precision; the process group stays
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulation,
        cpu=on_cpu,
        log_with=tracker_name,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=settings.group_timeout_s))],
    )
    check_processes(accelerator.num_processes, world, settings.expect_processes)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return accelerator


def check_processes(have: int, world: int, expected: int | None) -> None:
    """Two rank 0s that write the same files are worse than no run: refused before anything is written."""
    if have != world:
        raise ProcessError(
            f"WORLD_SIZE={world}, but Accelerate runs {have} process(es): without a GPU start with torchrun --nproc_per_node {world}; "
            "unset RANK and WORLD_SIZE for a single process"
        )
    if expected is not None and have != expected:
        raise ProcessError(
            f"expect_processes={expected}, but {have} process(es) run. `accelerate launch --cpu --num_processes {expected}` starts one: "
            f"use torchrun --nproc_per_node {expected}"
        )


def check_shared(folder: Path, ranks: Ranks, seconds: float = 30) -> None:
    """Every rank must see a file that rank 0 has just written. Raises ProcessError on all: outputs/ on a local disk of each node."""
    if ranks.processes == 1:
        return

    def write() -> str:
        """Leaves a file of a name that nobody can guess; returns the name."""
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        return probe.name

    probe = folder / on_first_rank(ranks, write)
    deadline = time.monotonic() + seconds
    while not (seen := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
        if folder.is_dir():
            os.listdir(folder)  # makes a network file system look again
    blind = [rank for rank, there in enumerate(ranks.gather_objects(seen)) if not there]
    if ranks.rank == 0:
        probe.unlink(missing_ok=True)
    if blind:
        raise ProcessError(f"rank {blind[0]} does not see {probe} of rank 0: outputs/ is not shared; start where all nodes see one folder")


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch alike on every rank, for the initial weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Gives each rank a stream of its own after the weights are made, so that dropout differs."""
    seed_all(seed + _RANK_STRIDE * (rank + 1))


def on_first_rank(ranks: Ranks, work: Callable[[], T], share: bool = True) -> T:
    """Result of work, done by rank 0 while the others wait; its error is raised on every rank, so that none is left waiting.

    share=False: the result is not sent (it may be large); other ranks get None.
    """
    value, error = None, None
    if ranks.rank == 0:
        try:
            value = work()
        except (MmexpertError, OSError) as raised:
            error = raised
    shared, error = ranks.gather_objects((value if share else None, error))[0]
    if error is not None:
        raise error
    return shared if share else value
