"""Joint angles of the parametric motions: what a described segment looks like, frame by frame at 50 Hz."""

from dataclasses import dataclass

import numpy as np

from mmexpert.simulate.skeleton import Angles

FPS = 50
SPEEDS = {"slow": 1.5, "normal": 1.0, "fast": 0.65}
"""Factor k on every duration."""


@dataclass(frozen=True)
class Act:
    """What one segment is asked to be. way: forward, backward, left, right or ''. limb: left, right, both or ''. count: 0 = none."""

    motion: str
    speed: str = "normal"
    way: str = ""
    limb: str = ""
    count: int = 0
    degrees: int = 0


MOTIONS = {
    "walk": (2.0, {"way": ("forward", "backward")}),
    "run": (1.2, {"way": ("forward",)}),
    "sidestep": (1.0, {"way": ("left", "right")}),
    "turn": (1.0, {"limb": ("left", "right"), "degrees": (90, 180), "speed": ("normal",)}),
    "jump": (1.0, {"count": (1, 2, 3, 4)}),
    "jack": (1.0, {"count": (1, 2, 3, 4)}),
    "squat": (1.0, {"count": (1, 2, 3, 4)}),
    "bend": (1.0, {"count": (1, 2)}),
    "punch": (1.3, {"limb": ("left", "right", "both"), "count": (1, 2, 3, 4)}),
    "wave": (1.3, {"limb": ("left", "right")}),
    "raise": (1.2, {"limb": ("left", "right", "both"), "count": (1, 2, 3, 4)}),
    "kick": (1.2, {"limb": ("left", "right"), "count": (1, 2, 3, 4)}),
    "sit": (0.7, {}),
    "stand": (0.4, {"speed": ("normal",)}),
}
"""Motion -> (weight of being drawn, choices of its attributes); speed is drawn slow .25, normal .5, fast .25 where not given."""


def draw_act(rng: np.random.Generator) -> Act:
    """A random segment."""
    weights = np.array([weight for weight, _ in MOTIONS.values()])
    motion = list(MOTIONS)[rng.choice(len(MOTIONS), p=weights / weights.sum())]
    chosen = {key: values[rng.integers(len(values))] for key, values in MOTIONS[motion][1].items()}
    if "speed" not in chosen:
        chosen["speed"] = list(SPEEDS)[rng.choice(3, p=[0.25, 0.5, 0.25])]
    return Act(motion, **chosen)


def perform(act: Act, rng: np.random.Generator) -> Angles:
    """The segment's angles; heading and path start at 0 and are relative to the body's heading at the segment's start."""
    k = SPEEDS[act.speed] * rng.uniform(0.92, 1.08)
    size = rng.uniform(0.9, 1.1)
    return _PERFORM[act.motion](act, k, size, rng)


def _frames(seconds: float) -> int:
    return max(2, round(seconds * FPS))


def _bumps(count: int, period: float) -> np.ndarray:
    """count bumps sin^2 from 0 to 1 and back, one a period (s)."""
    phase = np.arange(_frames(count * period)) / (period * FPS)
    return np.sin(np.pi * phase) ** 2 * (phase < count)


def _smoothstep(n: int) -> np.ndarray:
    x = np.linspace(0, 1, n)
    return x * x * (3 - 2 * x)


def _sides(limb: str) -> list[int]:
    return {"left": [0], "right": [1], "both": [0, 1]}[limb]


def _travel(angles: Angles, speed: float, way: str) -> None:
    """Moves along the body's axes at m/s, with half a second of getting going and of stopping."""
    n = len(angles.trunk)
    ramp = min(n // 3, FPS // 2)
    envelope = np.minimum(1, np.minimum(np.arange(n) + 1, np.arange(n)[::-1] + 1) / ramp)
    distance = np.cumsum(speed * envelope) / FPS
    axis = {"forward": (0, 1), "backward": (0, -1), "left": (1, 0), "right": (-1, 0)}[way]  # heading 0 faces +z, left is +x
    angles.path += distance[:, None] * np.array(axis)


def _gait(n: int, hz: float, hip: float, knee: float, arms: float, backward: bool) -> Angles:
    """Legs swing in opposition, arms against them; the knee bends as its leg swings through."""
    angles = Angles.rest(n)
    fade = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / (FPS / 4))
    phase = 2 * np.pi * hz * np.arange(n) / FPS * (-1 if backward else 1)
    for side, offset in ((0, 0.0), (1, np.pi)):
        angles.hip[:, side] = fade * hip * np.sin(phase + offset)
        angles.knee[:, side] = fade * knee * np.clip(np.cos(phase + offset), 0, None) ** 2 + 0.05
        angles.shoulder[:, side] = -fade * arms * np.sin(phase + offset)
        angles.elbow[:, side] = 0.3
    return angles


def _walk(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    angles = _gait(_frames(rng.uniform(2.2, 3.4)), 0.9 / k, 0.42 * size, 0.6 * size, 0.35 * size, act.way == "backward")
    _travel(angles, 1.1 / k, act.way)
    return angles


def _run(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    angles = _gait(_frames(rng.uniform(1.6, 2.2)), 1.35 / k, 0.75 * size, 1.3 * size, 0.7 * size, False)
    angles.elbow += 1.2
    angles.trunk += 0.12
    _travel(angles, 2.2 / k, act.way)
    return angles


def _sidestep(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    angles = Angles.rest(_frames(rng.uniform(2.2, 3.4)))
    n = len(angles.trunk)
    angles.spread[:] = (0.3 * size * np.sin(np.pi * 0.8 / k * np.arange(n) / FPS) ** 2)[:, None]
    _travel(angles, 0.6 / k, act.way)
    return angles


def _turn(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    angles = Angles.rest(_frames(1.6 * k))
    turned = np.radians(act.degrees) * _smoothstep(len(angles.trunk))
    angles.heading[:] = turned if act.limb == "left" else -turned
    return angles


def _jump(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    period = 0.9 * k
    n = _frames(act.count * period)
    angles = Angles.rest(n)
    phase = np.arange(n) / (period * FPS) % 1
    crouch = np.sin(np.pi * np.clip(phase / 0.5, 0, 1)) ** 2 + 0.5 * np.sin(np.pi * np.clip((phase - 0.8) / 0.2, 0, 1)) ** 2
    flight = np.clip((phase - 0.45) / 0.4, 0, 1)
    angles.hip += 0.7 * size * crouch[:, None]
    angles.knee += 1.4 * size * crouch[:, None]
    angles.jump[:] = 0.28 * size * 4 * flight * (1 - flight)
    return angles


def _jack(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(act.count, 1.0 * k)
    angles = Angles.rest(len(bump))
    angles.raised += 2.6 * size * bump[:, None]
    angles.spread += 0.4 * size * bump[:, None]
    return angles


def _squat(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(act.count, 1.7 * k)
    angles = Angles.rest(len(bump))
    angles.hip += 1.4 * size * bump[:, None]
    angles.knee += 1.9 * size * bump[:, None]
    angles.trunk += 0.4 * size * bump
    angles.shoulder += 1.2 * size * bump[:, None]
    return angles


def _bend(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(act.count, 2.0 * k)
    angles = Angles.rest(len(bump))
    angles.trunk += 1.2 * size * bump
    angles.shoulder += 0.8 * size * bump[:, None]
    return angles


def _punch(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(act.count, 0.75 * k)
    angles = Angles.rest(len(bump))
    angles.elbow += 2.0  # guard
    for side in _sides(act.limb):
        angles.shoulder[:, side] += 1.5 * size * bump
        angles.elbow[:, side] -= 2.0 * bump
    return angles


def _wave(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(4, 0.6 * k)
    n = len(bump)
    lift = FPS // 2
    angles = Angles.rest(n + 2 * lift)
    held = np.concatenate([_smoothstep(lift), np.ones(n), _smoothstep(lift)[::-1]])
    swing = np.sin(2 * np.pi * np.arange(n) / (0.6 * k * FPS))
    for side in _sides(act.limb):
        angles.raised[:, side] = 2.0 * size * held
        angles.swing[:, side] = 0.7 * held
        angles.swing[lift : lift + n, side] += 0.6 * size * swing
    return angles


def _raise(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    bump = _bumps(act.count, 1.7 * k)
    angles = Angles.rest(len(bump))
    for side in _sides(act.limb):
        angles.shoulder[:, side] = 2.9 * size * bump
    return angles


def _kick(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    period = 1.1 * k
    bump = _bumps(act.count, period)
    angles = Angles.rest(len(bump))
    early = np.sin(np.pi * np.clip((np.arange(len(bump)) / (period * FPS) % 1) / 0.5, 0, 1)) ** 2
    for side in _sides(act.limb):
        angles.hip[:, side] = 1.3 * size * bump
        angles.knee[:, side] = 0.8 * early
    return angles


def _sit(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    down = _smoothstep(_frames(1.6 * k))
    bend = np.concatenate([down, np.ones(_frames(0.5))])
    angles = Angles.rest(len(bend))
    angles.hip += 1.5 * bend[:, None]
    angles.knee += 1.5 * bend[:, None]
    return angles


def _stand(act: Act, k: float, size: float, rng: np.random.Generator) -> Angles:
    angles = Angles.rest(_frames(rng.uniform(1.5, 2.5)))
    angles.trunk += 0.01 * np.sin(2 * np.pi * 0.4 * np.arange(len(angles.trunk)) / FPS)
    return angles


_PERFORM = {
    "walk": _walk,
    "run": _run,
    "sidestep": _sidestep,
    "turn": _turn,
    "jump": _jump,
    "jack": _jack,
    "squat": _squat,
    "bend": _bend,
    "punch": _punch,
    "wave": _wave,
    "raise": _raise,
    "kick": _kick,
    "sit": _sit,
    "stand": _stand,
}
