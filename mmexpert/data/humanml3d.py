"""HumanML3D (Guo et al., CVPR 2022): joints and captions of human motions, seen by a simulated radar.

The radar comes as an object, so that data/ knows no simulator. Any set in the same layout will do: joints/<id>.npy, texts/<id>.txt.
"""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.arrays import ArrayFile
from mmexpert.data.cache import cached_folder, content_name, file_digest
from mmexpert.data.findings import DataFault, FaultList, Finding, check_groups, deep_check
from mmexpert.data.humanml3d_text import JOINT_FPS, CaptionLine, motion_group, read_captions, read_split_lists
from mmexpert.data.humanml3d_views import ClipSimulation, MotionClip, StoredClips, clip_identity
from mmexpert.data.paths import inside
from mmexpert.data.radar_base import RadarDataset
from mmexpert.data.records import Record
from mmexpert.data.splits import hash_split
from mmexpert.types import ConfigError, DataError

log = logging.getLogger(__name__)
_FRAME_S = 0.02  # of the simulated radar
_LEAST_FRAMES = 10  # joint frames: 0.5 s


@dataclass(kw_only=True, eq=False)
class HumanML3D(RadarDataset):
    """A record is a motion, or a sub-clip of one, with the captions that tell of exactly that; a mirrored take is in its motion's group.

    root: holds joints_dir, texts_dir and the split lists, where there are any. split: {valid, test, seed} shares by hash of the group
    where a list is missing. mirrors: whether M ids take part. long: crop | windows (consecutive, none longer than max_length).
    placements: from how many random places training sees a motion, beside evaluation's. radar: joint_views(joints, fps, rng),
    identity().
    """

    root: str
    joints_dir: str
    texts_dir: str
    split: dict[str, Any]
    mirrors: bool
    long: str
    placements: int
    on_error: str
    allow_outside: bool
    workers: Any
    radar: Any

    def __post_init__(self) -> None:
        self.check_common()
        if self.long not in ("crop", "windows"):
            raise ConfigError(f"dataset.long={self.long}: choose crop or windows")
        if self.placements < 1:
            raise ConfigError(f"dataset.placements={self.placements}: at least one place from which training sees a motion")
        if set(self.split) != {"valid", "test", "seed"}:
            raise ConfigError(f"dataset.split needs exactly valid, test and seed, it has {sorted(self.split)}")
        hash_split("", **self.split)  # whose shares are used only where root has no lists
        if self.joints_dir == "auto":  # HumanML3D's own name, else the plain one
            self.joints_dir = next((name for name in ("new_joints", "joints") if (Path(self.root) / name).is_dir()), "new_joints")
        faults = FaultList("humanml3d", self.on_error)
        self.digests: dict[str, str] = {}
        clips: list[MotionClip] = []
        records: list[Record] = []
        for name, split in sorted(self._splits(faults).items()):
            with faults.catching():
                for record, clip in self._motion(name, split, faults):
                    records.append(record)
                    clips.append(clip)
        faults.settle()
        check_groups("humanml3d", records)
        if not records:
            raise DataError(f"dataset.root={self.root}: no motion is left ({len(faults.faults)} have faults)")
        name = content_name("humanml3d", clip_identity(clips, self.digests, self.radar, self.seed))
        log.info("%d clips from up to %d places in %s", len(clips), self.placements + 1, name)
        simulation = ClipSimulation(clips, self.radar, self.seed, self.workers)
        self.clips = StoredClips(cached_folder(Path(self.cache_dir) / name, simulation))
        self.take("humanml3d", records, {record.id: self.clips.frames(record.id) for record in records})
        faults.hand_over(self)

    def versions(self, record: Record) -> tuple[str, ...]:
        """A clip from the fixed place, which evaluation takes, and one from each of the random ones."""
        return tuple(f"{record.source}/{placement}" for placement in range(self.clips.placements(record.source)))

    def packed_from(self) -> str:
        """The cache's name says what the clips follow from."""
        return self.clips.folder.name

    def load(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """Linear amplitude from a place."""
        return self.clips.views(record.source, number, self.view_names)

    def deep_check(self) -> list[Finding]:
        """Every clip loaded once; the joints have all been read by the constructor."""
        return deep_check(self)

    def fingerprint_lines(self) -> list[str]:
        """The cache's name says what the views follow from."""
        return [self.clips.folder.name, *super().fingerprint_lines()]

    def _splits(self, faults: FaultList) -> dict[str, str]:
        """Split of every id: of the lists, else of the hash of its group."""
        root = Path(self.root)
        joints, texts = root / self.joints_dir, root / self.texts_dir
        for folder, key in ((root, "root"), (joints, "joints_dir"), (texts, "texts_dir")):
            if not folder.is_dir():
                raise DataFault(f"dataset.{key}: there is no folder {folder}; name the one of your data set", "missing_file", str(folder))
        shares = self.split
        splits = read_split_lists(root, faults)
        if not splits:
            stems = {path.stem for path in [*joints.glob("*.npy"), *texts.glob("*.txt")]}
            splits = {name: hash_split(motion_group(name), **shares) for name in stems}
        elif "valid" not in splits.values():  # lists without a valid part: it is cut out of train
            for name, split in splits.items():
                if split == "train":
                    splits[name] = hash_split(motion_group(name), shares["valid"], 0.0, shares["seed"])
        if not splits:
            raise DataError(f"{joints}: there is no motion; it should hold <id>.npy, float32 [T, 22, 3]")
        return {name: split for name, split in splits.items() if self.mirrors or not re.match(r"M\d", name)}

    def _motion(self, name: str, split: str, faults: FaultList) -> list[tuple[Record, MotionClip]]:
        """The records of one id with what is to be simulated for each."""
        root = Path(self.root)
        joints_path = inside(root / self.joints_dir / f"{name}.npy", (root,), self.allow_outside, name)
        texts_path = inside(root / self.texts_dir / f"{name}.txt", (root,), self.allow_outside, name)
        frames = self._joint_frames(ArrayFile(joints_path, "", name))
        lines = read_captions(texts_path, frames, faults)
        parts: dict[tuple[int, int], list[CaptionLine]] = {}
        for line in lines:
            parts.setdefault((line.begin, line.end), []).append(line)
        found = []
        for (begin, end), told in parts.items():
            part = name if (begin, end) == (0, frames) else f"{name}@{begin}-{end}"
            spans = self._windows(begin, end)
            for number, (first, last) in enumerate(spans):
                clip_id = part if len(spans) == 1 else f"{part}/w{number}"
                record = Record(
                    id=clip_id,
                    split=split,
                    group=motion_group(name),
                    captions=tuple(dict.fromkeys(line.caption for line in told)),
                    source=clip_id,
                    size=joints_path.stat().st_size + texts_path.stat().st_size,
                )
                # folds train on what the lists call valid; the test part never trains
                places = 1 if split == "test" else 1 + self.placements
                found.append((record, MotionClip(clip_id, str(joints_path), first, last, places)))
        return found

    def _joint_frames(self, file: ArrayFile) -> int:
        """Length of a joints file, all of it checked. Raises DataFault."""
        shape, dtype = file.header()
        if len(shape) != 3 or shape[1:] != (22, 3):
            hint = "; 263 columns are HumanML3D's new_joint_vecs: name new_joints" if shape[1:] == (263,) else ""
            raise file.fault("wrong_shape", f"is {list(shape)}, expected [T, 22, 3]{hint}")
        if dtype.kind != "f":
            raise file.fault("wrong_dtype", f"has dtype {dtype}, expected float32 in metres")
        if shape[0] < _LEAST_FRAMES:
            code = "too_short" if shape[0] else "zero_length"
            raise file.fault(code, f"has {shape[0]} frames of 1/20 s, at least {_LEAST_FRAMES} are needed; remove the motion")
        joints = file.array()
        if not np.isfinite(joints).all():
            frame = int(np.argwhere(~np.isfinite(joints))[0][0])
            raise file.fault("non_finite", f"holds NaN or infinity at frame {frame}; mend or remove the motion")
        self.digests[str(file.path)] = file_digest(file.path)
        return shape[0]

    def _windows(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Joint frames [begin, end) as one span, or as equally long consecutive ones that share their border frames."""
        longest = math.floor(self.max_length * _FRAME_S * JOINT_FPS + 1e-6)  # intervals between joint frames
        intervals = end - begin - 1
        if self.long == "crop" or intervals <= longest:
            return [(begin, end)]
        borders = np.rint(np.linspace(begin, begin + intervals, math.ceil(intervals / longest) + 1)).astype(int)
        return [(int(first), int(last) + 1) for first, last in zip(borders, borders[1:], strict=False)]
