"""Padding against the table of the specification; RGB before padding; the whole way against Pillow step by step."""

import numpy as np
import pytest
from PIL import Image

from mmexpert.data.padding import PaddedPicture, Padding
from mmexpert.data.pictures import open_picture
from mmexpert.types import ConfigError

SIZES = [  # w x h, square, target 1.25
    ((101, 60), (101, 100), (101, 80)),
    ((400, 300), (400, 400), (400, 320)),
    ((250, 200), (250, 250), (250, 200)),
    ((249, 200), (249, 248), (249, 200)),
    ((333, 100), (333, 332), (333, 266)),
    ((1000, 100), (1000, 1000), (1000, 800)),
]


@pytest.mark.parametrize("size, square, target", SIZES)
@pytest.mark.parametrize("turned", [False, True])
def test_sizes_after_padding_are_those_of_the_published_code(size, square, target, turned):
    order = -1 if turned else 1
    picture = Image.new("RGB", size[::order], (255, 0, 0))
    assert Padding("none", 1.25)(picture).size == size[::order]
    assert Padding("square", 1.25)(picture).size == square[::order]
    assert Padding("target", 1.25)(picture).size == target[::order]


def test_the_border_is_black_on_both_sides_and_the_picture_is_whole():
    pixels = np.asarray(Padding("square", 1.25)(Image.new("RGB", (10, 4), (9, 8, 7))))
    assert pixels.shape == (10, 10, 3)
    assert not pixels[:3].any() and not pixels[7:].any()
    assert (pixels[3:7] == (9, 8, 7)).all()


def test_a_palette_picture_is_rgb_before_its_border_is_drawn(tmp_path):
    palette = Image.new("P", (20, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])  # entry 0, which a border of a palette picture would show, is red
    palette.save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="convert it to RGB"):
        Padding("square", 1.25)(palette)
    padded = Padding("square", 1.25)(open_picture(tmp_path / "p.png", "p", False))
    assert padded.getpixel((10, 0)) == (0, 0, 0)
    assert padded.getpixel((10, 10)) == (0, 255, 0)


@pytest.mark.parametrize("size", [(101, 60), (60, 101), (249, 200), (32, 32)])
def test_the_transform_equals_pillow_step_by_step(size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    found = PaddedPicture("target", 1.25, 32, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])(picture, None)
    w, h = size
    longer, t = max(w, h), max(w, h) / 1.25
    left, top = (0, 0) if longer / min(w, h) < 1.25 else (max(int((t - w) / 2), 0), max(int((t - h) / 2), 0))
    canvas = Image.new("RGB", (w + 2 * left, h + 2 * top))
    canvas.paste(picture, (left, top))
    w, h = canvas.size
    new = (32, int(32 * h / w)) if w <= h else (int(32 * w / h), 32)
    canvas = canvas if new == canvas.size else canvas.resize(new, Image.Resampling.BICUBIC)
    x, y = int(round((new[0] - 32) / 2)), int(round((new[1] - 32) / 2))
    expected = np.asarray(canvas.crop((x, y, x + 32, y + 32)), np.float64).transpose(2, 0, 1) / 255
    expected = (expected - np.array([0.48, 0.46, 0.41])[:, None, None]) / np.array([0.27, 0.26, 0.28])[:, None, None]
    assert found.dtype == np.float32 and found.shape == (3, 32, 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_training_and_evaluation_see_the_same_picture():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 70, 3), np.uint8))
    transform = PaddedPicture("target", 1.25, 16, [0.5], [0.25])
    np.testing.assert_array_equal(transform(picture, None), transform(picture, np.random.default_rng(0)))


def test_wrong_keys_are_named():
    with pytest.raises(ConfigError, match="dataset.transform.pad=squar"):
        Padding("squar", 1.25)
    with pytest.raises(ConfigError, match="target_ratio=0.5"):
        Padding("target", 0.5)
