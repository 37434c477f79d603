"""Simulated radar clips with captions: the embedded default. Motions and radar come as objects, so that data/ knows no simulator."""

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.cache import cached_folder, content_name
from mmexpert.data.processes import core_count, in_processes
from mmexpert.data.radar_base import RadarDataset
from mmexpert.data.records import Record
from mmexpert.data.sampling import epoch_order, sample_rng
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
SPLITS = ("train", "valid", "test")
_SHARD = 100
_DEEPEST_DB = -80.0  # what the stored codes reach down to; 255 codes above it
_NO_EPOCH = 2**31  # epochs of training count from 0
_TINY = 1e-12  # keeps the logarithm of an exact zero finite
_FORMAT = 1  # part of the cache's name; raised by whoever changes what is stored


@dataclass(kw_only=True, eq=False)
class RadarSim(RadarDataset):
    """Clip i of split s depends on SeedSequence([seed, s, i]) alone: the same for any number of workers and any order.

    twins: share of clips that come in pairs differing in one attribute, 0..1. Two control experiments: shuffle_captions, training
    captions handed round among the clips; shuffle_time, every clip's units in another order. captions=all: a training item is a (clip,
    caption) pair, its record is the clip's with #k after the id. workers: auto, or processes that simulate. All codes stay in memory,
    115 kB a clip; forked loader workers share them.
    """

    train: int
    valid: int
    test: int
    twins: float
    shuffle_captions: bool
    shuffle_time: bool
    workers: Any
    radar: Any
    motion: Any

    def __post_init__(self) -> None:
        self.check_common()
        self.counts = {"train": self.train, "valid": self.valid, "test": self.test}
        if min(self.counts.values()) < 0 or not 0 <= self.twins <= 1:
            raise ConfigError(f"dataset: counts {self.counts} are 0 or more, twins={self.twins} is a share, 0..1")
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 1):
            raise ConfigError(f"dataset.workers={self.workers}: auto, or how many processes simulate, 1 or more")
        self.hard_kinds = tuple(self.motion.hard_kinds)
        identity = {
            "format": _FORMAT,
            "seed": self.seed,
            "counts": self.counts,
            "twins": self.twins,
            "radar": self.radar.identity(),
            "motion": self.motion.identity(),
        }
        self.cache = cached_folder(Path(self.cache_dir) / content_name("radar_sim", identity), self._generate)
        rows = [json.loads(line) for line in (self.cache / "records.jsonl").read_text(encoding="utf-8").splitlines()]
        self.peaks = {row["id"]: row["peaks"] for row in rows}
        records = [
            Record(
                id=row["id"],
                split=row["split"],
                group=_group(row["id"]),
                captions=tuple(row["captions"]),
                source=row["id"],
                text_key=row["key"],
                hard_captions=tuple((kind, caption) for kind, caption in row["hard_captions"]),
            )
            for row in rows
        ]
        if self.shuffle_captions:
            records = self._shuffled(records)
        self._amplitudes = 10 ** ((np.arange(256) - 255) * (-_DEEPEST_DB / 255) / 20).astype(np.float32)
        self._amplitudes[0] = 0.0
        self.take("radar_sim", records, {row["id"]: row["frames"] for row in rows})
        if self.packed is None:
            self.codes  # noqa: B018  read before workers are forked, so that they share the pages
        else:
            self.__dict__.pop("codes", None)  # packing may have read them
        if self.twins:
            self.together = _pairs(self.records)

    @cached_property
    def codes(self) -> dict[str, np.ndarray]:
        """All codes, uint8 [F, T] by clip/view."""
        return _read_shards(self.cache)

    def versions(self, record: Record) -> tuple[str]:
        """A clip each; shuffled time is drawn for each record, and records may be captions of one clip."""
        return (record.id if self.shuffle_time else record.source,)

    def packed_from(self) -> list[Any]:
        """The cache's name says what the clips follow from."""
        return [self.cache.name, [self.shuffle_time, self.unit_length, self.seed]]

    def load(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """Decoded views, linear amplitude."""
        name = record.source
        codes = {view: self.codes[f"{name}/{view}"] for view in self.view_names}
        if self.shuffle_time:
            order = self._unit_order(record)
            codes = {view: x[:, order] for view, x in codes.items()}
        return {view: self._amplitudes[x] * np.float32(self.peaks[name][view]) for view, x in codes.items()}

    def _unit_order(self, record: Record) -> np.ndarray:
        """Columns of a clip, its units of unit_length frames in an order drawn once for the clip; a last, shorter unit stays last."""
        frames = np.arange(self.codes[f"{record.source}/{self.view_names[0]}"].shape[1])
        units = len(frames) // self.unit_length
        order = sample_rng(self.seed, _NO_EPOCH, record.id, 0).permutation(units)
        whole = frames[: units * self.unit_length].reshape(units, self.unit_length)[order].ravel()
        return np.concatenate([whole, frames[len(whole) :]])

    def fingerprint_lines(self) -> list[str]:
        """Version and parameters say all: the clips follow from them."""
        return [
            self.cache.name,
            f"shuffle_captions={self.shuffle_captions}",
            f"shuffle_time={self.shuffle_time}",
            *super().fingerprint_lines(),
        ]

    def _shuffled(self, records: list[Record]) -> list[Record]:
        train = [i for i, record in enumerate(records) if record.split == "train"]
        shuffled = list(records)
        for i, j in zip(train, epoch_order(len(train), self.seed, 0), strict=True):
            giver = records[train[j]]
            shuffled[i] = replace(records[i], captions=giver.captions, text_key=giver.text_key, hard_captions=giver.hard_captions)
        return shuffled

    def _generate(self, folder: Path) -> None:
        """Writes shards of 100 clips and records.jsonl."""
        jobs = [(split, first) for split, n in self.counts.items() for first in range(0, n, _SHARD)]
        count = min(core_count() if self.workers == "auto" else self.workers, len(jobs))
        log.info("simulating %d clips in %d process%s, once: %s", sum(self.counts.values()), count, "es"[: 2 * (count > 1)], folder.parent)
        in_processes([partial(self._shards, folder, jobs[k::count]) for k in range(count)])
        parts = [folder / f"{_shard_name(*job)}.jsonl" for job in jobs]
        (folder / "records.jsonl").write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()

    def _shards(self, folder: Path, jobs: list[tuple[str, int]]) -> None:
        for split, first in jobs:
            arrays, rows = {}, []
            for i in range(first, min(first + _SHARD, self.counts[split])):
                codes, row = self._simulated(split, i)
                arrays |= {f"{row['id']}/{view}": x for view, x in codes.items()}
                rows.append(json.dumps(row, sort_keys=True) + "\n")
            np.savez_compressed(folder / f"{_shard_name(split, first)}.npz", **arrays)
            (folder / f"{_shard_name(split, first)}.jsonl").write_text("".join(rows), encoding="utf-8")

    def _simulated(self, split: str, i: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Codes [F, T] of clip i's views, and its line of records.jsonl."""
        name, motion, rng = self._clip_of(split, i)
        views = self.radar.joint_views(motion.joints, motion.fps, rng)
        row = {
            "id": name,
            "split": split,
            "frames": views["range_time"].shape[1],
            "peaks": {view: float(x.max()) for view, x in views.items()},
            "captions": motion.captions,
            "hard_captions": motion.hard_captions,
            "key": motion.text_key,
            "parameters": motion.parameters,
        }
        return {view: _codes(x) for view, x in views.items()}, row

    def _clip_of(self, split: str, i: int) -> tuple[str, Any, np.random.Generator]:
        """Name, motion and generator of clip i; a pair of twins is drawn from its first clip's seed."""
        number = SPLITS.index(split)
        pair = i // 2
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number, i])))
        twin_rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number, pair, 1])))
        if twin_rng.random() < self.twins:
            return f"{split}-{pair:05d}{'ab'[i % 2]}", self.motion.twin(twin_rng)[i % 2], rng
        return f"{split}-{i:05d}", self.motion(rng), rng


def _shard_name(split: str, first: int) -> str:
    return f"{split}-{first // _SHARD:04d}"


def _codes(x: np.ndarray) -> np.ndarray:
    """Amplitudes -> uint8: 255 at the maximum, 0 at -80 dB and below."""
    decibel = 20 * np.log10(np.maximum(x / max(float(x.max()), _TINY), _TINY))
    return np.rint(np.clip(1 - decibel / _DEEPEST_DB, 0, 1) * 255).astype(np.uint8)


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    """All codes in memory, uint8 [F, T] by clip/view: loader workers share the pages."""
    codes: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as shard:
            codes.update({name: shard[name] for name in shard.files})
    return codes


def _group(name: str) -> str:
    """Twins have one; no single clip has it: clip 3 and pair 3 are not related."""
    return f"{name[:-1]}ab" if name[-1] in "ab" else name


def _pairs(records: list[Record]) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record.id)
    return [tuple(ids) for ids in groups.values()]
