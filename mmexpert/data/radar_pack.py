"""dataset.pack: radar clips normalised once and kept in a memory-mapped file, before crop and augmentation."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.frames import ClipFrames, Layout
from mmexpert.data.pack import Pack, packed
from mmexpert.data.views import VIEW_ROWS, ViewTransform, augment, level_db, normalize_view
from mmexpert.types import ConfigError, DataError

PACKS = {"none": None, "f32": "<f4", "f16": "<f2"}
HEADROOM_DB = 20.0  # kept below the floor, so that a gain finds there what it lifts
_CLIP_BYTES = 1 << 20

Source = tuple[str, Callable[[], dict[str, np.ndarray]]]
"""Name of a stored clip, and what gives its views [F, T] before normalisation."""


class RadarPack:
    """The clips of a radar data set in a pack of rows [T, F of all views].

    f32 gives the bits of the unpacked way (with gain_db 1e-6), f16 is within 5e-4 of it, above 1 relative.
    place: (f32 | f16, cache folder).
    """

    def __init__(
        self, place: tuple[str, str], identity: Any, views: Sequence[str], transform: ViewTransform, sources: Iterable[Source]
    ) -> None:
        kind, cache_dir = place
        check(kind, transform.augmentation)
        self.transform = transform
        self.layout: Layout = tuple((view, VIEW_ROWS[view]) for view in views)
        normalize = transform.normalize
        self.limits = (0.0, 1.0) if normalize["kind"] == "db" else None
        facts = {"dtype": PACKS[kind], "views": list(views), "normalize": dict(normalize), "headroom_db": HEADROOM_DB}
        self.pack: Pack = packed(cache_dir, identity, facts, self._clips(kind, sources))

    def __call__(self, name: str, rng: np.random.Generator | None) -> ClipFrames | dict[str, np.ndarray]:
        """A stored clip as ViewTransform gives it, from the same draws; not augmented it stays as it is stored, for collate."""
        values, lengths = self.pack[name], self.transform.lengths
        keys = self.transform.augmentation if rng is not None else {}
        gain = rng.uniform(-keys["gain_db"], keys["gain_db"]) if keys.get("gain_db") else 0.0
        spare = max(0, len(values) - lengths.maximum)
        begin = spare // 2 if rng is None else int(rng.integers(spare + 1))
        values = values[begin : begin + lengths.maximum]
        if not keys:
            return ClipFrames(values, self.layout, self.limits)
        columns = np.cumsum([rows for _, rows in self.layout])[:-1]
        parts = np.split(np.ascontiguousarray(values.T, np.float32), columns)
        views = {view: self._amplified(part, gain) for (view, _), part in zip(self.layout, parts, strict=True)}
        return augment(views, keys, rng)[0]

    def _amplified(self, x: np.ndarray, gain_db: float) -> np.ndarray:
        """Stored values after a gain in dB."""
        kind, floor_db, reference = (self.transform.normalize[key] for key in ("kind", "floor_db", "reference"))
        if kind == "db":
            return np.clip(x + np.float32(gain_db / -floor_db), 0, 1)
        if not gain_db or reference == "clip":
            return x
        gain = np.float32(10 ** (gain_db / 20))
        return np.log1p(np.expm1(x) * gain) if kind == "log1p" else x * gain

    def _clips(self, kind: str, sources: Iterable[Source]) -> Iterator[tuple[str, np.ndarray]]:
        for name, load in sources:
            views = load()
            rows = [self._stored(views[view]).T for view, _ in self.layout]
            with np.errstate(over="ignore"):  # said below, with the view's name
                whole = np.concatenate(rows, axis=1).astype(PACKS[kind])
            if not np.isfinite(whole).all():
                column = int(np.argwhere(~np.isfinite(whole))[0][1])
                ends = np.cumsum([count for _, count in self.layout])
                view = self.layout[int(np.searchsorted(ends, column, side="right"))][0]
                raise DataError(
                    f"clip {name}: {view} holds a value that is no number or too large for dataset.pack={kind} (f16: 65504); mend the "
                    "clip, or set dataset.pack=none"
                )
            yield name, whole

    def _stored(self, x: np.ndarray) -> np.ndarray:
        """A view normalised, in dB with headroom below the floor and none cut off above."""
        kind, floor_db, reference = (self.transform.normalize[key] for key in ("kind", "floor_db", "reference"))
        if kind != "db":
            return normalize_view(x, kind, floor_db, reference)
        return level_db(x, floor_db - HEADROOM_DB, reference) / np.float32(-floor_db) + np.float32(1)


def check(kind: str, augmentation: dict[str, float]) -> None:
    """Raises ConfigError for a dataset.pack that there is not, or that this augmentation can not be made from."""
    if kind not in PACKS:
        raise ConfigError(f"dataset.pack={kind}: choose {', '.join(PACKS)}")
    if PACKS[kind] and augmentation.get("gain_db", 0) > HEADROOM_DB:
        raise ConfigError(
            f"dataset.pack={kind} keeps {HEADROOM_DB:g} dB below the floor: dataset.augmentation.gain_db is {augmentation['gain_db']}; "
            f"set it to {HEADROOM_DB:g} at most, or dataset.pack=none"
        )


def digest_of(paths: Iterable[Path]) -> str:
    """BLAKE2b of the bytes of files, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(_CLIP_BYTES):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()
