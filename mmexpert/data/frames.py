"""Radar clips as they travel: the real frames of a batch one after the other, time-major. Padded views are made where they are used.

Shapes: B clips of T frames at most, N real frames of all of them, F rows of all views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmexpert.types import Batch

Layout = tuple[tuple[str, int], ...]
"""(view, its rows), in the order of the columns."""


@dataclass(frozen=True)
class ClipFrames:
    """A window of a packed clip. values [T, F], float16 or float32; limits: between which values are cut once they are fp32, or None."""

    values: np.ndarray
    layout: Layout
    limits: tuple[float, float] | None

    def views(self) -> dict[str, np.ndarray]:
        """{view: float32 [F of the view, T]}, as the clip would be without the pack."""
        whole = self.values.astype(np.float32)
        if self.limits is not None:
            np.clip(whole, *self.limits, out=whole)
        ends = np.cumsum([rows for _, rows in self.layout])[:-1]
        return {view: part.T for (view, _), part in zip(self.layout, np.split(whole, ends, axis=1), strict=True)}


@dataclass(frozen=True)
class Frames:
    """A batch of clips. values [N + 1, F], the last row zero; index int64 [B, T]: row of each frame, N where a clip has ended."""

    values: Tensor
    index: Tensor
    layout: Layout
    limits: tuple[float, float] | None

    def views(self) -> dict[str, Tensor]:
        """{view: float32 [B, F of the view, T], zero beyond a clip's end, 'mask': bool [B, T]}."""
        parts = self._on_host() if self.values.is_cpu else self._gathered()
        if self.limits is not None:
            for part in parts:
                part.clamp_(*self.limits)
        views = {view: part for (view, _), part in zip(self.layout, parts, strict=True)}
        return views | {"mask": self.index < len(self.values) - 1}

    def _on_host(self) -> list[Tensor]:
        """Clip by clip, within the cache: half the time of a gather."""
        clips, frames = self.index.shape
        parts = [torch.zeros(clips, rows, frames) for _, rows in self.layout]
        ends = (self.index < len(self.values) - 1).sum(1).cumsum(0).tolist()
        for columns, part in zip(self.values.split([rows for _, rows in self.layout], 1), parts, strict=True):
            for clip, first, last in zip(part, [0, *ends], ends, strict=False):
                clip[:, : last - first] = columns[first:last].T
        return parts

    def _gathered(self) -> list[Tensor]:
        """With no number read from the device."""
        clips, frames = self.index.shape
        whole = self.values.index_select(0, self.index.flatten()).view(clips, frames, -1).transpose(1, 2)
        parts = whole.split([rows for _, rows in self.layout], 1)
        return [torch.empty(part.shape, dtype=torch.float32, device=part.device).copy_(part) for part in parts]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Frames":
        """On the device."""
        move = lambda x: x.to(device, non_blocking=non_blocking)  # noqa: E731
        return replace(self, values=move(self.values), index=move(self.index))

    def pin_memory(self) -> "Frames":
        """In page-locked memory; DataLoader looks for this name."""
        return replace(self, values=self.values.pin_memory(), index=self.index.pin_memory())


def joined(clips: Sequence[ClipFrames], padded_length: int) -> Frames:
    """The clips as a batch that will be padded to padded_length frames."""
    lengths = [len(clip.values) for clip in clips]
    real, width = sum(lengths), clips[0].values.shape[1]
    values = np.empty((real + 1, width), clips[0].values.dtype)
    np.concatenate([clip.values for clip in clips], out=values[:real])
    values[real] = 0
    return Frames(torch.from_numpy(values), _index(torch.tensor(lengths), padded_length), clips[0].layout, clips[0].limits)


def compact(batch: Batch) -> Batch:
    """The batch with padded views as Frames: expanded() gives the same bits back, since padding is zero. Waits for the device."""
    radar = batch.get("radar")
    if not isinstance(radar, dict):
        return batch
    mask = radar["mask"]
    names = [name for name in radar if name != "mask"]
    lengths = mask.sum(1)
    values = torch.cat([radar[name].transpose(1, 2)[mask] for name in names], dim=1)
    values = torch.cat([values, values.new_zeros(1, values.shape[1])])
    layout = tuple((name, radar[name].shape[1]) for name in names)
    return batch | {"radar": Frames(values, _index(lengths, mask.shape[1]), layout, None)}


def expanded(batch: Batch) -> Batch:
    """The batch as a model sees it."""
    return {role: value.views() if isinstance(value, Frames) else value for role, value in batch.items()}


class Window(Sequence[Batch]):
    """The micro-batches of one optimizer step, kept small: a batch is expanded each time it is taken, and forgotten after use."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]
        return expanded(self.batches[number])

    def __iter__(self) -> Iterator[Batch]:
        return map(expanded, self.batches)


def _index(lengths: Tensor, frames: int) -> Tensor:
    """Row numbers [B, frames] of clips that lie one after the other."""
    column = torch.arange(frames, device=lengths.device)
    first = lengths.cumsum(0) - lengths
    return torch.where(column < lengths[:, None], first[:, None] + column, lengths.sum())
