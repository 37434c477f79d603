"""Pictures to tensors: step by step as PIL does it, whatever the file holds; random crops of the promised size."""

import numpy as np
import pytest
from PIL import Image

from mmexpert.data.pictures import PictureTransform, open_picture, random_resized_crop
from mmexpert.types import ConfigError, DataError

PLAIN = {"side": 24, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "crop_scale": None, "flip": 0.0, "jitter": [0, 0, 0, 0]}


def transform(**changes):
    return PictureTransform(**PLAIN | changes)


def noise(mode, size=(60, 41), seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "P": (3,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    return Image.fromarray(pixels).convert("P") if mode == "P" else Image.fromarray(pixels)


def by_steps(rgb, side=24):
    """The evaluation rule in the spec's words."""
    width, height = rgb.size
    scale = side / min(width, height)
    new = (side, int(height * scale + 1e-9)) if width <= height else (int(width * scale + 1e-9), side)
    rgb = rgb.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - side) / 2), round((new[1] - side) / 2)
    pixels = np.asarray(rgb.crop((left, top, left + side, top + side))).astype(np.float64) / 255
    return ((pixels - PLAIN["mean"]) / PLAIN["std"]).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(60, 41), (41, 60), (24, 24), (200, 1), (1, 37), (25, 24)])
def test_evaluation_equals_pil_step_by_step(tmp_path, mode, size):
    path = tmp_path / "picture.png"
    noise(mode, size).save(path)
    found = transform()(open_picture(path, "p", True), None)
    assert found.shape == (3, 24, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found, by_steps(Image.open(path).convert("RGB")), atol=1e-6)


def test_a_transparent_palette_becomes_its_colours(tmp_path):
    palette = Image.new("P", (30, 30), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=b"\xff\x80")
    assert open_picture(tmp_path / "p.png", "p", True).getpixel((3, 3)) == (200, 100, 50)


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((9, 9), 257 * 99, np.uint16)).save(tmp_path / "deep.png")
    assert open_picture(tmp_path / "deep.png", "p", True).getpixel((0, 0)) == (99, 99, 99)
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(DataError, match=r"real.tiff \(record r\): stored as F, whose white is unknown"):
        open_picture(tmp_path / "real.tiff", "r", True)


def test_a_camera_held_upright_is_turned_unless_exif_is_off(tmp_path):
    picture, tag = noise("RGB", (40, 30)), Image.Exif()
    tag[0x0112] = 6  # stored lying on its side
    picture.save(tmp_path / "turned.png", exif=tag)
    turned, stored = (open_picture(tmp_path / "turned.png", "p", exif) for exif in (True, False))
    assert turned.size == (30, 40) and stored.size == (40, 30)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(picture), -1))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(picture))


def test_a_random_crop_keeps_its_share_of_the_area_and_its_ratio():
    boxes = []

    class Recorder(Image.Image):
        size = (160, 120)

        def crop(self, box):
            boxes.append(box)
            return noise("RGB", (4, 4))

    rng = np.random.default_rng(0)
    for _ in range(400):
        assert random_resized_crop(Recorder(), 16, (0.3, 0.6), rng).size == (16, 16)
    left, top, right, bottom = np.array(boxes).T
    area, ratio = (right - left) * (bottom - top) / (160 * 120), (right - left) / (bottom - top)
    assert area.min() > 0.29 and area.max() < 0.61 and abs(area.mean() - 0.45) < 0.03
    assert ratio.min() > 0.73 and ratio.max() < 1.36
    assert left.min() == 0 and (right <= 160).all() and (bottom <= 120).all() and len(set(left)) > 20


def test_a_picture_too_long_for_any_crop_gives_its_middle():
    picture = noise("RGB", (300, 10))
    found = random_resized_crop(picture, 8, (0.9, 1.0), np.random.default_rng(0))
    middle = picture.crop(((300 - 13) // 2, 0, (300 - 13) // 2 + 13, 10)).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(middle))


def test_flip_and_jitter_change_training_only_and_one_seed_gives_one_picture():
    picture = noise("RGB")
    plain = transform()(picture, None)
    mirrored = transform(flip=1.0)(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(mirrored, plain[..., ::-1])
    for jitter in ([0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.3]):
        changed = transform(jitter=jitter)
        one, same, other = (changed(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert (one == same).all() and (one != other).any() and (one != plain).any()
        np.testing.assert_array_equal(changed(picture, None), plain)


def test_brightness_is_a_factor_and_hue_turns_red_into_green():
    grey, red = Image.new("RGB", (24, 24), (100, 100, 100)), Image.new("RGB", (24, 24), (200, 0, 0))
    unit = {"mean": [0.0], "std": [1.0]}
    factors = [transform(jitter=[0.4, 0, 0, 0], **unit)(grey, np.random.default_rng(i)).mean() * 2.55 for i in range(60)]
    assert 0.6 <= min(factors) < 0.7 and 1.3 < max(factors) <= 1.401
    turned = [transform(jitter=[0, 0, 0, 0.5], **unit)(red, np.random.default_rng(i)).mean((1, 2)) for i in range(40)]
    assert all(abs(max(rgb) - 200 / 255) < 0.02 for rgb in turned) and {int(np.argmax(rgb)) for rgb in turned} == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 0}, "transform.side=0"),
        ({"crop_scale": [0.5, 1.5]}, "crop_scale"),
        ({"flip": 2}, "flip=2"),
        ({"jitter": [0, 0, 0]}, "jitter"),
        ({"mean": [0, 0]}, "encoder.image.mean"),
        ({"std": [0.0]}, "encoder.image.std"),
    ],
)
def test_a_wrong_key_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        transform(**change)
