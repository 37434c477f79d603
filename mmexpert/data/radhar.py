"""RadHAR: windows of radar point clouds of five activities, with class prompts as texts (nesl/RadHAR, BSD-3; mmNets 2019)."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.cache import cached_folder, content_name, file_digest
from mmexpert.data.radar_base import RadarDataset
from mmexpert.data.radhar_text import Session, read_session
from mmexpert.data.records import Record
from mmexpert.types import ClassTable, ConfigError, DataError

_RANGE_BIN = 0.04357697  # m
_STILL = 8  # Doppler bin of what does not move
_PARSER_VERSION = 1
_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(kw_only=True, eq=False)
class RadHar(RadarDataset):
    """root: <split>/<class>/*.txt or .txt.gz. class_texts: prompts by class, or a JSON file of them.

    moving_only: without the points of Doppler bin 8 (93 % of all: they show room and person). near_cut: m. static_dropout: share up to
    which a training window loses static points, where they are kept. window, stride: frames. group: session | family | day.
    """

    root: str
    class_texts: Any
    window: int
    stride: int
    group: str
    moving_only: bool
    near_cut: float
    static_dropout: float
    cache_dir: str

    mirror_allowed = True  # the five classes are symmetric, and their prompts tell no side

    def __post_init__(self) -> None:
        root = Path(self.root)
        files = self._files(root)
        names = sorted({path.parent.name for _, path in files})
        classes = ClassTable(tuple(names), self._texts(names), tuple(0 for _ in names))
        self.sessions: dict[str, Session] = {}
        records, dropped = [], []
        for split, path in files:
            session = self._session(path)
            name = f"{path.parent.name}/{_stem(path)}"
            source = f"{split}/{name}"
            self.sessions[source] = session
            dropped += [(str(path), f"record {number}", reason) for number, reason in session.dropped]
            for start in range(0, session.frames - self.window + 1, self.stride):
                records.append(
                    Record(
                        id=f"{name}/{start // self.stride:04d}",
                        split=split,
                        group=self._group(name, path, session),
                        label=names.index(path.parent.name),
                        source=(source, start),
                        size=path.stat().st_size,
                    )
                )
        self.take("radhar", records, {record.id: self.window for record in records}, classes)
        self.exclusions.dropped += dropped
        self.prompts = [len(texts) for texts in classes.texts]

    def clip(self, record: Record, epoch: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Point weights by row and frame [F, window]."""
        source, start = record.source
        points = self.sessions[source].points
        first, last = np.searchsorted(points[:, 0], (start, start + self.window))
        points = points[first:last]
        points = points[points[:, 1] >= self.near_cut]
        still = points[:, 3] == _STILL
        if self.moving_only:
            points = points[~still]
        elif self.static_dropout and rng is not None:
            share = rng.uniform(0, self.static_dropout)
            points = points[~still | (rng.random(len(points)) >= share)]
        views = point_views(points, start, self.window)
        return {view: views[view] for view in self.view_names}

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'radar', 'label', 'text_index': row of the prompt table, one of the class's prompts per window and epoch}."""
        sample = super().sample(record, epoch, repeat)
        first = sum(self.prompts[: record.label])
        pick = 0
        if epoch >= 0:
            from mmexpert.data.sampling import sample_rng

            pick = int(sample_rng(self.seed, epoch, f"prompt {record.id}", repeat).integers(self.prompts[record.label]))
        return sample | {"label": record.label, "text_index": first + pick}

    def _files(self, root: Path) -> list[tuple[str, Path]]:
        """(split, file), sorted. Raises DataError where the layout is not <split>/<class>/*.txt."""
        if not root.is_dir():
            raise DataError(f"dataset.root={root}: there is no such folder; it should hold Train/<class>/*.txt or *.txt.gz")
        found = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            split = _SPLITS.get(folder.name.lower())
            files = sorted([*folder.glob("*/*.txt"), *folder.glob("*/*.txt.gz")])
            if files and split is None:
                raise DataError(f"{folder}: the split {folder.name!r} is unknown; name it one of Train, Valid, Test")
            found += [(split, path) for path in files]
        if not found:
            raise DataError(f"dataset.root={root}: no file matches <split>/<class>/*.txt or *.txt.gz")
        stems = {}
        for split, path in found:
            key = f"{path.parent.name}/{_stem(path)}"
            if key in stems:
                raise DataError(f"{path} and {stems[key]} are one session ({key}): keep one of them")
            stems[key] = path
        return found

    def _texts(self, names: list[str]) -> tuple[tuple[str, ...], ...]:
        texts = self.class_texts
        if isinstance(texts, str):
            try:
                texts = json.loads(Path(texts).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"dataset.class_texts={self.class_texts}: {error}") from error
        if set(texts) != set(names):
            raise DataError(
                f"dataset.class_texts: classes without a text {sorted(set(names) - set(texts))}, texts without a class {sorted(set(texts) - set(names))}"
            )
        lists = {name: [value] if isinstance(value, str) else list(value) for name, value in texts.items()}
        empty = [name for name, value in lists.items() if not value or any(not text.strip() for text in value)]
        if empty:
            raise DataError(f"dataset.class_texts.{empty[0]}: an empty text; give each class one or more sentences")
        return tuple(tuple(lists[name]) for name in names)

    def _session(self, path: Path) -> Session:
        """The parsed file, from the cache where it was parsed before: parsing takes half a second."""

        def parse(folder: Path) -> None:
            session = read_session(path)
            np.save(folder / "points.npy", session.points)
            facts = {name: value for name, value in asdict(session).items() if name != "points"}
            (folder / "session.json").write_text(json.dumps(facts), encoding="utf-8")

        name = content_name("radhar", {"version": _PARSER_VERSION, "sha256": file_digest(path)})
        folder = cached_folder(Path(self.cache_dir) / name, parse)
        facts = json.loads((folder / "session.json").read_text(encoding="utf-8"))
        dropped = tuple((int(number), reason) for number, reason in facts["dropped"])
        return Session(np.load(folder / "points.npy", allow_pickle=False), facts["frames"], facts["day"], dropped)

    def _group(self, name: str, path: Path, session: Session) -> str:
        if self.group == "session":
            return name
        if self.group == "family":
            return f"{path.parent.name}/{re.sub(r'_?[0-9]+$', '', _stem(path))}"
        if self.group == "day":
            return session.day
        raise ConfigError(f"dataset.group={self.group}: choose session, family or day")


def point_views(points: np.ndarray, start: int, frames: int) -> dict[str, np.ndarray]:
    """points [n, 6] of radhar_text.Session -> {range_time [256, T], doppler_time [128, T], azimuth_time [128, T]} of point weights.

    weight = clip((intensity - 15) / 20, 0, 1.2); a Doppler bin is spread over 8 of the 128 rows; right = above row 64.
    """
    column = points[:, 0].astype(np.int64) - start
    weight = np.clip((points[:, 5] - 15) / 20, 0, 1.2)
    views = {"range_time": np.zeros((256, frames)), "doppler_time": np.zeros((128, frames)), "azimuth_time": np.zeros((128, frames))}
    np.add.at(views["range_time"], (np.minimum(np.rint(points[:, 1] / _RANGE_BIN).astype(np.int64), 255), column), weight)
    for k in range(-4, 4):
        np.add.at(views["doppler_time"], (8 * points[:, 3].astype(np.int64) + 4 + k, column), weight * (1 - abs(k + 0.5) / 5))
    row = np.floor((np.sin(np.radians(points[:, 4])) + 1) * 64).astype(np.int64)
    np.add.at(views["azimuth_time"], (np.clip(row, 0, 127), column), weight)
    return views


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".txt")
