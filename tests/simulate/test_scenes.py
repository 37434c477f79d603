"""Scenes and edits: texts that a reader who knows no generator can follow, splits by hash, pictures that show what is said."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from mmexpert.simulate.edits import EDITS, ComposedSimulator, Edit
from mmexpert.simulate.scenes import WORDS, SceneSimulator, Thing, split_of, text_key
from mmexpert.types import ConfigError

SIMULATOR, COMPOSED = SceneSimulator(32), ComposedSimulator(32)
RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 190),
    "cyan": (40, 200, 210),
}
PLACES = ["at the top left", "at the top", "at the top right", "on the left", "in the centre", "on the right"]
PLACES += ["at the bottom left", "at the bottom", "at the bottom right"]
ROWS, COLUMNS = ["top", "middle", "bottom"], ["left", "middle", "right"]
PHRASE = re.compile(r"a (?:(large|small) )?(\w+) (circle|square|triangle)(?: (.*))?")


def parsed(caption):
    """(form, {(place, shape, colour, size)}) of a caption; place: cell, row, column or None."""
    forms, things = set(), set()
    for part in caption.split(" and "):
        size, colour, shape, place = PHRASE.fullmatch(part).groups()
        if place is None:
            forms.add("placeless")
        elif place.endswith(" row"):
            forms.add("rows")
            place = ROWS.index(place.split()[-2])
        elif place.endswith(" column"):
            forms.add("columns")
            place = COLUMNS.index(place.split()[-2])
        else:
            forms.add("full" if size else "sizeless")
            place = PLACES.index(place)
        things.add((place, shape, colour, size))
    assert len(forms) == 1
    return forms.pop(), frozenset(things)


def projected(key, form):
    """The same from a scene's text key."""
    things = set()
    for thing in key.split():
        cell, shape, colour, size = thing.split("-")
        place = {"placeless": None, "rows": int(cell) // 3, "columns": int(cell) % 3}.get(form, int(cell))
        things.add((place, shape, colour, None if form == "sizeless" else size))
    return frozenset(things)


@pytest.fixture(scope="module")
def train():
    return SIMULATOR.described(4000, "train", 0)


def test_a_caption_read_back_is_what_the_scene_shows_and_true_of_no_other_scene_of_the_split(train):
    shared = {form: Counter(projected(told.key, form) for told in train) for form in ("full", "sizeless", "placeless", "rows", "columns")}
    for told in train:
        assert len(told.captions) == 5
        for caption in told.captions:
            form, things = parsed(caption)
            assert things == projected(told.key, form) and shared[form][things] == 1
            assert len(caption.split()) <= 35


def test_the_full_form_stands_in_as_often_as_the_spec_says(train):
    forms = ["full", "sizeless", "placeless", "rows", "columns"]
    replaced = {form: np.mean([parsed(told.captions[i])[0] != form for told in train]) for i, form in enumerate(forms)}
    for form, share in {"full": 0, "sizeless": 0.03, "placeless": 0.36, "rows": 0.06, "columns": 0.08}.items():
        assert abs(replaced[form] - share) < 0.015, form


def test_a_scene_has_two_to_four_things_in_cells_and_kinds_of_their_own(train):
    counts = Counter(len(told.scene) for told in train)
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 0.3 * len(train)
    for told in train:
        assert len({thing.cell for thing in told.scene}) == len({(t.shape, t.colour) for t in told.scene}) == len(told.scene)
        assert told.scene == tuple(sorted(told.scene))


def test_the_split_is_the_hash_of_the_text_key_and_no_scene_is_in_two(train):
    keys = {split: [told.key for told in SIMULATOR.described(300, split, 0)] for split in ("val", "test")}
    keys["train"] = [told.key for told in train]
    for split, found in keys.items():
        for key in found:
            digit = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 10
            assert split == ("val" if digit in (0, 1) else "test" if digit in (2, 3) else "train")
        assert len(set(found)) == len(found)


def test_a_longer_set_begins_with_the_shorter_ones_scenes_and_a_seed_changes_them(train):
    assert [told.scene for told in SIMULATOR.described(50, "train", 0)] == [told.scene for told in train[:50]]
    assert SIMULATOR.described(1, "train", 1)[0].scene != train[0].scene


@pytest.mark.parametrize("side", [32, 64])
def test_every_thing_has_its_colour_at_its_centre_and_the_corner_is_grey(train, side):
    simulator, unit = SceneSimulator(side), side / 32
    for told in train[:40]:
        picture = simulator.picture(told.scene, 0).astype(float)
        for thing in told.scene:
            row, column = (round((5.3 + 10.6 * n) * unit) for n in divmod(thing.cell, 3))
            near = picture[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)  # a small triangle is narrow, and shifted
            assert np.abs(near - RGB[thing.colour]).max(1).min() < 14, thing
        corner = picture[0, 0]
        assert np.ptp(corner) < 40 and abs(corner.mean() - 200) < 25


def test_large_things_cover_more_than_small_ones_and_shapes_cover_their_areas():
    areas = {}
    for shape in ("circle", "square", "triangle"):
        for size in ("large", "small"):
            picture = SceneSimulator(128).picture((Thing(4, shape, "blue", size),), 0).astype(int)
            areas[shape, size] = (picture[..., 0] < 120).sum() / 16  # in pixels of a 32-pixel picture
    for size, half in (("large", 4.5), ("small", 2.5)):
        expected = {"circle": np.pi * half**2, "square": (1.76 * half) ** 2, "triangle": 2 * half * half}
        for shape, area in expected.items():
            assert abs(areas[shape, size] / area - 1) < 0.08, (shape, size)


def test_a_picture_depends_on_scene_and_seed_alone(train):
    scene = train[7].scene
    before = SIMULATOR.picture(scene, 0)
    SIMULATOR.picture(train[8].scene, 0)
    assert (SIMULATOR.picture(scene, 0) == before).all() and (SIMULATOR.picture(scene, 1) != before).any()
    assert before.shape == (32, 32, 3) and before.dtype == np.uint8


def test_a_picture_too_small_to_show_anything_is_refused():
    with pytest.raises(ConfigError, match="side=8: pixels, 16 or more"):
        SceneSimulator(8)


def edited(key, text):
    """The text key after an order in words, followed by somebody who reads."""
    things = [thing.split("-") for thing in key.split()]
    if found := re.fullmatch(r"add a (\w+) (\w+) (\w+) (.*)", text):
        size, colour, shape, place = found.groups()
        things.append([str(PLACES.index(place)), shape, colour, size])
    else:
        patterns = [
            (r"remove the (\w+) (\w+)", None),
            (r"make the (\w+) (\w+) (large|small)", 3),
            (r"make the (\w+) (\w+) (\w+)", 2),
            (r"turn the (\w+) (\w+) into a (\w+)", 1),
            (r"move the (\w+) (\w+) so that it is (.*)", 0),
        ]
        found, field = next((found, field) for pattern, field in patterns if (found := re.fullmatch(pattern, text)))
        (thing,) = (thing for thing in things if thing[2] == found[1] and thing[1] == found[2])
        if field is None:
            things.remove(thing)
        else:
            thing[field] = str(PLACES.index(found[3])) if field == 0 else found[3]
    return " ".join("-".join(thing) for thing in sorted(things))


@pytest.fixture(scope="module")
def queries():
    return COMPOSED.triplets(120, "val", 0, 8)


def test_who_follows_the_words_of_an_edit_arrives_at_the_target(queries):
    for query in [*queries, *COMPOSED.triplets(600, "train", 3, None)]:
        assert edited(text_key(query.reference), query.edit.texts()[0]) == text_key(query.target) != text_key(query.reference)


def test_a_gallery_holds_the_target_once_and_no_other_answer(queries):
    for query in queries:
        answer = edited(text_key(query.reference), query.edit.texts()[0])
        shown = [text_key(scene) for scene in (*query.members, *query.extra)]
        assert shown.count(answer) == 1 and len(set(shown)) == len(shown) == 14
        assert len(set(query.members)) == 6 and {query.reference, query.target} < set(query.members)
        assert {split_of(key) for key in shown} == {"val"}


def test_two_members_are_other_edits_of_the_reference_and_two_show_the_edit_on_other_scenes(queries):
    for query in queries:
        _, _, *others = query.members
        for scene in others[2:]:
            thing = next((t for t in scene if (t.colour, t.shape) == (query.edit.colour, query.edit.shape)), None)
            if query.edit.kind == "remove":
                assert thing is None
            elif query.edit.kind in ("add", "move"):
                assert thing.cell == query.edit.to
        for scene in (*others[:2], *query.extra):
            assert len(set(scene) ^ set(query.reference)) <= 2


def test_all_six_edits_are_equally_likely_and_no_query_comes_twice():
    triplets = COMPOSED.triplets(1800, "train", 1, None)
    counts = Counter(triplet.edit.kind for triplet in triplets)
    assert set(counts) == set(EDITS) and all(abs(count - 300) < 4 * np.sqrt(1800 * 5 / 36) + 30 for count in counts.values())
    assert len({(triplet.reference, triplet.edit) for triplet in triplets}) == len(triplets)


def test_first_forms_are_short_and_every_word_is_of_the_one_list(train, queries):
    texts = [text for query in queries for text in query.edit.texts()] + [caption for told in train for caption in told.captions]
    assert max(len(query.edit.texts()[0].split()) for query in queries) <= 12
    assert {word for text in texts for word in text.split()} <= set(WORDS) and len(set(WORDS)) == len(WORDS) == 42


@pytest.mark.parametrize(
    "edit",
    [
        Edit("add", "blue", "circle", 3, "large"),  # occupied
        Edit("add", "red", "circle", 5, "large"),  # there already
        Edit("remove", "green", "circle", "", ""),  # not there
        Edit("recolour", "red", "circle", "red", ""),  # no change
        Edit("recolour", "green", "square", "blue", ""),
        Edit("reshape", "green", "square", "square", ""),
        Edit("move", "red", "circle", 3, ""),  # occupied
        Edit("resize", "red", "circle", "small", ""),  # no change
    ],
)
def test_an_invalid_edit_has_no_result(edit):
    scene = (Thing(0, "circle", "red", "small"), Thing(3, "square", "green", "large"), Thing(4, "square", "blue", "large"))
    assert edit.applied(scene) is None
    assert Edit("remove", "red", "circle", "", "").applied(scene[:1]) is None


def test_what_can_not_be_drawn_is_an_error_that_names_the_keys(monkeypatch):
    monkeypatch.setattr("mmexpert.simulate.edits._MOST_TRIES", 2)
    with pytest.raises(ConfigError, match=r"in 2 tries; ask for less by dataset\.triplets or dataset\.extra"):
        COMPOSED.triplets(50, "val", 0, 8)
