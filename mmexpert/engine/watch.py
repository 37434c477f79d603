"""What every step is watched for, on all ranks alike: stop signals, non-finite numbers, time to save."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmexpert.engine.evidence import Evidence, Gradients
from mmexpert.engine.stops import Stops
from mmexpert.types import NonFiniteError

log = logging.getLogger(__name__)
_OVERFLOWS_IN_A_ROW = 20  # an fp16 scaler that halves so often finds no scale


@dataclass(frozen=True)
class Verdict:
    """What the ranks agreed on after a step's backward pass."""

    finite: bool  # False: this update is left out
    stop: int  # 0, or 128 + the signal's number
    save: bool  # rank 0's clock asks for a checkpoint


@dataclass(frozen=True)
class WatchSettings:
    """nonfinite: stop | skip. budget: updates that skip may leave out. poll_every: steps between reads by the host. epoch_steps,
    total_steps: of an epoch, of the run."""

    nonfinite: str
    budget: int
    poll_every: int
    epoch_steps: int
    total_steps: int

    def polled(self, step: int, step_in_epoch: int) -> bool:
        """Whether the host reads at a step, counted from 1: what an epoch's or the run's last steps had would else never be told."""
        return step % self.poll_every == 0 or step_in_epoch == self.epoch_steps or step == self.total_steps


def poll_steps(wanted: int | None, device: torch.device, optimizer: torch.optim.Optimizer) -> int:
    """Steps between reads by the host. wanted: trainer.poll_every, None = 1 on the CPU, 10 on a GPU.

    1 for an optimizer that can not leave a bad update out by itself: the kernels of fused ones can, the rest would spoil the weights
    before the next read.
    """
    leaves_out = getattr(optimizer, "_step_supports_amp_scaling", False) and all(group.get("fused") for group in optimizer.param_groups)
    steps = wanted or (10 if device.type == "cuda" else 1)
    if leaves_out or steps == 1:
        return steps
    if wanted:
        log.warning("trainer.poll_every=%d is taken as 1: %s leaves no bad update out by itself", wanted, type(optimizer).__name__)
    return 1


class Watch:
    """The one all-reduce of a step. minutes_due: asked on rank 0. evidence: writes the report of a bad step."""

    def __init__(
        self, accelerator: Accelerator, settings: WatchSettings, minutes_due: Callable[[], bool], evidence: Evidence, stops: Stops
    ) -> None:
        self.accelerator, self.settings, self.minutes_due = accelerator, settings, minutes_due
        self.evidence, self.stops = evidence, stops
        self.skipped = 0
        self.bad_since_poll = torch.zeros((), device=accelerator.device)
        self.overflows = torch.zeros((), device=accelerator.device)  # in a row; counted on the device, for every step

    def see(self, ids: Tensor, losses: dict[str, Tensor]) -> None:
        """A micro-batch of the step under way: ids int64 [B], loss terms. Nothing is read from the device."""
        self.evidence.see(ids, losses)

    def agree(self, gradients: Gradients, progress: Any) -> Verdict:
        """Finite on all ranks? Asked to stop on any? Due on rank 0? One all-reduce, where the host reads.

        Raises NonFiniteError on all ranks, before the update that would have spoilt the weights.
        """
        scaled = self.accelerator.scaler is not None
        bad = self.evidence.close_step(progress.step + 1, progress.epoch + 1, gradients).bad(scaled).float()
        self.bad_since_poll = self.bad_since_poll + bad
        if scaled:
            self.overflows = (self.overflows + 1) * ~torch.isfinite(gradients.total)
        if not self.settings.polled(progress.step + 1, progress.step_in_epoch + 1):
            return Verdict(finite=True, stop=0, save=False)  # Watch.guard() keeps a bad update out on the device
        asked = [float(self.stops.signal), float(self.accelerator.is_main_process and self.minutes_due())]
        flags = torch.cat([torch.stack([bad, self.bad_since_poll, self.overflows]), torch.tensor(asked, device=bad.device)])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        bad_now, bad_steps, overflows, number, save = flags.tolist()
        self.bad_since_poll.zero_()
        if overflows >= _OVERFLOWS_IN_A_ROW:
            raise NonFiniteError(f"fp16 gradients overflowed {overflows:.0f} times in a row: use trainer.mixed_precision=bf16")
        if bad_steps:
            self._nonfinite(int(bad_steps), scaled)
        self.evidence.clear()
        return Verdict(finite=not bad_now, stop=128 + int(number) if number else 0, save=bool(save))

    def guard(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Tells a fused optimizer to leave its state alone where the norm is not finite: no host read between two polls."""
        if self.settings.poll_every > 1 and self.accelerator.scaler is None:
            optimizer.grad_scale = torch.ones((), device=norm.device)
            optimizer.found_inf = (~torch.isfinite(norm)).float().reshape(())

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
