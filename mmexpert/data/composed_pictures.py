"""Pictures of composed retrieval as the image tower sees them: RGB, padded, resized, cropped; the same in training and evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmexpert.data.findings import DataFault
from mmexpert.data.padding import Padding
from mmexpert.types import ConfigError


class ComposedPicture:
    """side: pixels of the square crop; mean, std: of [0, 1] RGB, one value or three; pad, target_ratio: data.padding.Padding.

    A callable picture -> float32 [3, side, side]: no flip and no random crop (a caption may say left or "closer"), no EXIF rotation (as
    published). Raises ConfigError for constants that do not fit.
    """

    def __init__(self, pad: str, target_ratio: float, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.padding, self.side = Padding(pad, target_ratio), side
        constants = []
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, 3) or (name == "std" and min(values) <= 0):
                raise ConfigError(f"dataset.transform.{name}={list(values)}: one value or three, std above 0")
            constants.append(np.broadcast_to(np.array(values, np.float32), (3,))[:, None, None])
        self.mean, self.std = constants

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """Shorter side to `side` (bicubic, antialiased; the longer one truncated to int), centre crop, standardised."""
        picture = self.padding(picture.convert("RGB"))
        shorter = min(picture.size)
        width, height = (self.side if size == shorter else int(self.side * size / shorter) for size in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.side) / 2), round((height - self.side) / 2)
        picture = picture.crop((left, top, left + self.side, top + self.side))
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
        return (pixels - self.mean) / self.std

    def told(self) -> dict[str, object]:
        """What a protocol says of the transform."""
        return {"pad": self.padding.pad, "target_ratio": self.padding.target_ratio, "side": self.side}


def open_picture(path: Path, name: str) -> Image.Image:
    """The decoded picture, in its own mode. Raises DataFault naming it: a picture is never left out because it does not decode."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataFault(
            f"{path} (picture {name}) does not decode ({error}); fetch it again, or remove it and set dataset.allow_missing=true",
            "undecodable",
            str(path),
            name,
        ) from error
