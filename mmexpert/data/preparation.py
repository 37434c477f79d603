"""What a trained model asks of a picture, stored beside its weights: from a file, PIL image or uint8 array to the tower's input.

A data set tells it as a plain node (`_target_` and values); mmexpert.load builds it again. Nothing is random here.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmexpert.data.pictures import open_picture, rgb
from mmexpert.data.radiographs import FilmTransform, decode, film_of, per_image, standardized
from mmexpert.types import ConfigError

Picture = Path | Image.Image | np.ndarray
"""A file, a PIL image, or uint8 [H, W, 3] (or grey [H, W])."""


class FilmPreparation:
    """Films as data.image_folder serves them in evaluation.

    normalize: per_image | none | constants (mean, sd by channel: of the tower, or fitted on the training part).
    """

    def __init__(self, transform: FilmTransform, normalize: str, mean: list[float] | None, sd: list[float] | None) -> None:
        if normalize not in ("per_image", "none", "constants"):
            raise ConfigError(f"preparation.image.normalize={normalize}: per_image, none or constants")
        self.transform, self.normalize = transform, normalize
        self.constants = (np.array(mean, np.float32), np.array(sd, np.float32)) if normalize == "constants" else None

    def __call__(self, picture: Picture, name: str) -> np.ndarray:
        """float32 [C, S, S]. Raises DataFault naming the file."""
        film = decode(picture, name) if isinstance(picture, Path) else film_of(_image(picture), Path(name), name)
        pixels, _ = self.transform.film(film, name)
        if self.normalize == "per_image":
            return per_image(pixels)
        return pixels if self.constants is None else standardized(pixels, *self.constants)


class PicturePreparation:
    """Colour pictures as a data set with dataset.transform serves them in evaluation.

    transform: called with (RGB picture, None), gives float32 [3, S, S]. exif: turn pictures as their EXIF tag says.
    """

    def __init__(self, transform: Any, exif: bool) -> None:
        self.transform, self.exif = transform, exif

    def __call__(self, picture: Picture, name: str) -> np.ndarray:
        """float32 [3, S, S]. Raises DataFault naming the file."""
        if isinstance(picture, Path):
            return self.transform(open_picture(picture, name, self.exif), None)
        return self.transform(rgb(_image(picture, self.exif), Path(name), name), None)


def film_node(transform: FilmTransform, normalize: str, constants: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    """The node of a FilmPreparation. constants: mean and sd by channel, None where normalize needs none."""
    mean, sd = (None, None) if constants is None else ([float(x) for x in values] for values in constants)
    return {
        "_target_": "mmexpert.data.preparation.FilmPreparation",
        "transform": {"_target_": "mmexpert.data.radiographs.FilmTransform", **asdict(transform)},
        "normalize": normalize if constants is None else "constants",
        "mean": mean,
        "sd": sd,
    }


def stored_constants(node: dict[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd by channel of a stored FilmPreparation's node, float32. Raises ConfigError where the model has none."""
    if node is None or node.get("normalize") != "constants":
        stored = "no preparation" if node is None else f"normalize={node.get('normalize')}"
        raise ConfigError(f"dataset.normalize=dataset: the model is stored with {stored}, without mean and sd; leave normalize as it was")
    return np.array(node["mean"], np.float32), np.array(node["sd"], np.float32)


def picture_node(transform: dict[str, Any], exif: bool) -> dict[str, Any]:
    """The node of a PicturePreparation. transform: the node dataset.transform."""
    return {"_target_": "mmexpert.data.preparation.PicturePreparation", "transform": transform, "exif": exif}


def _image(picture: Image.Image | np.ndarray, exif: bool = True) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    return ImageOps.exif_transpose(picture) if exif else picture
