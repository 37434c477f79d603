"""What a motion is called: sentences made from a description, and hard captions with one attribute changed.

Travel is told in the radar's frame, limbs in the person's. Attributes that the kinematics do not show are left out.
"""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np

HARD_KINDS = ("side", "lateral", "radial", "speed", "count", "order")


@dataclass(frozen=True)
class Told:
    """What is told of one segment; '' or 0 where nothing is."""

    motion: str
    speed: str  # slow | normal | fast
    limb: str  # left | right | both, the person's
    count: int
    degrees: int
    way: str  # forward | backward, of a walk
    radial: str  # toward | away
    lateral: str  # left | right, the radar's


@dataclass(frozen=True)
class Description:
    """facing: toward | away at the start; the segments in order."""

    facing: str
    segments: tuple[Told, ...]

    def key(self) -> str:
        """Canonical text: equal where two clips tell the same."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Wording:
    """Which paraphrase of each element; hard captions keep it, so that only the attribute differs."""

    subject: int
    facing: int
    facing_last: bool
    joint: int
    verbs: tuple[int, ...]
    modifiers: tuple[int, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Wording":
        """A random wording."""
        verbs, modifiers = rng.integers(3, size=2), rng.integers(2, size=2)
        return cls(
            int(rng.integers(len(SUBJECTS))), int(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(3)),
            tuple(int(v) for v in verbs), tuple(int(m) for m in modifiers),
        )  # fmt: skip


SUBJECTS = ("a person", "someone", "a human", "the subject", "a figure", "an adult")
FACING = {"toward": ("facing the radar", "turned to the radar"), "away": ("with the back to the radar", "looking away from the radar")}
JOINTS = (", then ", " and then ", ", after that ")
SPEED = {"slow": ("slowly", "at a slow pace"), "normal": ("", ""), "fast": ("quickly", "at a fast pace")}
RADIAL = {"toward": ("toward the radar", "closer to the radar"), "away": ("away from the radar", "farther from the radar")}
LATERAL = {"left": ("to the radar's left", "left of the radar"), "right": ("to the radar's right", "right of the radar")}
TIMES = {1: ("once", "one time"), 2: ("twice", "two times"), 3: ("thrice", "three times"), 4: ("four times", "four times")}
NUMBER = {1: "one", 2: "two", 3: "three", 4: "four"}
DEGREES = {90: ("by ninety degrees", "a quarter turn"), 180: ("by half a circle", "a half turn")}
LIMB = {
    "arm": {
        "left": ("with the left arm", "using the left arm"),
        "right": ("with the right arm", "using the right arm"),
        "both": ("with both arms", "using both arms"),
    },
    "leg": {"left": ("with the left leg", "using the left leg"), "right": ("with the right leg", "using the right leg")},
    "turn": {"left": ("to the own left", "leftward"), "right": ("to the own right", "rightward")},
}
LIMB_OF = {"punch": "arm", "wave": "arm", "raise": "arm", "kick": "leg", "turn": "turn"}
VERBS = {
    "walk": ("walks", "strides", "strolls"),
    "run": ("runs", "jogs", "rushes"),
    "sidestep": ("sidesteps", "steps sideways", "shuffles sideways"),
    "turn": ("turns", "rotates", "spins"),
    "jump": ("jumps", "hops", "makes {n} jump{s}"),
    "jack": ("does {n} jumping jack{s}", "performs {n} star jump{s}", "does jumping jacks"),
    "squat": ("squats", "crouches down", "does {n} squat{s}"),
    "bend": ("bends over", "bows", "leans forward"),
    "punch": ("punches", "throws {n} punch{es}", "strikes"),
    "wave": ("waves", "greets by waving", "signals"),
    "raise": ("raises", "reaches up", "does {n} arm lift{s}"),
    "kick": ("kicks", "does {n} kick{s}", "swings a foot"),
    "sit": ("sits down", "takes a seat", "lowers onto a chair"),
    "stand": ("stands still", "keeps still", "waits in place"),
}


def caption(description: Description, wording: Wording) -> str:
    """The sentence."""
    facing = FACING[description.facing][wording.facing]
    told = [phrase(segment, wording.verbs[i], wording.modifiers[i]) for i, segment in enumerate(description.segments)]
    body = JOINTS[wording.joint].join(told)
    start = SUBJECTS[wording.subject]
    return f"{start} {body}, {facing} at first" if wording.facing_last else f"{start} {facing} {body}"


def phrase(told: Told, verb: int, modifier: int) -> str:
    """Verb phrase, limb, direction, count and speed word of one segment."""
    words = VERBS[told.motion][verb]
    counted = "{n}" in words
    if counted:
        plural = told.count > 1
        words = words.format(n=NUMBER[told.count], s="s" if plural else "", es="es" if plural else "")
    parts = [words, told.way if told.motion == "walk" else ""]
    if told.limb:
        parts.append(LIMB[LIMB_OF[told.motion]][told.limb][modifier])
    if told.degrees:
        parts.append(DEGREES[told.degrees][modifier])
    if told.radial:
        parts.append(RADIAL[told.radial][modifier])
    if told.lateral:
        parts.append(("and " if told.radial else "") + LATERAL[told.lateral][modifier])
    if told.count and not counted:
        parts.append(TIMES[told.count][modifier])
    parts.append(SPEED[told.speed][modifier])
    return " ".join(part for part in parts if part)


def hard_captions(description: Description, wording: Wording, rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """(kind, sentence) for every kind of change that the description allows, worded alike."""
    found = []
    for kind in HARD_KINDS:
        if changed := change(description, kind, rng):
            swapped = replace(wording, verbs=wording.verbs[::-1], modifiers=wording.modifiers[::-1]) if kind == "order" else wording
            found.append((kind, caption(changed, swapped)))
    return tuple(found)


def change(description: Description, kind: str, rng: np.random.Generator) -> Description | None:
    """The description with one attribute of that kind changed; None where it has none."""
    other = {"left": "right", "right": "left", "toward": "away", "away": "toward", "slow": "fast", "fast": "slow"}
    segments = description.segments
    if kind == "order":
        changed = description.segments[::-1]
        return None if len(segments) < 2 or changed == segments else replace(description, segments=changed)
    if kind == "radial":
        return replace(description, facing=other[description.facing])
    able = {
        "side": [i for i, s in enumerate(segments) if s.limb in other],
        "lateral": [i for i, s in enumerate(segments) if s.lateral],
        "speed": [i for i, s in enumerate(segments) if s.speed in other],
        "count": [i for i, s in enumerate(segments) if s.count],
    }[kind]
    if not able:
        return None
    i = able[int(rng.integers(len(able)))]
    segment = segments[i]
    if kind == "count":
        limit = 2 if segment.motion == "bend" else 4
        steps = [c for c in (segment.count - 1, segment.count + 1) if 1 <= c <= limit]
        new = replace(segment, count=steps[int(rng.integers(len(steps)))])
    else:
        field = {"side": "limb", "lateral": "lateral", "speed": "speed"}[kind]
        new = replace(segment, **{field: other[getattr(segment, field)]})
    return replace(description, segments=segments[:i] + (new,) + segments[i + 1 :])
