"""sheet.png: the query, then the nearest entries, as thumbnails with rank, score and name."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmexpert.data.arrays import ArrayFile
from mmexpert.embed_index import Index
from mmexpert.types import DataError

_CELL, _LABEL, _COLUMNS, _MARGIN = 180, 34, 6, 6  # pixels; columns
_BROKEN = (DataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def contact_sheet(path: Path, query: dict[str, str], index: Index, rows: list[dict[str, Any]]) -> None:
    """Draws the PNG. What can not be drawn (a file that is gone, a DICOM film) is a grey cell with its name."""
    cells = [(_thumbnail(role, value, Path(value)), f"query: {value}") for role, value in query.items()]
    root, role = Path(index.meta["root"]), index.meta["role"]
    for row in rows:
        label = f"{row['rank']}. {row['score']:.3f} {'' if role == 'text' else row['name']}"
        cells.append((_thumbnail(role, row["name"], root / row["name"]), label))
    columns = min(_COLUMNS, len(cells))
    height = _CELL + _LABEL
    sheet = Image.new("RGB", (columns * _CELL, -(-len(cells) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (picture, label) in enumerate(cells):
        left, top = number % columns * _CELL, number // columns * height
        sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        lines = textwrap.wrap(label, 28)[:2] or [""]
        draw.text((left + _MARGIN, top + _CELL + 2), _drawable("\n".join(lines), font), fill="black", font=font)
    sheet.save(path)


def _thumbnail(role: str, value: str, path: Path) -> Image.Image:
    side = _CELL - 2 * _MARGIN
    try:
        if role == "image":
            with Image.open(path) as opened:
                opened.draft("RGB", (side, side))  # a JPEG of any size is decoded small
                picture = ImageOps.exif_transpose(opened).convert("RGB")
            picture.thumbnail((side, side))
            return picture
        if role == "radar":
            return _heat(_first_view(path)).resize((side, side))
    except _BROKEN:
        return Image.new("RGB", (side, side), "lightgrey")
    cell, font = Image.new("RGB", (side, side), "whitesmoke"), ImageFont.load_default()
    text = "\n".join(textwrap.wrap(value, 26)[:10])
    ImageDraw.Draw(cell).text((_MARGIN, _MARGIN), _drawable(text, font), fill="black", font=font)
    return cell


def _first_view(path: Path) -> np.ndarray:
    """A view [F, T] of a clip: the first member of an .npz file, or the first file of its name beside the views' folders."""
    if path.suffix == ".npz":
        return ArrayFile(path, sorted(ArrayFile(path, "", path.stem).members())[0], path.stem).array()
    found = [path] if path.suffix == ".npy" else sorted(path.parent.glob(f"*/{path.name}.npy"))
    if not found:
        raise DataError(f"{path}: there is no such clip")
    return ArrayFile(found[0], "", path.stem).array()


def _heat(view: np.ndarray) -> Image.Image:
    """Amplitudes [F, T] as grey, 60 dB from black to white, row 0 at the bottom."""
    if view.ndim != 2 or not view.size or not np.isfinite(view).all():
        raise DataError(f"an array {view.shape} is no view")
    amplitude = np.abs(view.astype(np.float64))
    decibel = 20 * np.log10(np.maximum(amplitude, 1e-12) / max(float(amplitude.max()), 1e-12))
    return Image.fromarray((255 * np.clip(decibel / 60 + 1, 0, 1)).astype(np.uint8)[::-1]).convert("RGB")


def _drawable(text: str, font: Any) -> str:
    """The text as far as the font goes: Pillow's bitmap font stops with an error at letters beyond Latin-1."""
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
