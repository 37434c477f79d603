"""Edits of scenes, and what composed retrieval is made of: triplets, groups of six, galleries (spec/cir.md section 9).

Colour and shape name a thing, since no scene holds the pair twice: no text is ambiguous.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmexpert.simulate.scenes import (
    CELLS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneSimulator,
    Thing,
    draw_scene,
    split_of,
    stream,
    text_key,
)
from mmexpert.types import ConfigError

EDITS_VERSION = 1  # part of every cache's name; raised by whoever changes a draw or a text here
EDITS = ("add", "remove", "recolour", "resize", "reshape", "move")
_KINDS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_VISUAL, _TEXTUAL = 2, 2  # members of a group beside reference and target
_MOST_TRIES = 200_000
Found = TypeVar("Found")


class Edit(NamedTuple):
    """What is done to the thing of a colour and shape. to: the new cell (add, move), colour, size or shape; size: of what is added."""

    kind: str
    colour: str
    shape: str
    to: int | str
    size: str

    def applied(self, scene: Scene) -> Scene | None:
        """The edited scene; None where the edit is invalid there: no such thing, cell or pair taken, nothing left, no change."""
        things = {(thing.colour, thing.shape): thing for thing in scene}
        thing = things.pop((self.colour, self.shape), None)
        if (thing is None) != (self.kind == "add"):
            return None
        if self.kind == "add":
            new = Thing(self.to, self.shape, self.colour, self.size)
        elif self.kind == "remove":
            return tuple(sorted(things.values())) or None
        else:
            field = {"recolour": "colour", "resize": "size", "reshape": "shape", "move": "cell"}[self.kind]
            new = thing._replace(**{field: self.to})
        taken = new == thing or (new.colour, new.shape) in things or any(other.cell == new.cell for other in things.values())
        return None if taken else tuple(sorted([*things.values(), new]))

    def texts(self) -> tuple[str, str]:
        """The edit in words: as an order, and as what is seen afterwards."""
        name, to = f"{self.colour} {self.shape}", self.to
        if self.kind == "add":
            told = f"a {self.size} {name} {PLACES[to]}"
            return f"add {told}", f"has {told} too"
        if self.kind == "move":
            return f"move the {name} so that it is {PLACES[to]}", f"the {name} is {PLACES[to]} now"
        return {
            "remove": (f"remove the {name}", f"has no {name}"),
            "recolour": (f"make the {name} {to}", f"the {self.shape} that was {self.colour} is {to}"),
            "resize": (f"make the {name} {to}", f"the {name} is {to} now"),
            "reshape": (f"turn the {name} into a {to}", f"has a {self.colour} {to} instead of the {name}"),
        }[self.kind]


@dataclass(frozen=True)
class Triplet:
    """target = edit.applied(reference). members: six scenes of its group, reference and target first; extra: more of its gallery."""

    reference: Scene
    edit: Edit
    target: Scene
    members: tuple[Scene, ...] = ()
    extra: tuple[Scene, ...] = ()


@dataclass
class ComposedSimulator(SceneSimulator):
    """SceneSimulator whose scenes are edited."""

    def identity(self) -> dict[str, object]:
        """What pictures, triplets and galleries depend on beside seed and counts."""
        return super().identity() | {"edits": EDITS_VERSION}

    def triplets(self, count: int, split: str, seed: int, extra: int | None) -> list[Triplet]:
        """`count` different (scene, edit) whose two scenes are in the split; with groups and `extra` more gallery scenes unless None.

        Raises ConfigError where there are not so many.
        """
        rng, found = stream(f"triplets|{seed}|{split}"), {}
        for _ in range(count):
            triplet = _tried(lambda: _triplet(split, rng, found), f"a new triplet of {split} after {len(found)}")
            found[triplet.reference, triplet.edit] = triplet
        if extra is None:
            return list(found.values())
        rng = stream(f"gallery|{seed}|{split}")
        return [_with_gallery(triplet, split, extra, rng) for triplet in found.values()]

    def name(self, scene: Scene) -> str:
        """The scene's text key without blanks: the name of its picture."""
        return text_key(scene).replace(" ", "_")


def draw_edit(scene: Scene, rng: np.random.Generator) -> Edit:
    """One of the six edits, its parameters uniform among those that are valid for the scene."""
    kind = EDITS[int(rng.integers(len(EDITS)))]
    if kind == "add":
        there, cells = {(thing.colour, thing.shape) for thing in scene}, {thing.cell for thing in scene}
        colour, shape = _one_of([pair for pair in _KINDS if pair not in there], rng)
        cell = _one_of([cell for cell in range(CELLS) if cell not in cells], rng)
        return Edit(kind, colour, shape, cell, _one_of(tuple(SIZES), rng))
    return _one_of(_changes(scene, kind) or _changes(scene, "move"), rng)  # no shape may be free


def _changes(scene: Scene, kind: str) -> list[Edit]:
    """All edits of a kind, add excepted, that are valid for a scene."""
    there, cells = {(thing.colour, thing.shape) for thing in scene}, {thing.cell for thing in scene}
    edits = []
    for thing in scene:
        if kind == "remove":
            options = [""] if len(scene) > 1 else []
        elif kind == "recolour":
            options = [colour for colour in COLOURS if (colour, thing.shape) not in there]
        elif kind == "resize":
            options = [size for size in SIZES if size != thing.size]
        elif kind == "reshape":
            options = [shape for shape in SHAPES if (thing.colour, shape) not in there]
        else:
            options = [cell for cell in range(CELLS) if cell not in cells]
        edits += [Edit(kind, thing.colour, thing.shape, to, "") for to in options]
    return edits


def _one_of(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _triplet(split: str, rng: np.random.Generator, found: dict[tuple[Scene, Edit], Triplet]) -> Triplet | None:
    reference = draw_scene(rng)
    if split_of(text_key(reference)) != split:
        return None
    edit = draw_edit(reference, rng)
    target = edit.applied(reference)
    return Triplet(reference, edit, target) if split_of(text_key(target)) == split and (reference, edit) not in found else None


def _with_gallery(triplet: Triplet, split: str, extra: int, rng: np.random.Generator) -> Triplet:
    """The triplet with its group and the rest of its gallery, all of the split and different from each other."""
    reference, edit = triplet.reference, triplet.edit
    scenes = [reference, triplet.target]

    def take(count: int, draw: Callable[[], Scene | None]) -> None:
        for _ in range(count):
            usable = lambda: scene if (scene := draw()) and scene not in scenes and split_of(text_key(scene)) == split else None  # noqa: E731
            scenes.append(_tried(usable, f"a gallery scene of {split} for '{edit.texts()[0]}'"))

    take(_VISUAL, lambda: draw_edit(reference, rng).applied(reference))
    take(_TEXTUAL, lambda: edit.applied(_scene_with(edit, rng)))
    members = len(scenes)
    take(extra, lambda: draw_edit(reference, rng).applied(reference))
    return Triplet(reference, edit, triplet.target, tuple(scenes[:members]), tuple(scenes[members:]))


def _scene_with(edit: Edit, rng: np.random.Generator) -> Scene:
    """A random scene; one of its things becomes the one that the edit names, where it names one and that is not there."""
    scene = draw_scene(rng)
    if edit.kind == "add" or any((thing.colour, thing.shape) == (edit.colour, edit.shape) for thing in scene):
        return scene
    place = int(rng.integers(len(scene)))
    return (*scene[:place], scene[place]._replace(colour=edit.colour, shape=edit.shape), *scene[place + 1 :])


def _tried(draw: Callable[[], Found | None], wanted: str) -> Found:
    """The first draw that is not None. Raises ConfigError after 200,000 tries."""
    for _ in range(_MOST_TRIES):
        if (drawn := draw()) is not None:
            return drawn
    raise ConfigError(f"composed_scenes: no {wanted} in {_MOST_TRIES} tries; ask for less by dataset.triplets or dataset.extra")
