"""From a picture file to what a tower sees: decoded, upright, RGB, resized, cropped, normalised (spec/retrieval.md section 4).

Pictures are PIL images in RGB until they become float32 [3, S, S]. A transform of your own (`dataset.transform._target_`) is any object
that is called with (picture, generator or None) and gives such an array; None means evaluation, where nothing is random.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from mmexpert.data.image_files import image_fault, loaded, opened
from mmexpert.types import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_LEAST_RATIO, _MOST_RATIO = 3 / 4, 4 / 3  # of a random crop, width to height
_TRIES = 10  # crops drawn until one fits
_CHANNELS = 3


class PictureTransform:
    """side: S. mean, std: of the tower, one or three numbers each, of pixels in 0..1.

    crop_scale: share of the area that training's random crop keeps, or None = the evaluation rule in training too. flip: probability.
    jitter: half-widths of brightness, contrast, saturation (factors about 1) and hue (turns, 0..0.5), in random order. Raises ConfigError.
    """

    def __init__(
        self,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_scale: Sequence[float] | None,
        flip: float,
        jitter: Sequence[float],
    ) -> None:
        if side < 1:
            raise ConfigError(f"dataset.transform.side={side}: pixels, 1 or more")
        if crop_scale is not None and not (len(crop_scale) == 2 and 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ConfigError(f"dataset.transform.crop_scale={list(crop_scale)}: two shares [low, high] of the area in 0..1, or null")
        if not 0 <= flip <= 1:
            raise ConfigError(f"dataset.transform.flip={flip}: a probability, 0..1")
        if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
            raise ConfigError(f"dataset.transform.jitter={list(jitter)}: [brightness, contrast, saturation, hue], 0 or more; hue to 0.5")
        self.side, self.crop_scale, self.flip, self.jitter = side, crop_scale, flip, tuple(jitter)
        self.mean, self.std = _by_channel(mean, "mean"), _by_channel(std, "std")
        if self.std.min() <= 0:
            raise ConfigError(f"encoder.image.std={list(std)}: above 0")

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None) -> np.ndarray:
        """An RGB picture of any size -> float32 [3, S, S]; rng is None in evaluation."""
        if rng is None or self.crop_scale is None:
            picture = centre_crop(shorter_side(picture, self.side), self.side)
        else:
            picture = random_resized_crop(picture, self.side, self.crop_scale, rng)
        if rng is not None:
            mirror, order, draws = rng.random(), rng.permutation(4), rng.uniform(-1, 1, 4)  # always: no key moves another draw
            if mirror < self.flip:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            picture = jittered(picture, order.tolist(), (draws * self.jitter).tolist())
        return normalized(picture, self.mean, self.std)

    def told(self) -> dict[str, object]:
        """What a protocol says of the transform."""
        crop = self.crop_scale if self.crop_scale is None else list(self.crop_scale)
        return {"side": self.side, "crop_scale": crop, "flip": self.flip, "jitter": list(self.jitter)}


def open_picture(path: Path, record: str, exif: bool) -> Image.Image:
    """The file's picture in RGB, upright as its EXIF tag says where exif is true. Raises DataFault naming file and record.

    Transparency is dropped and a palette expanded, as CLIP's own preprocessing does; 16-bit grey is scaled to 8 bits, not clipped.
    """
    return rgb(loaded(opened(path, record), path, record, exif), path, record)


def rgb(image: Image.Image, path: Path, record: str) -> Image.Image:
    """An image of any mode in RGB. Raises DataFault where its white is unknown."""
    if image.mode[0] not in "IF":
        return image.convert("RGBA" if image.has_transparency_data and image.mode == "P" else "RGB").convert("RGB")
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise image_fault(path, record, "wrong_dtype", f"stored as {image.mode}, whose white is unknown; store it with 8 or 16 bits")
    return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")


def shorter_side(picture: Image.Image, side: int) -> Image.Image:
    """Bicubic, antialiased: the shorter side becomes `side`, the longer one in proportion, truncated."""
    width, height = picture.size
    if min(width, height) == side:
        return picture
    longer = int(side * max(width, height) / min(width, height))
    return picture.resize((side, longer) if width <= height else (longer, side), Image.Resampling.BICUBIC)


def centre_crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle side x side pixels; an odd pixel goes as in torchvision."""
    width, height = picture.size
    left, top = int(round((width - side) / 2)), int(round((height - side) / 2))
    return picture.crop((left, top, left + side, top + side))


def random_resized_crop(picture: Image.Image, side: int, scale: Sequence[float], rng: np.random.Generator) -> Image.Image:
    """A box of a random share of the area and a ratio of 3/4..4/3, resized; the largest middle one where ten tries do not fit."""
    width, height = picture.size
    box = None
    for area, shape, across, down in rng.random((_TRIES, 4)):
        area = width * height * (scale[0] + area * (scale[1] - scale[0]))
        ratio = math.exp(math.log(_LEAST_RATIO) + shape * math.log(_MOST_RATIO / _LEAST_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box is None and 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            box = (left, top, left + w, top + h)
    if box is None:
        w = min(width, max(1, round(height * _MOST_RATIO)))
        h = min(height, max(1, round(width / _LEAST_RATIO)))
        left, top = (width - w) // 2, (height - h) // 2
        box = (left, top, left + w, top + h)
    return picture.crop(box).resize((side, side), Image.Resampling.BICUBIC)


def jittered(picture: Image.Image, order: Sequence[int], changes: Sequence[float]) -> Image.Image:
    """Brightness, contrast and saturation times 1 + change, hue turned by its change, in the given order; a change of 0 does nothing."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in order:
        if changes[kind] and kind < len(enhancers):
            picture = enhancers[kind](picture).enhance(max(0.0, 1 + changes[kind]))
        elif changes[kind]:
            hue, saturation, value = picture.convert("HSV").split()
            turned = np.asarray(hue) + np.uint8(round(changes[kind] * 255) % 256)  # wraps round
            picture = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    return picture


def normalized(picture: Image.Image, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """RGB [S, S] -> float32 [3, S, S]: (pixel / 255 - mean) / std, mean and std [3, 1, 1]."""
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray((pixels - mean) / std)


def _by_channel(numbers: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(numbers, np.float32).reshape(-1, 1, 1)
    if len(values) not in (1, _CHANNELS):
        raise ConfigError(f"encoder.image.{name}={list(numbers)}: one number or three; pictures are RGB")
    return np.broadcast_to(values, (_CHANNELS, 1, 1))
