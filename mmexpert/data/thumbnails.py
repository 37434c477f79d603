"""Small pictures of samples for reports: a clip's views and images as a few thousand bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.frames import ClipFrames

VIEW_SIZE = (96, 48)  # pixels: frames across, bins up
IMAGE_SIDE = 96  # pixels of the longer side
_DARK, _BRIGHT = 1.0, 99.8  # percentiles of a view that become 0 and 255: one echo must not darken the rest

Thumbnail = dict[str, np.ndarray]
"""uint8 by view: a radar view [48, 96], row 0 = highest bin; an image [96, 96] or [96, 96, 3], centred on black."""


def thumbnail(sample: Mapping[str, Any]) -> Thumbnail:
    """The pictures of an evaluation sample: {'radar': {view: [F, T]}} or {'image': [C, S, S]} of any scale; empty for neither."""
    if "radar" in sample:
        radar = sample["radar"]
        views = radar.views() if isinstance(radar, ClipFrames) else radar
        return {name: small_view(np.asarray(view)) for name, view in views.items() if name != "mask"}
    image = sample.get("image")
    if image is None or np.ndim(image) != 3:  # a row of a feature table is no picture
        return {}
    return {"image": small_image(np.asarray(image))}


def small_view(view: np.ndarray) -> np.ndarray:
    """[F, T] -> uint8 [48, 96], bins rise upward as in plots."""
    dark, bright = np.nanpercentile(view, (_DARK, _BRIGHT)) if view.size else (0.0, 1.0)
    return np.asarray(Image.fromarray(_bytes(view, dark, bright)[::-1]).resize(VIEW_SIZE, Image.Resampling.BOX))


def small_image(image: np.ndarray) -> np.ndarray:
    """[C, H, W], 1 or 3 channels, normalised or not -> uint8 [96, 96(, 3)]: its whole range, all channels alike."""
    shown = _bytes(image, float(np.nanmin(image)), float(np.nanmax(image)))
    return framed(Image.fromarray(shown[0] if len(shown) != 3 else shown.transpose(1, 2, 0)))


def framed(picture: Image.Image) -> np.ndarray:
    """A picture of any size, L or RGB, made small and centred on black."""
    picture = picture.copy()
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    frame = Image.new(picture.mode, (IMAGE_SIDE, IMAGE_SIDE))
    frame.paste(picture, ((IMAGE_SIDE - picture.width) // 2, (IMAGE_SIDE - picture.height) // 2))
    return np.asarray(frame)


def _bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (255 * np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
