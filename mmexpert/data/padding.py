"""Black borders that make a picture squarer before it is resized and cropped (CLIP4Cir, arXiv 2308.11485)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmexpert.data.pictures import PictureTransform
from mmexpert.types import ConfigError

PADS = ("none", "square", "target")


class Padding:
    """pad: none | square (SquarePad) | target (TargetPad: only pictures whose longer side is at least target_ratio times the shorter,
    and only up to that ratio). A callable RGB picture -> RGB picture; RGB first, else a palette picture's border has the colour of its
    entry 0. Odd differences leave the picture one pixel short of square, as published: figures depend on it."""

    def __init__(self, pad: str, target_ratio: float) -> None:
        if pad not in PADS:
            raise ConfigError(f"dataset.transform.pad={pad}: choose {', '.join(PADS)}")
        if target_ratio < 1:
            raise ConfigError(f"dataset.transform.target_ratio={target_ratio}: 1 or more (longer over shorter side)")
        self.pad, self.target_ratio = pad, target_ratio

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture on a black canvas. Raises ValueError for a picture that is not RGB."""
        if picture.mode != "RGB":
            raise ValueError(f"the picture is {picture.mode}: convert it to RGB before it is padded")
        left, top = self.border(*picture.size)
        if not left and not top:
            return picture
        canvas = Image.new("RGB", (picture.width + 2 * left, picture.height + 2 * top))
        canvas.paste(picture, (left, top))
        return canvas

    def border(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (left = right, top = bottom) that a picture of this size gets."""
        longer = max(width, height)
        if self.pad == "none" or (self.pad == "target" and longer / min(width, height) < self.target_ratio):
            return 0, 0
        wanted = longer if self.pad == "square" else longer / self.target_ratio
        return max(int((wanted - width) / 2), 0), max(int((wanted - height) / 2), 0)


class PaddedPicture:
    """Padding, then the evaluation rule of data.pictures with side, mean and std, in training too: no flip and no random crop, since a
    caption may say left or closer."""

    def __init__(self, pad: str, target_ratio: float, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.padding = Padding(pad, target_ratio)
        self.picture = PictureTransform(side, mean, std, None, 0.0, [0, 0, 0, 0])

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None) -> np.ndarray:
        """An RGB picture of any size -> float32 [3, S, S]; nothing is drawn from rng."""
        return self.picture(self.padding(picture), None)

    def told(self) -> dict[str, object]:
        """What a protocol says of the transform."""
        return {"pad": self.padding.pad, "target_ratio": self.padding.target_ratio, "side": self.picture.side}
