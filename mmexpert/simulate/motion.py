"""Random motions before the radar, and what they are called: joints, description and captions from the same parameters."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from mmexpert.simulate.captions import HARD_KINDS, Description, Told, Wording, caption, hard_captions
from mmexpert.simulate.kinematics import FPS, Act, draw_act, perform
from mmexpert.simulate.radar import FRONT
from mmexpert.simulate.skeleton import Angles, pose
from mmexpert.types import ConfigError

GENERATOR_VERSION = 1  # part of every cache's name; raised by whoever changes a draw, a kinematic number or a word
FRAMES = (96, 496)
DISTANCE = (1.5, 7.5)  # m from the radar, of the whole path
_FASTEST = 11.9  # m/s of a joint: beyond it nobody moves, and the Doppler has wrapped twice
_TOLD_FROM = 0.3  # m: smaller displacements are not told
_OTHER = {"left": "right", "right": "left", "slow": "fast", "fast": "slow"}


@dataclass(frozen=True)
class Motion:
    """joints [T + 1, 22, 3] float32 m at fps before the radar of simulate.radar.FRONT, and its texts."""

    joints: np.ndarray
    fps: int
    parameters: dict[str, object]
    captions: tuple[str, ...]
    hard_captions: tuple[tuple[str, str], ...]  # (kind, captions[0] with that attribute changed)
    text_key: str


@dataclass(frozen=True)
class Request:
    """What is asked for, before nuisance is drawn."""

    facing: str
    acts: tuple[Act, ...]


class MotionGenerator:
    """segments: [fewest, most] of a clip, 1..2. n_captions: wordings a clip."""

    hard_kinds = HARD_KINDS

    def __init__(self, segments: list[int], n_captions: int) -> None:
        if len(segments) != 2 or not 1 <= segments[0] <= segments[1] <= 2:
            raise ConfigError(f"dataset.motion.segments={segments}: [fewest, most], each 1 or 2")
        if n_captions < 1:
            raise ConfigError(f"dataset.motion.n_captions={n_captions}: at least 1")
        self.segments, self.n_captions = tuple(segments), n_captions

    def identity(self) -> dict[str, object]:
        """What the motions depend on, for a cache's name."""
        return {"version": GENERATOR_VERSION, "segments": list(self.segments), "n_captions": self.n_captions}

    def __call__(self, rng: np.random.Generator) -> Motion:
        """A random motion; drawn again where it is too short, too long or leaves the radar's field."""
        while True:
            if (motion := self.try_to_make(self._request(rng), rng)) is not None:
                return motion

    def twin(self, rng: np.random.Generator) -> tuple[Motion, Motion]:
        """Two motions that differ in one asked-for attribute; nuisance (body, place, timing) is drawn anew."""
        while True:
            request = self._request(rng)
            kinds = [kind for kind in HARD_KINDS if changed_request(request, kind, rng) is not None]
            other = changed_request(request, kinds[int(rng.integers(len(kinds)))], rng)
            pair = self.try_to_make(request, rng), self.try_to_make(other, rng)
            if pair[0] is not None and pair[1] is not None and pair[0].text_key != pair[1].text_key:
                return pair

    def try_to_make(self, request: Request, rng: np.random.Generator) -> Motion | None:
        """The requested motion with random nuisance, or None where it does not fit."""
        angles, borders = _joined([perform(act, rng) for act in request.acts])
        frames = len(angles.trunk) - 1
        if not FRAMES[0] <= frames <= FRAMES[1]:
            return None
        angles.heading += (0.0 if request.facing == "toward" else np.pi) + rng.normal(0, 0.2)
        angles.path = _rotated(angles, rng.normal(0, 0.3))
        height = rng.uniform(1.5, 1.95)
        start = rng.uniform(*DISTANCE)
        angles.path[:, 1] -= start
        from_radar = np.hypot(angles.path[:, 0], angles.path[:, 1])
        if from_radar.min() < DISTANCE[0] or from_radar.max() > DISTANCE[1] or angles.path[:, 1].max() > -0.5:
            return None
        joints = pose(angles, height)
        if np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() * FPS > _FASTEST:
            return None
        told = tuple(_told(act, joints[[first, last], 0]) for act, (first, last) in zip(request.acts, borders, strict=True))
        description = Description(request.facing, told)
        wordings = [Wording.draw(rng) for _ in range(self.n_captions)]
        return Motion(
            joints.astype(np.float32),
            FPS,
            {"facing": request.facing, "acts": [asdict(act) for act in request.acts], "height": round(height, 4)},
            tuple(caption(description, wording) for wording in wordings),
            hard_captions(description, wordings[0], rng),
            description.key(),
        )

    def _request(self, rng: np.random.Generator) -> Request:
        count = int(rng.integers(self.segments[0], self.segments[1] + 1))
        return Request("toward" if rng.random() < 0.7 else "away", tuple(draw_act(rng) for _ in range(count)))


def changed_request(request: Request, kind: str, rng: np.random.Generator) -> Request | None:
    """The request with one attribute changed; None where it has none of that kind."""
    acts = request.acts
    if kind == "order":
        return replace(request, acts=acts[::-1]) if len(acts) == 2 and acts[0] != acts[1] else None
    if kind == "radial":
        return replace(request, facing="away" if request.facing == "toward" else "toward")
    field = {"side": "limb", "lateral": "way", "speed": "speed", "count": "count"}[kind]
    able = [i for i, act in enumerate(acts) if (act.count if kind == "count" else getattr(act, field) in _OTHER)]
    if not able:
        return None
    i = able[int(rng.integers(len(able)))]
    value = getattr(acts[i], field)
    limit = 2 if acts[i].motion == "bend" else 4
    new = (value - 1 if value == limit else value + 1) if kind == "count" else _OTHER[value]
    return replace(request, acts=acts[:i] + (replace(acts[i], **{field: new}),) + acts[i + 1 :])


def _joined(parts: list[Angles]) -> tuple[Angles, list[tuple[int, int]]]:
    """Segments one after the other: each starts where and how the body was left; angles smoothed over 9 frames, path and heading too."""
    names = [name for name in Angles.__dataclass_fields__ if name not in ("heading", "path")]
    heading, path, borders = [np.zeros(1)], [np.zeros((1, 2))], []
    for part in parts:
        turned = heading[-1][-1]
        forward, left = np.array([np.sin(turned), np.cos(turned)]), np.array([np.cos(turned), -np.sin(turned)])
        first = sum(map(len, heading)) - 1
        path.append(path[-1][-1] + part.path[:, :1] * left + part.path[:, 1:] * forward)
        heading.append(turned + part.heading)
        borders.append((first, first + len(part.heading)))
    whole = {name: np.concatenate([getattr(parts[0], name)[:1], *(getattr(part, name) for part in parts)]) for name in names}
    smooth = {name: _smoothed(values) for name, values in whole.items()}
    return Angles(**smooth, heading=_smoothed(np.concatenate(heading)), path=_smoothed(np.concatenate(path))), borders


def _smoothed(values: np.ndarray) -> np.ndarray:
    """9-point Hann smoothing along time, ends held."""
    window = np.hanning(11)[1:-1]
    window /= window.sum()
    padded = np.pad(values, [(4, 4)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    return sum(weight * padded[i : i + len(values)] for i, weight in enumerate(window))


def _rotated(angles: Angles, lateral: float) -> np.ndarray:
    """The path in the world: turned by the first heading (before it was added), moved sideways by lateral m."""
    turned = angles.heading[0]
    x, z = angles.path.T
    return np.stack([x * np.cos(turned) + z * np.sin(turned) + lateral, z * np.cos(turned) - x * np.sin(turned)], 1)


def _told(act: Act, ends: np.ndarray) -> Told:
    """Words come from the kinematics: ends [2, 3] = pelvis at the segment's start and end."""
    travels = act.motion in ("walk", "run", "sidestep")
    from_radar = np.linalg.norm(ends[:, [0, 2]] - np.array(FRONT.position)[[0, 2]], axis=1)
    radial, lateral = from_radar[1] - from_radar[0], ends[1, 0] - ends[0, 0]
    return Told(
        act.motion,
        act.speed,
        act.limb,
        act.count,
        act.degrees,
        act.way if act.motion == "walk" else "",
        ("away" if radial > 0 else "toward") if travels and abs(radial) > _TOLD_FROM else "",
        ("right" if lateral > 0 else "left") if travels and abs(lateral) > _TOLD_FROM else "",
    )
