"""From an image file to what a tower sees: decoding, window, resizing, normalisation. Augmentation: augment.py; DICOM: dicom.py.

Letters: C channels (1 or 3), H rows, W columns. 8-bit files become 0..1; deeper ones keep their stored values until the window
(16-bit colour, which Pillow cuts to 8 bits, is no film).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.dicom import dicom_header, read_dicom
from mmexpert.data.findings import DataFault
from mmexpert.data.image_files import check_ending, check_pixels, image_fault, loaded, opened
from mmexpert.types import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm")
RESIZES = ("pad", "stretch", "crop")
_WINDOWS = ("auto", "none", "percentile", "dicom")
_PERCENTILES = (1.0, 99.5)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_SPREAD = 1e-6  # least standard deviation: a constant picture becomes zeros


@dataclass(frozen=True)
class Film:
    """pixels [C, H, W] float32: 0..1 where full_scale is 1, else stored values with that maximum (None: unknown).

    deep: more than 8 bits. dicom_window: (centre, width) that the file itself names.
    """

    pixels: np.ndarray
    deep: bool
    full_scale: float | None
    dicom_window: tuple[float, float] | None = None


@dataclass(frozen=True)
class FilmTransform:
    """How a file becomes a picture of side x side pixels in 0..1.

    channels: 1 or 3. resize: pad | stretch | crop. window: auto | none | percentile | dicom | [lo, hi] in values after decoding
    (0..1 for 8-bit files). Raises ConfigError for what is none of these.
    """

    side: int
    channels: int
    resize: str
    window: Any

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"dataset.channels={self.channels}: 1 (grey) or 3 (red, green, blue)")
        if self.side < 1:
            raise ConfigError(f"dataset.side={self.side}: pixels, 1 or more")
        if self.resize not in RESIZES:
            raise ConfigError(f"dataset.resize={self.resize}: choose {', '.join(RESIZES)}")
        if isinstance(self.window, str):
            right = self.window in _WINDOWS
        else:
            right = self.window is not None and len(self.window) == 2 and self.window[0] < self.window[1]
        if not right:
            raise ConfigError(f"dataset.window={self.window}: choose {', '.join(_WINDOWS)}, or two values [lo, hi] with lo < hi")

    def __call__(self, path: Path, record: str) -> tuple[np.ndarray, bool]:
        """(float32 [C, side, side] in 0..1, is the film of one value only?). Raises DataFault naming file and record."""
        return self.film(decode(path, record), f"{path} (record {record})")

    def film(self, film: Film, where: str) -> tuple[np.ndarray, bool]:
        """The same of a decoded film; where: for messages."""
        pixels = windowed(film, self.window, where)
        flat = bool(film.pixels.min() == film.pixels.max())
        return np.clip(resized(with_channels(pixels, self.channels), self.side, self.resize), 0, 1), flat


def check_header(path: Path, record: str) -> None:
    """Raises DataFault where a film's header or ending is wrong; damage in the middle is found by decode() only."""
    if path.suffix.lower() == ".dcm":
        check_pixels(dicom_header(path, record), path, record)
    else:
        check_ending(path, record)


def decode(path: Path, record: str) -> Film:
    """The film of a file, C = 1 or 3: EXIF rotation applied, palette expanded, alpha composed on black. Raises DataFault."""
    if path.suffix.lower() == ".dcm":
        check_pixels(dicom_header(path, record), path, record)
        pixels, window = read_dicom(path, record)
        return Film(pixels[None], True, None, window)
    return film_of(loaded(opened(path, record), path, record, True), path, record)


def film_of(image: Image.Image, path: Path, record: str) -> Film:
    """The film of an upright image. Raises DataFault."""
    if image.mode[0] in "IF":  # never through convert("L"), which clips them at 255
        pixels = np.asarray(image).astype(np.float32)
        if not np.isfinite(pixels).all():
            raise image_fault(path, record, "non_finite", "holds NaN or infinity; mend or remove it")
        return Film(pixels[None], True, _full_scale(pixels, image.mode))
    if image.has_transparency_data:
        coloured = np.asarray(image.convert("RGBA"), np.float32) / 255
        pixels = coloured[..., :3] * coloured[..., 3:]
        pixels = pixels[..., :1] if image.mode == "LA" else pixels
    elif image.mode in ("L", "1"):
        pixels = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    else:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return Film(np.ascontiguousarray(pixels.transpose(2, 0, 1)), False, 1.0)


def pixel_digest(path: Path, record: str) -> str:
    """SHA-256 of the stored pixels, row by row, as the file's own type; empty for DICOM. Raises DataFault."""
    if path.suffix.lower() == ".dcm":
        return ""
    with opened(path, record) as image:
        return hashlib.sha256(np.asarray(loaded(image, path, record, True)).tobytes()).hexdigest()


def windowed(film: Film, window: Any, where: str) -> np.ndarray:
    """Pixels in 0..1, clipped; a constant image gives zeros under percentile. Raises DataFault where the window does not fit the file.

    auto: none for 8 bits, percentile beyond. dicom: the linear window of DICOM PS3.3 C.11.2.1.2.
    """
    if window == "auto":
        window = "percentile" if film.deep else "none"
    pixels = film.pixels
    if window == "none":
        if film.full_scale is None:
            message = f"{where}: the full scale of its values is unknown, which dataset.window=none needs; choose percentile or [lo, hi]"
            raise DataFault(message, "wrong_dtype")
        return pixels / np.float32(film.full_scale)
    if window == "dicom":
        if film.dicom_window is None:
            message = f"{where}: the file names no window, which dataset.window=dicom needs; choose auto, percentile or [lo, hi]"
            raise DataFault(message, "wrong_field")
        centre, width = film.dicom_window
        return np.clip((pixels - np.float32(centre - 0.5)) / np.float32(max(width - 1, _SPREAD)) + np.float32(0.5), 0, 1)
    low, high = np.percentile(pixels, _PERCENTILES) if window == "percentile" else window
    if high <= low:
        low, high = pixels.min(), pixels.max()  # all but a few pixels are equal: what is left shows the rest
    if high <= low:
        return np.zeros_like(pixels)
    return np.clip((pixels - np.float32(low)) / np.float32(high - low), 0, 1)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """[1 or 3, H, W] -> [channels, H, W]: colour becomes luma, grey is copied."""
    if len(pixels) == channels:
        return pixels
    return np.tensordot(_LUMA, pixels, 1)[None] if channels == 1 else np.repeat(pixels, 3, axis=0)


def resized(pixels: np.ndarray, side: int, kind: str) -> np.ndarray:
    """[C, H, W] -> [C, side, side], antialiased bilinear.

    pad: the longest side becomes `side`, the rest is the image's minimum; crop: the shortest does, and the middle is kept; stretch.
    """
    _, height, width = pixels.shape
    reference = {"pad": max(height, width), "crop": min(height, width)}
    rows, columns = (side, side) if kind == "stretch" else (max(1, round(n * side / reference[kind])) for n in (height, width))
    if (rows, columns) != (height, width):
        size = (columns, rows)
        pixels = np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in pixels])
    top, left = abs(rows - side) // 2, abs(columns - side) // 2
    if kind == "crop":
        return pixels[:, top : top + side, left : left + side]
    whole = np.full((len(pixels), side, side), pixels.min(), np.float32)
    whole[:, top : top + rows, left : left + columns] = pixels
    return whole


def standardized(pixels: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """(pixels - mean) / sd, mean and sd [C]."""
    return (pixels - mean[:, None, None]) / np.maximum(sd, _SPREAD)[:, None, None]


def per_image(pixels: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1 over all pixels of one picture; sd at least 1e-6."""
    return (pixels - pixels.mean(dtype=np.float64).astype(np.float32)) / max(np.float32(pixels.std(dtype=np.float64)), np.float32(_SPREAD))


def _full_scale(pixels: np.ndarray, mode: str) -> float | None:
    """What white is stored as: 65535 for integers that fit 16 bits, 1 for floats in 0..1."""
    limit = 1.0 if mode == "F" else 65535.0
    return limit if pixels.min() >= 0 and pixels.max() <= limit else None


def tower_constants(key: str, given: Sequence[float] | float | None, channels: int) -> np.ndarray:
    """The tower's mean or std by channel; three of RGB become their average for grey films, whose values they fit best."""
    values = np.array([] if given is None else given, np.float32).ravel()
    if channels == 1 and len(values) == 3:
        values = values.mean(keepdims=True)
    if len(values) == 1:
        values = np.repeat(values, channels)
    if len(values) != channels or (key == "std" and values.min() <= 0):
        raise ConfigError(
            f"dataset.normalize=encoder: encoder.image.{key} is {given}, expected one value for each of "
            f"dataset.channels={channels}; choose an encoder/image that names it, or dataset.normalize=per_image"
        )
    return values
