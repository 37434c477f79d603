"""Scenes of two to four coloured shapes on a 3 x 3 grid: drawn, described and split by rules of their own (spec/retrieval.md section 2).

Every random stream is PCG64 seeded by the SHA-256 of a name, so that a picture depends on its scene and the seed alone: not on order,
worker or process. Letters: P pixels a side.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmexpert.types import ConfigError

SCENES_VERSION = 1  # part of every cache's name; raised by whoever changes a number or a draw here
SPLITS = ("train", "val", "test")
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "blue": (40, 70, 220),
    "cyan": (40, 200, 210),
    "green": (40, 170, 60),
    "purple": (150, 50, 190),
    "red": (220, 40, 40),
    "yellow": (230, 210, 40),
}
SIZES = {"large": 4.5, "small": 2.5}  # half a side, pixels of a 32-pixel picture
CELLS = 9
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the centre",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
FORMS = ("full", "sizeless", "placeless", "rows", "columns")
WORDS = (
    *("a", "and", "at", "in", "on", "the", "top", "middle", "bottom", "left", "centre", "right", "row", "column", "large", "small"),
    *SHAPES,
    *COLOURS,
    *("add", "has", "too", "remove", "no", "make", "that", "was", "is", "now", "turn", "into", "instead", "of", "move", "so", "it"),
)
"""Every word of the captions and of the edits (edits.py): one vocabulary serves both."""


class Thing(NamedTuple):
    """One object of a scene; things sort by their cell, 0..8 row-major."""

    cell: int
    shape: str
    colour: str
    size: str


Scene = tuple[Thing, ...]
"""Sorted things in distinct cells, no (shape, colour) twice."""


@dataclass(frozen=True)
class Described:
    """A scene of a split with its five captions, one per form, each true of no other scene of the split."""

    scene: Scene
    key: str
    captions: tuple[str, ...]


@dataclass
class SceneSimulator:
    """side: P, pixels, 16 or more."""

    side: int

    words = WORDS

    def __post_init__(self) -> None:
        if not isinstance(self.side, int) or self.side < 16:
            raise ConfigError(f"dataset.simulator.side={self.side}: pixels, 16 or more")

    def identity(self) -> dict[str, object]:
        """What pictures and captions depend on beside seed and counts, for a cache's name."""
        return {"version": SCENES_VERSION, "side": self.side, "numpy": np.__version__}

    def described(self, count: int, split: str, seed: int) -> list[Described]:
        """The first `count` different scenes of a split. split: train | val | test."""
        rng = stream(f"plain|{seed}|{split}")
        scenes: dict[str, Scene] = {}
        while len(scenes) < count:
            scene = draw_scene(rng)
            key = text_key(scene)
            if split_of(key) == split:
                scenes.setdefault(key, scene)
        texts = captions_of(list(scenes.values()), rng)
        return [Described(scene, key, captions) for (key, scene), captions in zip(scenes.items(), texts, strict=True)]

    def picture(self, scene: Scene, seed: int) -> np.ndarray:
        """uint8 [P, P, 3] of a scene, always the same one."""
        side, unit = self.side, self.side / 32
        rng = stream(f"image|{seed}|{text_key(scene)}")
        canvas = np.full((side, side, 3), 200.0 + rng.integers(-10, 11))
        jitter = rng.uniform(-0.7, 0.7, (len(scene), 2)) * unit  # down, right
        pixels = np.arange(side)
        for thing, (down, right) in zip(scene, jitter, strict=True):
            row, column = divmod(thing.cell, 3)
            dy = pixels[:, None] - (5.3 + 10.6 * row) * unit - down
            dx = pixels[None, :] - (5.3 + 10.6 * column) * unit - right
            canvas[_inside(thing.shape, dx, dy, SIZES[thing.size] * unit)] = COLOURS[thing.colour]
        canvas += rng.normal(0, 4, canvas.shape)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def stream(name: str) -> np.random.Generator:
    """The generator of a name: PCG64 seeded with the first 8 bytes of its SHA-256."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Two, three or four things, equally likely."""
    count = int(rng.integers(2, 5))
    cells = rng.permutation(CELLS)[:count].tolist()
    kinds = rng.permutation(len(SHAPES) * len(COLOURS))[:count].tolist()
    sizes = rng.integers(len(SIZES), size=count).tolist()
    colours, names = tuple(COLOURS), tuple(SIZES)
    drawn = zip(cells, kinds, sizes, strict=True)
    return tuple(sorted(Thing(cell, SHAPES[kind // 6], colours[kind % 6], names[size]) for cell, kind, size in drawn))


def text_key(scene: Scene) -> str:
    """CELL-SHAPE-COLOUR-SIZE of each thing, joined by blanks: the scene's name."""
    return " ".join(f"{thing.cell}-{thing.shape}-{thing.colour}-{thing.size}" for thing in scene)


def split_of(key: str) -> str:
    """The split of a scene by its text key: 60 % train, 20 % val, 20 % test, whatever seed and size of the set."""
    digit = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 10
    return "val" if digit < 2 else "test" if digit < 4 else "train"


def projection(scene: Scene, form: str) -> frozenset[tuple[object, ...]]:
    """What a caption of a form tells of a scene: its things without the attribute that the form leaves out."""
    return frozenset(_told(thing, form) for thing in scene)


def captions_of(scenes: Sequence[Scene], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Five captions a scene, things in random order; the full form where another of the scenes shares the projection."""
    shared = {form: Counter(projection(scene, form) for scene in scenes) for form in FORMS}
    texts = []
    for scene in scenes:
        captions = []
        for form in FORMS:
            told = form if shared[form][projection(scene, form)] == 1 else "full"
            captions.append(" and ".join(phrase(scene[i], told) for i in rng.permutation(len(scene)).tolist()))
        texts.append(tuple(captions))
    return texts


def phrase(thing: Thing, form: str) -> str:
    """One thing in words: 'a small red circle at the top left'."""
    name = f"{thing.colour} {thing.shape}" if form == "sizeless" else f"{thing.size} {thing.colour} {thing.shape}"
    row, column = divmod(thing.cell, 3)
    place = {"placeless": "", "rows": f" in the {_ROWS[row]} row", "columns": f" in the {_COLUMNS[column]} column"}
    return f"a {name}" + place.get(form, f" {PLACES[thing.cell]}")


def _told(thing: Thing, form: str) -> tuple[object, ...]:
    place = {"placeless": None, "rows": thing.cell // 3, "columns": thing.cell % 3}.get(form, thing.cell)
    return place, thing.shape, thing.colour, None if form == "sizeless" else thing.size


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, half: float) -> np.ndarray:
    """Mask [P, P] of the pixels of a shape; dx [1, P], dy [P, 1]: distances from its centre."""
    if shape == "circle":
        return dx**2 + dy**2 <= half**2
    if shape == "square":
        return (np.abs(dx) <= 0.88 * half) & (np.abs(dy) <= 0.88 * half)
    return (np.abs(dy) <= half) & (np.abs(dx) <= (dy + half) / 2)
