"""Augmentation that is safe for radiographs: small warps and grey values; nothing that moves a side letter to the other side.

Pictures are float32 [C, S, S] in 0..1 before and after. All draws come from one generator, in one fixed order and number: no preset
and no picture moves another draw.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mmexpert.types import ConfigError

FLIPS = ("none", "canonical", "swap")
_SIDE_WORD = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}
_BOX_ASPECT = 2.0  # an erased box is at most this much longer than wide, or wider than long


@dataclass(frozen=True)
class Ranges:
    """Half-widths of uniform draws around "no change": rotation in degrees, shift in sides; gamma as (below, above) 1.

    noise_sd: of values 0..1, with probability noise. erase: probability of one box of 2-8 % of the area. blur: sigma range, pixels.
    """

    rotation: float
    shift: float
    scale: float
    brightness: float
    contrast: float
    gamma: tuple[float, float]
    noise_sd: float
    noise: float
    erase: float
    blur: tuple[float, float]


_STANDARD = Ranges(
    rotation=10,
    shift=0.05,
    scale=0.1,
    brightness=0.1,
    contrast=0.15,
    gamma=(0.2, 0.25),
    noise_sd=0.02,
    noise=0.3,
    erase=0.0,
    blur=(0.0, 0.0),
)
_LIGHT = replace(_STANDARD, rotation=5, shift=0.025, scale=0.05, brightness=0.05, contrast=0.075, gamma=(0.1, 0.125), noise_sd=0.01)
PRESETS = {
    "none": None,
    "light": _LIGHT,  # half of every range; noise is as likely, and half as strong
    "standard": _STANDARD,
    "strong": replace(_STANDARD, erase=0.25, blur=(0.1, 1.0)),
}


def preset(name: str) -> Ranges | None:
    """The ranges of dataset.augmentation; None = leave pictures as they are. Raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"dataset.augmentation={name}: choose {', '.join(PRESETS)}")
    return PRESETS[name]


def augment(picture: np.ndarray, ranges: Ranges, rng: np.random.Generator) -> np.ndarray:
    """One affine warp (bilinear; what comes in is the picture's minimum), contrast, brightness, gamma, and by chance blur, box, noise."""
    unit = rng.uniform(-1, 1, 7)
    chance = rng.random(6)
    angle, across, down, zoom, bright, contrast, bend = unit
    picture = warped(picture, angle * ranges.rotation, (down * ranges.shift, across * ranges.shift), 1 + zoom * ranges.scale)
    mean = picture.mean(dtype=np.float64)
    picture = (picture - mean) * (1 + contrast * ranges.contrast) + mean + bright * ranges.brightness
    gamma = 1 + bend_between(bend, *ranges.gamma)
    picture = np.clip(picture, 0, 1) ** gamma
    low, high = ranges.blur
    if high > 0:
        sigma = low + chance[0] * (high - low)
        picture = ndimage.gaussian_filter(picture, (0, sigma, sigma), mode="nearest")
    if chance[1] < ranges.erase:
        picture = erased(picture, chance[2:])
    noise_chance, noise_seed = rng.random(), rng.integers(2**63)
    if noise_chance < ranges.noise:  # a stream of its own: as many draws from rng, whatever the size of the picture
        noise = np.random.Generator(np.random.PCG64(noise_seed)).standard_normal(picture.shape[1:])
        picture = picture + ranges.noise_sd * noise
    return np.clip(picture, 0, 1).astype(np.float32)


def bend_between(unit: float, below: float, above: float) -> float:
    """A draw in -1..1 stretched over -below..above, uniform there."""
    return (unit + 1) / 2 * (below + above) - below


def warped(picture: np.ndarray, angle: float, shift: tuple[float, float], scale: float) -> np.ndarray:
    """Turned by angle degrees (counter-clockwise), magnified by scale about the middle, moved by shift = (down, right) sides."""
    radians = np.deg2rad(angle)
    turn = np.array([[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]]) / scale  # output -> input, rows first
    size = np.array(picture.shape[1:])
    middle = (size - 1) / 2
    offset = middle - turn @ (middle + np.array(shift) * size)
    border = float(picture.min())
    return np.stack([ndimage.affine_transform(plane, turn, offset, order=1, mode="constant", cval=border) for plane in picture])


def erased(picture: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One box of 2-8 % of the area filled with the picture's mean; draws [4] in 0..1: area, shape, place."""
    rows, columns = picture.shape[1:]
    area = (0.02 + 0.06 * draws[0]) * rows * columns
    aspect = _BOX_ASPECT ** (2 * draws[1] - 1)
    height, width = (min(n, max(1, round(np.sqrt(x)))) for n, x in ((rows, area * aspect), (columns, area / aspect)))
    top, left = int(draws[2] * (rows - height + 1)), int(draws[3] * (columns - width + 1))
    picture = picture.copy()
    picture[:, top : top + height, left : left + width] = picture.mean()
    return picture


def mirrored(picture: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(picture[..., ::-1])


def tells_side(text: str) -> bool:
    """Whether a text says left or right, which a mirror makes false."""
    return _SIDE_WORD.search(text) is not None


def swap_sides(text: str) -> str:
    """The words left and right exchanged, with their capitals."""

    def other(match: re.Match) -> str:
        word, swapped = match[0], _OTHER[match[0].lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE_WORD.sub(other, text)
