"""Samples -> Batch: radar padded with its mask, text tokenised, the rest stacked: images to [B, C, H, W], numbers to [B]."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mmexpert.data.frames import ClipFrames, Frames, joined
from mmexpert.types import Batch, ConfigError, DataError

Tokenizer = Callable[[list[str]], dict[str, torch.Tensor]]


class Collate:
    """Joins samples of RecordDataset.sample into a Batch.

    tokenizer: list of B texts -> {input_ids, attention_mask} [B, M], or None where no sample has a text; its special_ids, where it has
    some, are no words. unit_length: T is a multiple of it. pad_to: batch (its longest clip) | max (always max_length frames).
    """

    def __init__(self, tokenizer: Tokenizer | None, unit_length: int, pad_to: str, max_length: int) -> None:
        if pad_to not in ("batch", "max"):
            raise ConfigError(f"dataset.pad_to={pad_to}: choose batch or max")
        self.tokenizer, self.unit_length, self.pad_to, self.max_length = tokenizer, unit_length, pad_to, max_length
        self.special_ids = torch.tensor(getattr(tokenizer, "special_ids", ()), dtype=torch.long)
        self.roles: dict[str, Callable[[list[Any]], Any]] = {"radar": self._radar}

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """B samples with equal roles -> tensors with B rows; hard captions of all rows become one list with hard_row, hard_kind.

        Raises KeyError where a sample lacks a role of another, DataError where a clip has no frame or a text no word.
        """
        for sample in samples:
            if sample.keys() != samples[0].keys():
                raise KeyError(f"a sample has {', '.join(sorted(sample))}, another of its batch {', '.join(sorted(samples[0]))}")
            if "radar" in sample and not _frames(sample["radar"]):
                raise DataError(f"sample {sample.get('id', '(no id)')}: the clip has no frame; it needs at least one, remove its record")
        ids = [sample.get("id", "(no id)") for sample in samples]
        batch: Batch = {}
        for role in samples[0]:
            values = [sample[role] for sample in samples]
            if role == "hard_text":
                batch |= self._hard(values, ids)
            elif role == "text":
                batch[role] = self._text(values, ids)
            else:
                batch[role] = self.roles.get(role, _stack)(values)
        return batch

    def _radar(self, clips: list[dict[str, np.ndarray]] | list[ClipFrames]) -> dict[str, torch.Tensor] | Frames:
        lengths = [_frames(clip) for clip in clips]
        longest = self.max_length if self.pad_to == "max" else max(lengths)
        frames = -(-longest // self.unit_length) * self.unit_length
        if isinstance(clips[0], ClipFrames):
            return joined(clips, frames)
        padded = {}
        for view in clips[0]:
            whole = np.zeros((len(clips), len(clips[0][view]), frames), np.float32)
            for row, (clip, length) in enumerate(zip(clips, lengths, strict=True)):
                whole[row, :, :length] = clip[view]
            padded[view] = torch.from_numpy(whole)
        padded["mask"] = torch.arange(frames) < torch.tensor(lengths)[:, None]
        return padded

    def _text(self, texts: list[str], ids: Sequence[Any]) -> dict[str, torch.Tensor]:
        """ids: the sample of each text. A text without a word would leave nothing to align, and a mask that is all False."""
        if self.tokenizer is None:
            raise ConfigError("the data set gives texts, but there is no text tower: choose encoder/text=scratch")
        tokens = self.tokenizer(texts)
        words = tokens["attention_mask"].bool() & ~torch.isin(tokens["input_ids"], self.special_ids)
        for number in (~words.any(1)).nonzero()[:1, 0].tolist():
            raise DataError(
                f"sample {ids[number]}: the text {texts[number]!r} has no word, only tokens that frame a sentence; write a caption, or "
                "remove its record"
            )
        return tokens

    def _hard(self, rows: list[list[tuple[int, str]]], ids: Sequence[Any]) -> Batch:
        flat = [(row, kind, text) for row, captions in enumerate(rows) for kind, text in captions]
        if not flat:
            return {}
        return {
            "hard_text": self._text([text for _, _, text in flat], [ids[row] for row, _, _ in flat]),
            "hard_row": torch.tensor([row for row, _, _ in flat]),
            "hard_kind": torch.tensor([kind for _, kind, _ in flat]),
        }


def _frames(clip: dict[str, np.ndarray] | ClipFrames) -> int:
    """T of a clip; 0 where a view has none."""
    return len(clip.values) if isinstance(clip, ClipFrames) else min(x.shape[1] for x in clip.values())


def _stack(values: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(value) for value in values]))


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a nested dict on the device; from pinned memory the copy does not wait."""
    if isinstance(batch, dict):
        return {role: to_device(value, device) for role, value in batch.items()}
    return batch.to(device, non_blocking=True)
