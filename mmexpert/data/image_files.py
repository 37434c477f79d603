"""Image files that may be damaged: opened and decoded with Pillow, every failure a DataFault that names file and record."""

import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmexpert.data.findings import DataFault

_MOST_PIXELS = 89_478_485  # Pillow's own limit, beyond which it only warns
_ENDS = {"PNG": (b"IEND\xaeB`\x82", 8), "JPEG": (b"\xff\xd9", 2)}  # last bytes of a whole file, and how many they are
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on damaged files (SyntaxError: a PNG chunk)."""


def check_ending(path: Path, record: str) -> None:
    """Raises DataFault where a file is missing, empty, no image, too large or cut short, without decoding a PNG or JPEG that ends well.

    Damage in the middle is found by decoding only.
    """
    image = opened(path, record)
    ending, length = _ENDS.get(image.format, (b"", 0))
    with open(path, "rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - length))
        whole = bool(length) and stream.read() == ending
    if whole:
        image.close()
    else:  # no ending to know it by, or bytes after it
        loaded(image, path, record, True)


def opened(path: Path, record: str) -> Image.Image:
    """The image with its header read."""
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError as error:  # a name that is too long, a folder without rights
        raise image_fault(path, record, "missing_file", f"{error.strerror}; correct the record, or the rights of the file") from error
    if size < 0:
        raise image_fault(path, record, "missing_file", "there is no such file")
    if not size:
        raise image_fault(path, record, "empty_file", "the file is empty; copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # said below, as an error
            image = Image.open(path)
        frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise image_fault(path, record, "too_many_pixels", f"{error}; store it smaller") from error
    except UnidentifiedImageError as error:
        raise image_fault(path, record, "not_an_image", "no image that Pillow knows; replace or remove it") from error
    except _BROKEN as error:
        raise image_fault(path, record, "undecodable", f"{error}; copy it again") from error
    check_pixels((image.height, image.width), path, record)
    if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG that carries its own preview
        raise image_fault(path, record, "wrong_shape", f"{frames} frames, expected one; store each film by itself")
    return image


def loaded(image: Image.Image, path: Path, record: str, exif: bool) -> Image.Image:
    """The image with its pixels; upright, as its EXIF tag says, where exif is true."""
    try:
        with image:
            image.load()
            return ImageOps.exif_transpose(image) if exif else image.copy()
    except _BROKEN as error:
        cut = any(word in str(error) for word in ("truncated", "unexpected end", "not enough image data"))
        raise image_fault(path, record, "truncated" if cut else "undecodable", f"{error}; copy it again") from error


def check_pixels(shape: tuple[int, int], path: Path, record: str) -> None:
    """Raises DataFault where (rows, columns) are more pixels than are read."""
    if shape[0] * shape[1] > _MOST_PIXELS:
        found = f"{shape[0]} x {shape[1]} pixels, at most {_MOST_PIXELS} are read"
        raise image_fault(path, record, "too_many_pixels", f"{found}; store it smaller")


def image_fault(path: Path, record: str, code: str, message: str) -> DataFault:
    """The fault of an image file."""
    return DataFault(f"{path} (record {record}): {message}", code, str(path), record)
