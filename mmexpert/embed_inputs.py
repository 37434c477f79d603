"""What can be embedded, found on disk: pictures and radar clips below a folder, sentences of a file. Names are sorted by code points."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.arrays import ArrayFile
from mmexpert.data.radiographs import SUFFIXES
from mmexpert.data.views import check_lengths, check_view, view_names
from mmexpert.types import ConfigError, DataError

log = logging.getLogger(__name__)
Clip = dict[str, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """Inputs of one role: their names, sorted, and what makes of some names what the model encodes. root: where they lie."""

    role: str
    root: Path
    names: list[str]
    read: Callable[[Sequence[str]], list[Any]]

    def where(self, name: str) -> str:
        """How a message names one of them."""
        return f"{self.root}: {name!r}" if self.role == "text" else str(self.root / name)


def inputs_of(role: str, place: Path, model: Any) -> Inputs:
    """The inputs at a place for a loaded model. Raises ConfigError for a role that it does not encode, DataError for an empty place."""
    towers = [name for name, node in model.config["encoder"].items() if node]
    if role not in towers:
        keys = {"image": "images=FOLDER", "text": "texts=FILE", "radar": "clips=FOLDER"}
        raise ConfigError(f"this model has no {role} tower: give {' or '.join(keys[name] for name in towers if name in keys)}")
    if role == "text":
        return _sentences(place)
    if not place.is_dir():
        raise DataError(f"{place}: there is no such folder; a path counts from here, {Path.cwd()}")
    if role == "image":
        return _pictures(place)
    return _clips(place, view_names(model.config["dataset"]["views"]))


def _sentences(path: Path) -> Inputs:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can not be read as UTF-8 text ({error}); a sentence a line is expected") from error
    said = [line.strip() for line in lines if line.strip()]
    names = sorted(set(said))
    if not names:
        raise DataError(f"{path}: no sentence in it; write one a line")
    if len(said) > len(names):
        log.info("%s: %d repeated lines are embedded once", path, len(said) - len(names))
    return Inputs("text", path, names, list)


def _pictures(root: Path) -> Inputs:
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")]
    if not found:
        raise DataError(f"{root}: no picture below it ({', '.join(SUFFIXES)})")
    names = sorted(path.relative_to(root).as_posix() for path in found)
    return Inputs("image", root, names, lambda names: [root / name for name in names])


def _clips(root: Path, views: Sequence[str]) -> Inputs:
    """Names are `a/x.npz`, and `a/x` for the files `a/<view>/x.npy` of one clip."""
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.npz")}
    names |= {(path.parent.parent / path.stem).relative_to(root).as_posix() for path in root.rglob("*.npy") if path.parent.name in views}
    if not names:
        raise DataError(f"{root}: no clip below it; expected a/<view>/x.npy or a/x.npz with the views {', '.join(views)}")
    return Inputs("radar", root, sorted(names), lambda names: [read_clip(root / name, views) for name in names])


def read_clip(path: Path, views: Sequence[str]) -> Clip:
    """The views of one clip: an .npz file, one of its .npy files, or its name without view and ending. Raises DataError."""
    if path.suffix == ".npz":
        files = {view: ArrayFile(path, view, path.stem) for view in ArrayFile(path, "", path.stem).members() if view in views}
    else:
        if path.suffix == ".npy" and path.parent.name in views:
            path = path.parent.parent / path.stem
        files = {view: ArrayFile(path.parent / view / f"{path.name}.npy", "", path.name) for view in views}
    missing = [view for view in views if view not in files]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}; this model sees {', '.join(views)}")
    clip = {view: check_view(file.array(), view, file.where) for view, file in files.items()}  # here, where the file has a name
    check_lengths(clip, str(path))
    return clip
