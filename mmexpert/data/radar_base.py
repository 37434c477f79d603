"""What all radar data sets share: keys, caption choice, and the way from a stored clip to a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmexpert.data.radar_pack import RadarPack, check
from mmexpert.data.records import POSITIVES, Record, RecordDataset, one_caption_each
from mmexpert.data.sampling import EVALUATION, sample_rng
from mmexpert.data.views import Lengths, ViewTransform, view_names
from mmexpert.types import ClassTable, ConfigError, DataError

_BIN = 32  # frames
CAPTIONS = ("random", "first", "all")


@dataclass(kw_only=True, eq=False)
class RadarDataset(RecordDataset):
    """Keys of every radar data set; the YAML files say what each means.

    A subclass calls check_common() in __post_init__, reads its records, hands them to take(), and defines load() and packed_from().
    mirror_allowed: whether its texts stay true when left and right are exchanged.
    """

    views: Any
    normalize: dict[str, Any]
    max_length: int
    unit_length: int
    min_length: int
    short: str
    pad_to: str
    augmentation: dict[str, float] | None
    captions: str
    eval_captions: str
    positives: str
    seed: int
    pack: str
    cache_dir: str

    mirror_allowed = False

    def check_common(self) -> None:
        """Checks the keys above, before anything is read or simulated. Raises ConfigError."""
        self.view_names = view_names(self.views)
        lengths = Lengths(self.max_length, self.unit_length, self.min_length)
        self.transform = ViewTransform(self.normalize, lengths, self.augmentation)
        check(self.pack, self.augmentation or {})
        if self.short not in ("pad", "drop"):
            raise ConfigError(f"dataset.short={self.short}: choose pad or drop")
        choices_of = {"captions": CAPTIONS, "eval_captions": ("first", "all"), "positives": POSITIVES, "pad_to": ("batch", "max")}
        for key, choices in choices_of.items():
            if getattr(self, key) not in choices:
                raise ConfigError(f"dataset.{key}={getattr(self, key)}: choose {', '.join(choices)}")
        if (self.augmentation or {}).get("mirror") and not self.mirror_allowed:
            raise ConfigError("dataset.augmentation.mirror: these captions tell left from right, which a mirror makes false")

    def take(self, name: str, records: list[Record], frames: dict[str, int], classes: ClassTable | None = None) -> None:
        """Makes the records this data set's; frames: length of each record's clip by id."""
        self.lengths = length_histogram([frames[record.id] for record in records])
        dropped = []
        if self.short == "drop":
            dropped = [r for r in records if frames[r.id] < self.min_length]
            records = [r for r in records if frames[r.id] >= self.min_length]
        if not records:
            raise DataError(f"{name}: no record is left ({len(dropped)} are shorter than dataset.min_length={self.min_length})")
        expanded = []
        for record in records:
            all_of_them = self.captions if record.split == "train" else self.eval_captions
            expanded += one_caption_each(record) if all_of_them == "all" else [record]
        super().__init__(name, expanded, self.positives, classes)
        self.exclusions.dropped += [(str(r.source), r.id, f"{frames[r.id]} frames, dataset.min_length={self.min_length}") for r in dropped]
        self.packed = None if self.pack == "none" else self._packed()

    def versions(self, record: Record) -> Sequence[str]:
        """Names of the stored clips of a record: training draws one of them, evaluation takes the first."""
        return (record.source,)

    def load(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """The views [F, T] of one of them before normalisation."""
        raise NotImplementedError

    def packed_from(self) -> Any:
        """What the stored clips depend on, as JSON can say it: digests of source files, keys that change a clip."""
        raise NotImplementedError

    def clip(self, record: Record, epoch: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """The views [F, T] of a record before normalisation; rng is None in evaluation."""
        return self.load(record, _drawn(self.versions(record), rng))

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'radar': {view: float32 [F, T]}, 'text': str, 'hard_text': [(kind, caption)] in evaluation}."""
        rng = None if epoch == EVALUATION else sample_rng(self.seed, epoch, record.id, repeat)
        if self.packed is None:
            views, _ = self.transform(self.clip(record, epoch, rng), rng)
        else:
            names = self.versions(record)
            views = self.packed(names[_drawn(names, rng)], rng)
        sample: dict[str, Any] = {"radar": views}
        if record.captions:
            choose = rng is not None and self.captions == "random"
            sample["text"] = record.captions[int(rng.integers(len(record.captions))) if choose else 0]
        if rng is None and self.hard_kinds:
            sample["hard_text"] = [(self.hard_kinds.index(kind), caption) for kind, caption in record.hard_captions]
        return sample

    def _packed(self) -> RadarPack:
        """The pack of all stored clips; several records may share one."""
        clips = {name: (record, number) for record in self.records for number, name in enumerate(self.versions(record))}
        sources = ((name, partial(self.load, *clips[name])) for name in sorted(clips))
        return RadarPack((self.pack, self.cache_dir), [sorted(clips), self.packed_from()], self.view_names, self.transform, sources)


def length_histogram(frames: Sequence[int]) -> dict[str, int]:
    """How many clips have so many frames, by ranges of 32 such as "96..127": from the shortest to the longest, empty ranges too."""
    bins = [length // _BIN for length in frames]
    return {f"{_BIN * k}..{_BIN * (k + 1) - 1}": bins.count(k) for k in range(min(bins), max(bins) + 1)} if bins else {}


def _drawn(names: Sequence[str], rng: np.random.Generator | None) -> int:
    return 0 if rng is None else int(rng.integers(len(names)))  # nothing is drawn where there is one only
