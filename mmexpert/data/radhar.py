"""RadHAR: windows of radar point clouds of five activities, with class prompts as texts (nesl/RadHAR, BSD-3; mmNets 2019)."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.cache import cached_folder, content_name, file_digest
from mmexpert.data.class_texts import read_class_texts
from mmexpert.data.findings import DataFault, FaultList, Finding, deep_check
from mmexpert.data.paths import inside
from mmexpert.data.radar_base import RadarDataset
from mmexpert.data.radhar_text import Session, read_session
from mmexpert.data.records import Record
from mmexpert.data.sampling import EVALUATION, sample_rng
from mmexpert.types import ClassTable, ConfigError, DataError

_RANGE_BIN = 0.04357697  # m
_STILL = 8  # Doppler bin of what does not move
_PARSER_VERSION = 2  # part of every cached session's name; raised by whoever changes what the reader gives
_SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "test": "test"}


@dataclass(kw_only=True, eq=False)
class RadHar(RadarDataset):
    """root: <split>/<class>/*.txt or .txt.gz. class_texts: prompts by class, or a JSON file of them.

    moving_only: without the points of Doppler bin 8 (93 % of all: they show room and person). near_cut: m. static_dropout: share up to
    which a training window loses static points, where they are kept. window, stride: frames. group: session | family | day.
    All sessions are parsed by the constructor (from the cache where they were before) and kept as points; windows are cut when drawn.
    """

    root: str
    class_texts: Any
    window: int
    stride: int
    group: str
    moving_only: bool
    near_cut: float
    static_dropout: float
    on_error: str
    allow_outside: bool

    mirror_allowed = True  # the five classes are symmetric, and their prompts tell no side

    def __post_init__(self) -> None:
        self._check_keys()
        self.check_common()
        faults = FaultList("radhar", self.on_error)
        files = self._files(Path(self.root), faults)
        texts = self._texts(sorted({path.parent.name for _, path in files}), faults)
        self.sessions: dict[str, Session] = {}
        self.digests: dict[str, str] = {}
        records: list[Record] = []
        digests: dict[str, Path] = {}
        for split, path in files:
            with faults.catching():
                self.digests[_session_name(path)] = digest = file_digest(path)
                twin = digests.setdefault(digest, path)
                if twin != path:  # two groups that hold the same seconds would straddle every fold unseen
                    raise DataFault(f"{path} has the bytes of {twin}: keep one of them", "duplicate_content", str(path))
                records += self._windows(split, path, list(texts), faults)
        faults.settle()
        labels = [record.label for record in records if record.split == "train"]
        classes = ClassTable(tuple(texts), tuple(texts.values()), tuple(labels.count(k) for k in range(len(texts))))
        self.take("radhar", records, {record.id: record.source[2] for record in records}, classes)
        faults.hand_over(self)

    def versions(self, record: Record) -> tuple[str]:
        """A window each."""
        return (record.id,)

    def packed_from(self) -> list[Any]:
        """The sessions' bytes, how they are read, and what of them a window shows."""
        return [_PARSER_VERSION, self.digests, [self.window, self.stride, self.moving_only, self.near_cut]]

    def load(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """Point weights by row and frame [F, window], without static_dropout."""
        return self.clip(record, EVALUATION, None)

    def clip(self, record: Record, epoch: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Point weights by row and frame [F, window]."""
        name, start, frames = record.source
        points = self.sessions[name].points
        first, last = np.searchsorted(points[:, 0], (start, start + frames))
        points = points[first:last]
        points = points[points[:, 1] >= self.near_cut]
        still = points[:, 3] == _STILL
        if self.moving_only:
            points = points[~still]
        elif self.static_dropout and rng is not None:
            share = rng.uniform(0, self.static_dropout)
            points = points[~still | (rng.random(len(points)) >= share)]
        views = point_views(points, start, frames)
        return {view: views[view] for view in self.view_names}

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'radar', 'label', 'text_index': row of the prompt table}: one of the class's prompts per window and epoch, else its first."""
        pick = 0
        if epoch != EVALUATION and self.captions == "random":  # a stream of its own: prompts do not depend on augmentation
            prompts = len(self.classes.texts[record.label])
            pick = int(sample_rng(self.seed, epoch, f"prompt {record.id}", repeat).integers(prompts))
        first = sum(len(prompts) for prompts in self.classes.texts[: record.label])  # a run may have merged classes since
        return super().sample(record, epoch, repeat) | {"label": record.label, "text_index": first + pick}

    def deep_check(self) -> list[Finding]:
        """Every window loaded once."""
        return deep_check(self)

    def fingerprint_lines(self) -> list[str]:
        """The records, after the prompts of each class."""
        prompts = [f"{name}\t{'|'.join(texts)}" for name, texts in zip(self.classes.names, self.classes.texts, strict=True)]
        return [f"window={self.window} stride={self.stride}", *prompts, *super().fingerprint_lines()]

    def _check_keys(self) -> None:
        if self.group not in ("session", "family", "day"):
            raise ConfigError(f"dataset.group={self.group}: choose session, family or day")
        if self.window < 1 or self.stride < 1:
            raise ConfigError(f"dataset.window={self.window} and dataset.stride={self.stride} are frames, at least 1")
        if self.near_cut < 0 or not 0 <= self.static_dropout <= 1:
            raise ConfigError(f"dataset.near_cut={self.near_cut} is in m, dataset.static_dropout={self.static_dropout} a share, 0..1")
        if self.pack != "none" and self.static_dropout and not self.moving_only:
            raise ConfigError("dataset.static_dropout draws among a window's points, which a pack does not hold: set dataset.pack=none")
        if "all" in (self.captions, self.eval_captions):
            raise ConfigError("dataset.captions: RadHAR's windows have class prompts, no captions of their own; choose random or first")

    def _files(self, root: Path, faults: FaultList) -> list[tuple[str, Path]]:
        """(split, file), sorted. Raises DataError where the layout is not <split>/<class>/*.txt."""
        if not root.is_dir():
            raise DataError(f"dataset.root={root}: there is no such folder; it should hold Train/<class>/*.txt or *.txt.gz")
        found: list[tuple[str, Path]] = []
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            split = _SPLITS.get(folder.name.lower())
            files = sorted([*folder.glob("*/*.txt"), *folder.glob("*/*.txt.gz")])
            if files and split is None:
                raise DataError(f"{folder}: the split {folder.name!r} is unknown; name it Train, Valid or Test")
            for path in files:
                with faults.catching():
                    found.append((split, inside(path, (root,), self.allow_outside, _session_name(path))))
        if not found and not faults.faults:
            raise DataError(f"dataset.root={root}: no file matches <split>/<class>/*.txt or *.txt.gz")
        stems: dict[str, Path] = {}
        for _, path in found:
            twin = stems.setdefault(_session_name(path), path)
            if twin != path:
                raise DataFault(f"{path} and {twin} are one session by name: keep or rename one of them", "duplicate_id", str(path))
        return found

    def _texts(self, folders: list[str], faults: FaultList) -> dict[str, tuple[str, ...]]:
        """Prompts by class, of the classes that have a folder, sorted by name."""
        texts = self.class_texts
        if isinstance(texts, str):
            texts = read_class_texts(texts, Path(self.root))[0] or {}
        lists = {name: (value,) if isinstance(value, str) else tuple(value or ()) for name, value in texts.items()}
        for name in folders:
            if name not in lists:
                raise DataFault(
                    f"dataset.root={self.root}: the class {name!r} has no text (there are {', '.join(sorted(lists))}); add it to "
                    "dataset.class_texts, or remove its folder",
                    "class_without_text",
                    record=name,
                )
            if not lists[name] or any(not str(text).strip() for text in lists[name]):
                message = f"dataset.class_texts.{name}: an empty text; give the class one or more sentences"
                raise DataFault(message, "empty_caption", record=name)
        unused = sorted(set(lists) - set(folders))
        if unused:
            faults.warn("unknown_class", f"dataset.root={self.root}: no folder of the class {', '.join(unused)}; it is left out")
        return {name: lists[name] for name in folders}

    def _windows(self, split: str, path: Path, classes: list[str], faults: FaultList) -> list[Record]:
        """The records of one file; a session shorter than a window is one window of what there is."""
        name, session = _session_name(path), self._session(path)
        faults.dropped += [(str(path), f"record {number}", reason) for number, reason in session.dropped]
        if session.dropped:
            number, reason = session.dropped[0]
            message = f"{path}: {len(session.dropped)} corrupt points are left out, the first is record {number}: {reason}"
            faults.warn("undecodable", message, str(path), f"record {number}")
        self.sessions[name] = session
        groups = {"session": name, "family": re.sub(r"_?[0-9]+$", "", name), "day": session.day}
        last = max(0, session.frames - self.window)
        return [
            Record(
                id=f"{name}/{start // self.stride:04d}",
                split=split,
                group=groups[self.group],
                label=classes.index(path.parent.name),
                source=(name, start, min(self.window, session.frames)),
                size=path.stat().st_size,
            )
            for start in range(0, last + 1, self.stride)
        ]

    def _session(self, path: Path) -> Session:
        """The parsed file, from the cache where it was parsed before."""

        def parse(folder: Path) -> None:
            """The points, and beside them what else the session says."""
            session = read_session(path)
            np.save(folder / "points.npy", session.points)
            facts = {name: value for name, value in asdict(session).items() if name != "points"}
            (folder / "session.json").write_text(json.dumps(facts), encoding="utf-8")

        name = content_name("session", {"version": _PARSER_VERSION, "sha256": file_digest(path)})
        folder = cached_folder(Path(self.cache_dir) / "radhar" / name, parse)
        facts = json.loads((folder / "session.json").read_text(encoding="utf-8"))
        dropped = tuple((int(number), reason) for number, reason in facts["dropped"])
        return Session(np.load(folder / "points.npy", allow_pickle=False), facts["frames"], facts["day"], dropped)


def point_views(points: np.ndarray, start: int, frames: int) -> dict[str, np.ndarray]:
    """points [n, 6] of radhar_text.Session -> {range_time [256, T], doppler_time [128, T], azimuth_time [128, T]} of point weights.

    weight = clip((intensity - 15) / 20, 0, 1.2); a Doppler bin is spread over 8 of the 128 rows; right = above row 64.
    """
    column = points[:, 0].astype(np.int64) - start
    weight = np.clip((points[:, 5] - 15) / 20, 0, 1.2)
    views = {"range_time": np.zeros((256, frames)), "doppler_time": np.zeros((128, frames)), "azimuth_time": np.zeros((128, frames))}
    rows = np.minimum(np.rint(points[:, 1] / _RANGE_BIN).astype(np.int64), 255)  # 11.155 m would be row 256
    np.add.at(views["range_time"], (rows, column), weight)
    for k in range(-4, 4):
        np.add.at(views["doppler_time"], (8 * points[:, 3].astype(np.int64) + 4 + k, column), weight * (1 - abs(k + 0.5) / 5))
    rows = np.floor((np.sin(np.radians(points[:, 4])) + 1) * 64).astype(np.int64)
    np.add.at(views["azimuth_time"], (np.clip(rows, 0, 127), column), weight)
    return views


def _session_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.gz').removesuffix('.txt')}"
