"""What every step is watched for, on all ranks alike: stop signals, non-finite numbers, time to save."""

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmexpert.engine.evidence import Evidence, Gradients
from mmexpert.types import NonFiniteError

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_OVERFLOWS_IN_A_ROW = 20  # an fp16 scaler that halves so often finds no scale


@dataclass(frozen=True)
class Verdict:
    """What the ranks agreed on after a step's backward pass."""

    finite: bool  # False: this update is left out
    stop: int  # 0, or 128 + the signal's number
    save: bool  # rank 0's clock asks for a checkpoint


@dataclass(frozen=True)
class WatchSettings:
    """nonfinite: stop | skip. budget: updates that skip may leave out. poll_every: steps between reads by the host."""

    nonfinite: str
    budget: int
    poll_every: int


class Watch:
    """Signal handlers and the one all-reduce of a step. minutes_due: asked on rank 0. evidence: writes the report of a bad step."""

    def __init__(self, accelerator: Accelerator, settings: WatchSettings, minutes_due: Callable[[], bool], evidence: Evidence) -> None:
        self.accelerator, self.settings, self.minutes_due, self.evidence = accelerator, settings, minutes_due, evidence
        self.signal = 0
        self.skipped = 0
        self.overflows = 0
        self.bad_since_poll = torch.zeros((), device=accelerator.device)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.signal and callable(before := self._before.get(self.signal)) and before is not signal.default_int_handler:
            before(self.signal, None)  # a handler that was there first (submitit's) is called, after the save
        self._before = {}

    def _note(self, number: int, _: object) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        self.signal = number

    def see(self, ids: Tensor, losses: dict[str, Tensor]) -> None:
        """A micro-batch of the step under way: ids int64 [B], loss terms. Nothing is read from the device."""
        self.evidence.see(ids, losses)

    def agree(self, gradients: Gradients, progress: Any) -> Verdict:
        """Finite on all ranks? Asked to stop on any? Due on rank 0? One all-reduce, read every poll_every steps.

        Raises NonFiniteError on all ranks, before the update that would have spoilt the weights.
        """
        scaled = self.accelerator.scaler is not None
        bad = self.evidence.close_step(progress.step + 1, progress.epoch + 1, gradients).bad(scaled)
        self.bad_since_poll = self.bad_since_poll + bad.float()
        if (progress.step + 1) % self.settings.poll_every:
            return Verdict(finite=True, stop=0, save=False)  # Watch.guard() keeps a bad update out on the device
        wanted = [float(self.signal), float(self.accelerator.is_main_process and self.minutes_due())]
        flags = torch.cat([self.bad_since_poll.reshape(1), torch.tensor(wanted, device=self.bad_since_poll.device)])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        bad_steps, number, save = flags.tolist()
        self.bad_since_poll.zero_()
        self._count_overflow(scaled, gradients.total)
        if bad_steps:
            self._nonfinite(int(bad_steps), scaled)
        self.evidence.clear()
        return Verdict(finite=not bad_steps, stop=128 + int(number) if number else 0, save=bool(save))

    def guard(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Tells a fused optimizer to leave its state alone where the norm is not finite: no host read between two polls."""
        if self.settings.poll_every > 1 and self.accelerator.scaler is None:
            optimizer.grad_scale = torch.ones((), device=norm.device)
            optimizer.found_inf = (~torch.isfinite(norm)).float().reshape(())

    def poll(self) -> None:
        """Called at every evaluation batch: SystemExit where this process or another was asked to stop."""
        flag = torch.tensor(float(self.signal), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if number := int(flag):
            raise SystemExit(128 + number)

    def _count_overflow(self, scaled: bool, norm: Tensor) -> None:
        if not scaled:
            return
        self.overflows = 0 if bool(torch.isfinite(norm)) else self.overflows + 1
        if self.overflows >= _OVERFLOWS_IN_A_ROW:
            raise NonFiniteError(f"fp16 gradients overflowed {self.overflows} times in a row: use trainer.mixed_precision=bf16")

    def _nonfinite(self, count: int, scaled: bool) -> None:
        first = self.evidence.write(scaled)
        batches = next((rank["micro_batches"] for rank in first.get("ranks", []) if rank["bad"]), first.get("micro_batches", []))
        terms = ", ".join(f"{name} {_short(value)}" for name, value in (batches[-1]["losses"] if batches else {}).items())
        where = f"step {first['step']} of epoch {first['epoch']}: {terms}, grad_norm {_short(first['grad_norm'])}"
        self.skipped += count
        file = f"nonfinite_step_{first['step']}.json"
        if self.settings.nonfinite == "stop" or self.skipped > self.settings.budget:
            raise NonFiniteError(
                f"a loss or gradient is not finite at {where}; samples and modules: {file}. The weights are those before this step. Lower "
                f"optimizer.lr, use fp32 (trainer.mixed_precision=no), or leave such updates out: trainer.nonfinite=skip (at most "
                f"{self.settings.budget})"
            )
        log.warning(
            "update left out, %d of %d: a loss or gradient is not finite at %s (%s)", self.skipped, self.settings.budget, where, file
        )


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
