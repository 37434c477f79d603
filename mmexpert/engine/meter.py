"""What is measured while training: rows of metrics.jsonl every log_every steps, the history row of an epoch, and where time goes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.data.loaders import Loaders
from mmexpert.engine.chance import chance_loss, warn_of_chance
from mmexpert.engine.console import Console
from mmexpert.engine.memory import resident_bytes
from mmexpert.engine.progress import Progress
from mmexpert.engine.runtime import Ranks
from mmexpert.engine.tracking import Tracker


class Meter:
    """Turns loss tensors, norm, rates and clocks into rows for tracker and console; the only place that reads them from the device.

    log_every: optimizer steps between rows. batch_size: samples per optimizer step over all processes; contrast: of them contrasted
    with each other.
    """

    def __init__(
        self, tracker: Tracker, console: Console, ranks: Ranks, device: torch.device, log_every: int, batch_size: int, contrast: int
    ) -> None:
        self.tracker, self.console, self.ranks, self.device = tracker, console, ranks, device
        self.log_every, self.batch_size, self.contrast = log_every, batch_size, contrast
        self.epoch_start = self.row_start = time.monotonic()
        self.waited, self.steps = 0.0, 0

    def timed(self, windows: Iterable[list[dict]]) -> Iterator[list[dict]]:
        """The same windows; the time that each took to come counts as data time."""
        self.epoch_start = self.row_start = before = time.monotonic()
        self.waited, self.steps = 0.0, 0
        for window in windows:
            self.waited += time.monotonic() - before
            yield window
            before = time.monotonic()

    def step(self, progress: Progress, norm: Tensor, module: nn.Module, schedule: Any) -> None:
        """Logs a row every log_every steps, of means over the samples since the last one; on the others nothing is read from the device."""
        self.steps += 1
        if progress.step % self.log_every:
            return
        scales = module.scales()
        further = torch.stack([norm.float(), *(scale.float() for scale in scales.values())])
        window, epoch, values = progress.window_means(self.ranks.sum, further)
        known = dict(zip(["grad_norm", *scales], (value / self.ranks.processes for value in values), strict=True))
        row = {f"train/{name}": value for name, value in (window | known).items()}
        row |= self._rates(schedule) | self._times()
        row |= {"epoch": progress.epoch + 1, "step": progress.step}
        if self.ranks.rank == 0:
            self.tracker.log_step(row)
            self.console.step(row, epoch, progress.step_in_epoch)

    @contextmanager
    def validating(self, progress: Progress, loaders: Loaders) -> Iterator[None]:
        """Shows how the epoch's training ended, then the evaluation batches of the block; what else looks at them still does."""
        looks, means = loaders.on_batch, progress.epoch_means(self.ranks.sum)
        if self.ranks.rank == 0:
            self.console.trained(progress.epoch + 1, means, progress.step_in_epoch)
            self.console.validation(loaders.batches("valid"))

            def look() -> None:
                looks()
                self.console.validated()

            loaders.on_batch = look
        try:
            yield
        finally:
            loaders.on_batch = looks

    def epoch(self, progress: Progress, metrics: dict[str, float], module: nn.Module, schedule: Any) -> dict[str, Any]:
        """The history row of the epoch that just ended: train/ means over its samples, valid/ metrics, rates, scales, time."""
        means = progress.epoch_means(self.ranks.sum)
        train = {f"train/{name}": value for name, value in means.items()}
        row = {"epoch": progress.epoch + 1, "step": progress.step} | train | {f"valid/{name}": value for name, value in metrics.items()}
        row |= {f"train/{name.replace('/', '_')}": value for name, value in self._rates(schedule).items()}
        row |= {f"train/{name}": float(value) for name, value in module.scales().items()}
        row["train/epoch_time"] = round(time.monotonic() - self.epoch_start, 3)
        if self.ranks.rank == 0:
            self.tracker.log_epoch(row, progress.history + [row])
            if not metrics:  # else it was shown before the validation began
                self.console.trained(progress.epoch + 1, means, progress.step_in_epoch)
            self.console.epoch(row)
            warn_of_chance(row, chance_loss(module.loss, self.contrast), self.contrast)
        return row

    def _rates(self, schedule: Any) -> dict[str, float]:
        return {f"lr/{group['name']}": rate for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True)}

    def _times(self) -> dict[str, float]:
        now = time.monotonic()
        spent, steps = now - self.row_start, max(1, self.steps)
        row = {
            "batch_time": spent / steps,
            "data_time": self.waited / steps,
            "samples_per_second": steps * self.batch_size / max(spent, 1e-9),
        }
        if self.device.type == "cuda":
            row["gpu_memory"] = self.ranks.largest(torch.cuda.max_memory_allocated(self.device) / 2**30)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            row["cpu_memory"] = self.ranks.largest(resident_bytes() / 2**30)
        self.row_start, self.waited, self.steps = now, 0.0, 0
        return row
