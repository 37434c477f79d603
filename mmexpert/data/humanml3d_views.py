"""Motions seen by a simulated radar from several places: computed once, kept as 8-bit codes, one file a clip."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.humanml3d_text import JOINT_FPS
from mmexpert.data.processes import core_count, in_processes
from mmexpert.data.sampling import sample_rng

DISTANCE_M = 3.0  # evaluation: the radar 1 m high, so far before the first root position
_NEAREST_M, _FARTHEST_M = 2.0, 5.0  # training
_HEADING = np.radians(30)
_DEEPEST_DB = -80.0  # what the codes reach down to; 255 steps above it
CLIP_FORMAT = 1  # part of the cache's name; raised by whoever changes what is stored


@dataclass(frozen=True)
class MotionClip:
    """Joint frames [begin, end) of a joints file, seen from `placements` places: number 0 is evaluation's, the others are drawn."""

    id: str
    path: str
    begin: int
    end: int
    placements: int


def place(joints: np.ndarray, distance: float, heading: float) -> np.ndarray:
    """joints [n, 22, 3] m, y up -> turned by heading (rad) about the first root position, which comes to lie `distance` m before a radar
    at x = z = 0 that looks to -z. Heading 0 leaves who faces +z facing the radar."""
    root = joints[0, 0] * (1, 0, 1)
    x, y, z = np.moveaxis(joints - root, -1, 0)
    turned = np.stack([x * np.cos(heading) + z * np.sin(heading), y, z * np.cos(heading) - x * np.sin(heading)], -1)
    return turned - np.array([0, 0, distance])


def simulate(clip: MotionClip, placement: int, radar: Any, seed: int) -> dict[str, np.ndarray]:
    """Views [F, T] of a clip from a placement, linear amplitude: a function of (seed, placement, id), of no order."""
    rng = sample_rng(seed, placement, clip.id, 0)
    joints = np.load(clip.path, allow_pickle=False)[clip.begin : clip.end].astype(np.float64)
    if placement:
        joints = place(joints, rng.uniform(_NEAREST_M, _FARTHEST_M), rng.uniform(-_HEADING, _HEADING))
    else:
        joints = place(joints, DISTANCE_M, 0.0)
    return radar.joint_views(joints, JOINT_FPS, rng)


def encode(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Amplitudes -> uint8 codes of -80..0 dB below their maximum, and that maximum."""
    peak = float(x.max())
    if peak <= 0:
        return np.zeros(x.shape, np.uint8), 0.0
    decibel = 20 * np.log10(np.maximum(x / peak, 1e-12))
    return np.rint(np.clip(1 - decibel / _DEEPEST_DB, 0, 1) * 255).astype(np.uint8), peak


def decode(codes: np.ndarray, peak: float) -> np.ndarray:
    """Amplitudes, float32; code 0 is 0."""
    amplitudes = 10 ** ((np.arange(256) - 255) * (-_DEEPEST_DB / 255) / 20).astype(np.float32)
    amplitudes[0] = 0.0
    return amplitudes[codes] * np.float32(peak)


@dataclass(frozen=True)
class ClipSimulation:
    """Fills a cache folder: NNNNNN.npz with `placement/view` codes for each clip, and clips.jsonl with peaks and frames."""

    clips: Sequence[MotionClip]
    radar: Any
    seed: int
    workers: Any  # processes, or auto

    def __call__(self, folder: Path) -> None:
        """Simulates all clips into the folder."""
        count = min(core_count() if self.workers == "auto" else self.workers, len(self.clips))
        in_processes([partial(self._share, folder, k, count) for k in range(count)])
        parts = [(folder / f"rows-{k}.jsonl") for k in range(count)]
        rows = sorted((json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()), key=_number)
        (folder / "clips.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
        for part in parts:
            part.unlink()

    def _share(self, folder: Path, k: int, count: int) -> None:
        """Every count-th clip from clip k on."""
        rows = [self._clip(folder, number) for number in range(k, len(self.clips), count)]
        (folder / f"rows-{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _clip(self, folder: Path, number: int) -> dict[str, Any]:
        clip = self.clips[number]
        arrays, peaks, frames = {}, [], 0
        for placement in range(clip.placements):
            peaks.append({})
            for view, x in simulate(clip, placement, self.radar, self.seed).items():
                arrays[f"{placement}/{view}"], peaks[-1][view] = encode(x)
                frames = x.shape[1]
        np.savez_compressed(folder / f"{number:06d}.npz", **arrays)
        return {"id": clip.id, "number": number, "frames": frames, "peaks": peaks}


def _number(row: dict[str, Any]) -> int:
    return row["number"]


class StoredClips:
    """The clips of a cache folder, read when asked for: HumanML3D does not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
        self.rows = {row["id"]: row for row in rows}

    def frames(self, clip: str) -> int:
        """T of a clip's views."""
        return self.rows[clip]["frames"]

    def placements(self, clip: str) -> int:
        """How many places a clip is seen from, evaluation's included."""
        return len(self.rows[clip]["peaks"])

    def views(self, clip: str, placement: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Linear amplitude [F, T] of the named views."""
        row = self.rows[clip]
        with np.load(self.folder / f"{row['number']:06d}.npz", allow_pickle=False) as codes:
            return {name: decode(codes[f"{placement}/{name}"], row["peaks"][placement][name]) for name in names}


def clip_identity(clips: Sequence[MotionClip], digests: dict[str, str], radar: Any, seed: int) -> dict[str, Any]:
    """What the stored clips depend on; digests: sha256 of each joints file."""
    rows = [{**asdict(clip), "path": digests[clip.path]} for clip in clips]
    return {"format": CLIP_FORMAT, "seed": seed, "radar": radar.identity(), "clips": rows}
