"""Decoding against formulas and Pillow, and augmentation that keeps a side letter where it was."""

import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmexpert.data.augment import PRESETS, augment, preset, swap_sides, warped
from mmexpert.data.findings import DataFault
from mmexpert.data.radiographs import FilmTransform, check_header, decode, per_image, resized, standardized
from mmexpert.data.sampling import sample_rng
from mmexpert.types import ConfigError


def grey(rows=20, columns=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8)


def write(path, pixels, **given):
    Image.fromarray(pixels).save(path, **given)
    return path


def transform(side=32, channels=1, resize="stretch", window="auto"):
    return FilmTransform(side, channels, resize, window)


RAMP = np.linspace(0, 40000, 64 * 64).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_ramp_keeps_its_values_above_255(tmp_path, suffix):
    film = decode(write(tmp_path / f"ramp{suffix}", RAMP), "r")
    assert film.deep
    np.testing.assert_array_equal(film.pixels[0], RAMP)
    picture, flat = transform(side=64)(tmp_path / f"ramp{suffix}", "r")
    low, high = np.percentile(RAMP, [1, 99.5])
    np.testing.assert_allclose(picture[0], np.clip((RAMP - low) / (high - low), 0, 1), atol=1e-5)
    assert len(np.unique(picture)) > 3000 and not flat


def test_the_windows_of_a_16_bit_film_by_formula(tmp_path):
    path = write(tmp_path / "ramp.png", RAMP)
    none, _ = transform(64, window="none")(path, "r")
    np.testing.assert_allclose(none[0], RAMP / 65535, atol=1e-6)
    fixed, _ = transform(64, window=[1000, 3000])(path, "r")
    np.testing.assert_allclose(fixed[0], np.clip((RAMP.astype(float) - 1000) / 2000, 0, 1), atol=1e-5)
    with pytest.raises(DataFault, match="names no window"):
        transform(window="dicom")(path, "r")


def test_big_endian_and_float_tiffs_are_read_as_they_are(tmp_path):
    (tmp_path / "big.tif").write_bytes(big_endian_tiff(RAMP))
    np.testing.assert_array_equal(decode(tmp_path / "big.tif", "r").pixels[0], RAMP)
    waves = np.linspace(-3, 5, 400, dtype=np.float32).reshape(20, 20)
    np.testing.assert_array_equal(decode(write(tmp_path / "f.tif", waves), "r").pixels[0], waves)
    with pytest.raises(DataFault, match="full scale"):
        transform(window="none")(tmp_path / "f.tif", "r")
    waves[3, 3] = np.nan
    with pytest.raises(DataFault, match="NaN"):
        decode(write(tmp_path / "nan.tif", waves), "r")


def big_endian_tiff(pixels):
    rows, columns = pixels.shape
    tags = [(256, columns), (257, rows), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, rows), (279, pixels.nbytes)]
    directory = len(tags).to_bytes(2, "big")
    for tag, value in tags:
        directory += tag.to_bytes(2, "big") + (4).to_bytes(2, "big") + (1).to_bytes(4, "big") + value.to_bytes(4, "big")
    return b"MM\x00*" + (8 + pixels.nbytes).to_bytes(4, "big") + pixels.astype(">u2").tobytes() + directory + bytes(4)


def test_colour_becomes_luma_and_grey_is_copied(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = write(tmp_path / "rgb.png", colour)
    luma, _ = transform(8)(path, "r")
    np.testing.assert_allclose(luma[0], colour @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    kept, _ = transform(8, channels=3)(path, "r")
    np.testing.assert_allclose(kept, colour.transpose(2, 0, 1) / 255, atol=1e-6)
    copied, _ = transform(8, channels=3)(write(tmp_path / "grey.png", grey(8, 8)), "r")
    assert (copied[0] == copied[1]).all() and (copied[0] == copied[2]).all()
    np.testing.assert_allclose(copied[0], grey(8, 8) / 255, atol=1e-6)


def test_palette_is_expanded_alpha_lies_on_black_and_exif_rotation_is_applied(tmp_path):
    colour = np.zeros((6, 6, 3), np.uint8)
    colour[:, 3:] = (200, 100, 50)
    Image.fromarray(colour).quantize(4).save(tmp_path / "palette.png")
    np.testing.assert_allclose(decode(tmp_path / "palette.png", "r").pixels, colour.transpose(2, 0, 1) / 255, atol=1e-6)
    alpha = np.full((6, 6, 4), 255, np.uint8)
    alpha[..., 3] = 51
    np.testing.assert_allclose(decode(write(tmp_path / "alpha.png", alpha), "r").pixels, 0.2, atol=1e-6)
    half = np.full((6, 6, 2), 102, np.uint8)
    Image.fromarray(half, "LA").save(tmp_path / "la.png")
    np.testing.assert_allclose(decode(tmp_path / "la.png", "r").pixels, 0.16, atol=1e-6)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    turned = decode(write(tmp_path / "exif.png", grey(), exif=exif), "r")
    np.testing.assert_allclose(turned.pixels[0], np.rot90(grey(), -1) / 255, atol=1e-6)


def test_pad_keeps_the_aspect_and_fills_with_the_images_minimum():
    tall = np.full((1, 80, 40), 0.5, np.float32)
    tall[:, 20:60, 10:30] = 1  # a rectangle of 2 : 1
    padded = resized(tall, 40, "pad")[0]
    assert padded.shape == (40, 40)
    np.testing.assert_array_equal(padded[:, :10], np.float32(0.5))
    np.testing.assert_array_equal(padded[:, 30:], np.float32(0.5))
    bright = padded > 0.9
    assert bright.any(1).sum() == 20 and bright.any(0).sum() == 10  # half the picture each way, as before


def test_stretch_and_crop_are_what_pillow_makes_of_them():
    pixels = (grey(50, 80) / 255).astype(np.float32)
    image = Image.fromarray(pixels)
    stretched = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(pixels[None], 24, "stretch")[0], stretched)
    shorter = np.asarray(image.resize((38, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized(pixels[None], 24, "crop")[0], shorter[:, 7:31])
    assert resized(pixels[None, :1], 24, "pad").shape == (1, 24, 24)  # one pixel high


def test_per_image_normalisation_has_mean_0_and_sd_1_and_bears_a_constant_picture():
    found = per_image((grey() / 255).astype(np.float32)[None])
    assert abs(found.mean()) < 1e-5 and found.std() == pytest.approx(1, abs=1e-5) and found.dtype == np.float32
    assert not per_image(np.full((1, 4, 4), 0.3, np.float32)).any()
    fitted = standardized(np.ones((2, 1, 1), np.float32), np.array([0.5, 0], np.float32), np.array([0.25, 2], np.float32))
    assert fitted.ravel().tolist() == [2, 0.5]


def test_a_constant_deep_film_becomes_zeros_and_is_flagged(tmp_path):
    picture, flat = transform()(write(tmp_path / "flat.png", np.full((9, 9), 700, np.uint16)), "r")
    assert flat and not picture.any()


FAULTS = {
    "missing_file": lambda path: None,
    "empty_file": lambda path: path.write_bytes(b""),
    "not_an_image": lambda path: path.write_text("no picture"),
    "truncated": lambda path: path.write_bytes(write(path, grey(64, 64)).read_bytes()[:900]),
    "wrong_shape": lambda path: Image.fromarray(grey()).save(path, save_all=True, append_images=[Image.fromarray(grey(seed=1))]),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_file_that_is_no_film_is_found_by_its_header_and_named(tmp_path, code):
    path = tmp_path / "P1_film.png"
    FAULTS[code](path)
    with pytest.raises(DataFault, match=r"P1_film.png \(record P1\)") as raised:
        check_header(path, "P1")
    assert raised.value.code == code


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_file_cut_anywhere_is_found_before_training(tmp_path, suffix):
    whole = write(tmp_path / f"a{suffix}", grey(64, 64)).read_bytes()
    check_header(tmp_path / f"a{suffix}", "a")
    cut = tmp_path / f"cut{suffix}"
    for share in (0.1, 0.3, 0.5, 0.8, 0.95):
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataFault):
            check_header(cut, "a")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (10000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(DataFault, match="9000 x 10000 pixels") as raised:
        check_header(tmp_path / "large.png", "r")
    assert raised.value.code == "too_many_pixels"


def dicom(path, pixels, photometric="MONOCHROME2", **tags):
    pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    film = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.Rows, film.Columns = pixels.shape[-2:]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, photometric
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = pixels.astype("<u2").tobytes()
    for tag, value in tags.items():
        setattr(film, tag, value)
    film.save_as(path, enforce_file_format=True)
    return path


STORED = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_monochrome1_is_the_inverse_of_monochrome2_under_every_window(tmp_path):
    tags = {"WindowCenter": 1500, "WindowWidth": 800}
    one = dicom(tmp_path / "one.dcm", 4095 - STORED, "MONOCHROME1", **tags | {"WindowCenter": 4095 - 1500 + 1})
    two = dicom(tmp_path / "two.dcm", STORED, **tags)
    for window in ("auto", "dicom", [1000, 3000]):
        pictures = [transform(64, window=window)(path, "r")[0] for path in (one, two)]
        np.testing.assert_allclose(*pictures, atol=1e-5)
    np.testing.assert_allclose(pictures[1][0], np.clip((STORED - 1000.0) / 2000, 0, 1), atol=1e-5)
    by_standard = np.clip((STORED - 1499.5) / 799 + 0.5, 0, 1)
    np.testing.assert_allclose(transform(64, window="dicom")(two, "r")[0][0], by_standard, atol=1e-5)


def test_rescale_slope_and_intercept_come_first(tmp_path):
    path = dicom(tmp_path / "ct.dcm", STORED, RescaleSlope=2, RescaleIntercept=-1024)
    np.testing.assert_array_equal(decode(path, "r").pixels[0], STORED * 2.0 - 1024)


def test_several_frames_and_text_are_no_dicom_films(tmp_path):
    check_header(dicom(tmp_path / "one.dcm", STORED), "r")
    with pytest.raises(DataFault, match="2 frames"):
        check_header(dicom(tmp_path / "two.dcm", np.stack([STORED, STORED]), NumberOfFrames=2), "r")
    (tmp_path / "text.dcm").write_text("no film")
    with pytest.raises(DataFault, match="no DICOM file"):
        check_header(tmp_path / "text.dcm", "r")


def test_without_pydicom_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "film.dcm").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"pip install 'mmexpert\[dicom\]'"):
        decode(tmp_path / "film.dcm", "r")


LETTER_R = np.array([[int(dot) for dot in row] for row in ["11110", "10001", "10001", "11110", "10100", "10010", "10001"]], np.float32)


def film_with_letter(side=64):
    """A film with an R of 2 x 2 dots near the upper left edge."""
    picture = np.zeros((1, side, side), np.float32)
    letter = np.kron(LETTER_R, np.ones((2, 2), np.float32))
    picture[0, 12 : 12 + letter.shape[0], 12 : 12 + letter.shape[1]] = letter
    return picture, letter


def likeness(picture, letter):
    """The best correlation of a template, mean 0, with the picture, at any place and at small angles."""
    templates = [ndimage.rotate(np.pad(letter, 3), angle, reshape=False, order=1) for angle in (-8, -4, 0, 4, 8)]
    return max(float(ndimage.correlate(picture - np.median(picture), t - t.mean(), mode="constant").max()) for t in templates)


@pytest.mark.parametrize("name", ["light", "standard"])
def test_under_standard_the_letter_r_is_never_mirrored_and_stays_on_its_side(name):
    picture, letter = film_with_letter()
    for epoch in range(40):
        seen = augment(picture, preset(name), sample_rng(0, epoch, "film", 0))[0]
        middle = ndimage.center_of_mass(np.where(seen > 0.5, seen, 0))
        assert middle[0] < 32 and middle[1] < 32
        assert likeness(seen, letter) > likeness(seen, letter[:, ::-1])


def test_that_test_sees_a_mirrored_letter():
    picture, letter = film_with_letter()
    mirrored = picture[0, :, ::-1].copy()
    mirrored = np.roll(mirrored, -28, axis=1)  # back to the upper left
    assert likeness(mirrored, letter) < likeness(mirrored, letter[:, ::-1])


def test_a_warp_turns_counter_clockwise_magnifies_and_moves_down_and_right():
    spot = np.zeros((1, 41, 41), np.float32)
    spot[0, 20, 30] = 1  # to the right of the middle (20, 20)
    assert np.argwhere(warped(spot, 90, (0, 0), 1)[0] > 0.9).tolist() == [[10, 20]]
    assert np.argwhere(warped(spot, 0, (0.1, 5 / 41), 1)[0] > 0.8).tolist() == [[24, 35]]
    assert ndimage.center_of_mass(warped(spot, 0, (0, 0), 1.5)[0]) == pytest.approx((20, 35), abs=0.2)
    lifted = warped(spot + 0.25, 0, (0.5, 0), 1)[0]
    np.testing.assert_allclose(lifted[:18], 0.25)  # what comes in is the picture's minimum


@pytest.mark.parametrize("name", [name for name, ranges in PRESETS.items() if ranges])
def test_an_augmented_film_stays_float32_in_0_to_1_and_depends_on_its_draw_only(name):
    picture = ndimage.gaussian_filter(np.random.default_rng(0).random((3, 48, 48)), (0, 3, 3)).astype(np.float32)
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    seen = [augment(picture, preset(name), sample_rng(1, epoch, "a", repeat)) for epoch in range(3) for repeat in range(2)]
    assert all(x.dtype == np.float32 and x.shape == picture.shape and x.min() >= 0 and x.max() <= 1 for x in seen)
    assert len({x.tobytes() for x in seen}) == 6
    np.testing.assert_array_equal(seen[3], augment(picture, preset(name), sample_rng(1, 1, "a", 1)))


def test_the_size_of_a_film_and_the_preset_move_no_later_draw():
    after = set()
    for name in ("light", "standard", "strong"):
        for side in (16, 33):
            rng = sample_rng(0, 0, "a", 0)
            augment(np.random.default_rng(0).random((1, side, side)).astype(np.float32), preset(name), rng)
            after.add(rng.random())
    assert len(after) == 1


def test_grey_values_stay_within_the_ranges_of_standard():
    flat = np.full((1, 16, 16), 0.5, np.float32)
    levels = np.array([augment(flat, preset("standard"), sample_rng(0, epoch, "a", 0)).mean() for epoch in range(500)])
    low, high = 0.4**1.25, 0.6**0.8  # brightness +-.1, then gamma
    assert low - 0.01 < levels.min() < low + 0.03 and high - 0.03 < levels.max() < high + 0.01
    noisy = [augment(flat, preset("standard"), sample_rng(0, epoch, "a", 0)).std() for epoch in range(500)]
    shares = np.array(noisy) > 0.005
    assert 0.24 < shares.mean() < 0.36 and np.median(np.array(noisy)[shares]) == pytest.approx(0.02, rel=0.1)


def test_left_and_right_change_places_in_a_text():
    assert swap_sides("Left hip, right stem; RIGHT leftover upright") == "Right hip, left stem; LEFT leftover upright"


def test_a_word_that_is_no_preset_is_an_error():
    with pytest.raises(ConfigError, match="dataset.augmentation=hard: choose none, light, standard, strong"):
        preset("hard")
    for change in ({"channels": 2}, {"resize": "fit"}, {"window": "auto5"}, {"window": [3, 1]}, {"side": 0}):
        with pytest.raises(ConfigError, match=f"dataset.{next(iter(change))}="):
            transform(**change)
