"""Where a run stands: position, history, best epochs, early stopping, and the sums of the epoch under way."""

import difflib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmexpert.engine.files import plain
from mmexpert.engine.monitor_mode import mode_of
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
_STORED = ("epoch", "step", "step_in_epoch", "samples", "pending", "history", "best", "early_stopping")


@dataclass(frozen=True)
class Choice:
    """What counts as best. mode: min | max | None = by the key's name. save_top_k: entries of a best list, -1 = all.

    patience: validations in a row without a gain of more than min_delta (absolute), None or 0 = off. early_monitor: its key, None =
    the first monitored key.
    """

    mode: str | None
    save_top_k: int
    early_monitor: str | None
    patience: int | None
    min_delta: float

    def __post_init__(self) -> None:
        if self.mode not in (None, "min", "max"):
            raise ConfigError(f"trainer.mode={self.mode}: choose min, max or null (by the key's name)")
        if self.save_top_k != -1 and self.save_top_k < 1:
            raise ConfigError(f"trainer.save_top_k={self.save_top_k}: 1 or more (the best is read at the end), or -1 for all")
        if (self.patience or 0) < 0 or not self.min_delta >= 0:
            raise ConfigError(f"trainer.early_stopping: patience={self.patience} and min_delta={self.min_delta} must be 0 or above")


def check_monitors(monitors: Iterable[str | None], known: Iterable[str]) -> None:
    """Raises ConfigError for a monitored key that validation does not give, listing those that it gives."""
    names = sorted(known)
    for key in monitors:
        if key is not None and key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"monitor {key!r}: there is no such value. {hint}Validation gives {', '.join(names)}")


@dataclass
class Progress:
    """Position and memory of a run. Everything but sums is the same on all ranks.

    epoch: epochs completed; step: optimizer steps; step_in_epoch: of them in the epoch under way; samples: seen over all processes;
    pending: train | evaluate, what comes next. history: one row an epoch. best: {monitored key: [{value, epoch, step, folder}]}, best
    first, of equals the earlier first. early_stopping: {best, bad_epochs}. sums: {names of terms: [4, terms] float64}, of this rank: sum
    and rows of the epoch, sum and rows since the last window_means.
    """

    choice: Choice
    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    samples: int = 0
    pending: str = "train"
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    early_stopping: dict[str, Any] = field(default_factory=lambda: {"best": None, "bad_epochs": 0})
    sums: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @property
    def patience_left(self) -> bool:
        """False once early stopping ends the run."""
        return not self.choice.patience or self.early_stopping["bad_epochs"] < self.choice.patience

    @property
    def best_epoch(self) -> int | None:
        """Epoch, from 1, that is best by the first monitored key; None before any."""
        entries = next(iter(self.best.values()), [])
        return entries[0]["epoch"] if entries else None

    @property
    def best_value(self) -> float | None:
        """Value of the first monitored key in that epoch."""
        entries = next(iter(self.best.values()), [])
        return entries[0]["value"] if entries else None

    def add(self, losses: dict[str, Tensor], rows: int) -> None:
        """Adds a micro-batch's means, weighted by its rows, to the sums of epoch and window: on the device, nothing is read by the host.

        A value that is not finite leaves its own mean out: under nonfinite=skip the epoch's other steps still count.
        """
        names = tuple(losses)
        values = torch.stack([value.detach() for value in losses.values()]).double()
        finite = torch.isfinite(values)
        weighted = torch.stack([torch.where(finite, values, 0.0), finite.double()]).repeat(2, 1) * rows
        before = self.sums.get(names)
        self.sums[names] = weighted if before is None else before.to(values.device) + weighted

    def epoch_means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the epoch's samples by term; reduce sums a tensor over ranks, and may do so in place. NaN where none was finite."""
        names = sorted(self.sums)  # the same order on all ranks
        return _means((group, reduce(self.sums[group][:2].clone()).cpu()) for group in names)

    def window_means(self, reduce: Callable[[Tensor], Tensor], further: Tensor) -> tuple[dict[str, float], dict[str, float], list[float]]:
        """(means since the last call, means of the epoch so far, further), summed over ranks in one exchange and read in one copy.

        further: values [n] of this rank that travel along; n sums over ranks come back. The window begins again.
        """
        names = sorted(self.sums)
        packed = torch.cat([self.sums[group].to(further.device).flatten() for group in names] + [further.double()])
        values = reduce(packed).cpu()
        window, epoch = [], []
        for group in names:
            block, values = values[: 4 * len(group)].view(4, -1), values[4 * len(group) :]
            epoch.append((group, block[:2]))
            window.append((group, block[2:]))
            self.sums[group] = torch.cat([self.sums[group][:2], torch.zeros_like(self.sums[group][2:])])
        return _means(window), _means(epoch), values.tolist()

    def advance(self, samples: int) -> None:
        """Counts one optimizer step over so many samples of all processes."""
        self.step += 1
        self.step_in_epoch += 1
        self.samples += samples

    def close_epoch(self, row: dict[str, Any], monitors: Sequence[str]) -> None:
        """Ends an epoch: appends its row (metrics with their prefix), updates best lists and early stopping.

        monitors: empty where the epoch was not validated. Raises ConfigError listing the row's keys where it lacks one of them.
        """
        row = plain(row)
        self.epoch += 1
        self.step_in_epoch, self.pending, self.sums = 0, "train", {}
        self.history.append({"epoch": self.epoch, "step": self.step} | row)
        if not monitors:
            return
        early = self.choice.early_monitor or monitors[0]
        check_monitors([*monitors, early], [key for key, value in row.items() if isinstance(value, (int, float))])
        folder = epoch_name(self.epoch, row[monitors[0]])
        for key in monitors:
            self._rank(key, {"value": float(row[key]), "epoch": self.epoch, "step": self.step, "folder": folder})
        self._count(early, float(row[early]))

    def _rank(self, key: str, entry: dict[str, Any]) -> None:
        entries = self.best.setdefault(key, [])
        if not math.isfinite(entry["value"]):
            log.warning("epoch %d: %s is %s, which is no improvement", self.epoch, key, entry["value"])
            return
        # behind its equals: the earlier epoch stays the better one
        place = next((i for i, other in enumerate(entries) if self._gain(key, entry["value"], other["value"]) > 0), len(entries))
        entries.insert(place, entry)
        if self.choice.save_top_k >= 0:
            del entries[self.choice.save_top_k :]

    def _gain(self, key: str, value: float, before: float) -> float:
        """By how much value is better than before. trainer.mode is said of the monitored keys, not of early stopping's own."""
        mode = (self.choice.mode if key in self.best else None) or mode_of(key)
        return before - value if mode == "min" else value - before

    def _count(self, key: str, value: float) -> None:
        best = self.early_stopping["best"]
        if math.isfinite(value) and (best is None or self._gain(key, value, best) > self.choice.min_delta):
            self.early_stopping = {"best": value, "bad_epochs": 0}
            return
        self.early_stopping = {"best": best, "bad_epochs": self.early_stopping["bad_epochs"] + 1}
        if not self.patience_left:
            log.info("early stopping: %d validations in a row without a gain in %s", self.early_stopping["bad_epochs"], key)

    def state(self) -> dict[str, Any]:
        """Everything that all ranks share, as plain Python."""
        return {name: plain(getattr(self, name)) for name in _STORED}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a state; the best lists are cut to a save_top_k that has become smaller."""
        for name in _STORED:
            setattr(self, name, state[name])
        if self.choice.save_top_k >= 0:
            self.best = {key: entries[: self.choice.save_top_k] for key, entries in self.best.items()}

    def rank_state(self) -> list[tuple[list[str], Tensor]]:
        """This rank's sums, for its own file: [(names, [4, terms])]."""
        return [(list(names), total.cpu()) for names, total in self.sums.items()]

    def load_rank(self, states: Iterable[list[tuple[list[str], Tensor]]]) -> None:
        """Takes up sums; more than one where fewer ranks continue: the epoch's means stay those of all its samples."""
        self.sums = {}
        for names, total in (entry for state in states for entry in state):
            self.sums[tuple(names)] = self.sums[tuple(names)] + total if tuple(names) in self.sums else total


def _means(groups: Iterable[tuple[tuple[str, ...], Tensor]]) -> dict[str, float]:
    """Means by term of (names, [sum, rows] of each); NaN where no row counted."""
    totals: dict[str, Tensor] = {}
    for names, sums in groups:
        for name, column in zip(names, sums.T, strict=True):
            totals[name] = totals[name] + column if name in totals else column
    return {name: float(total / count) for name, (total, count) in totals.items()}


def epoch_name(epoch: int, value: float) -> str:
    """Folder of an epoch's checkpoint, for people: its number from 1 and the first monitored value."""
    return f"epoch_{epoch:02d}_val_{value:.4f}"
