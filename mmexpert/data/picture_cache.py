"""dataset.cache: decoded pictures kept, since decoding is most of what a picture costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.image_groups import digest
from mmexpert.data.pack import Pack, packed
from mmexpert.types import ConfigError

CACHES = ("none", "ram", "disk")


@dataclass(frozen=True)
class Decoding:
    """How pictures are decoded. read: name -> array; settings: what its result depends on beside the file; dtype: of the arrays."""

    read: Callable[[str], np.ndarray]
    settings: Any
    dtype: str


class PictureCache:
    """Decoded pictures by name. kind: none (decoded each time) | ram (kept, in each loader worker) | disk (one memory-mapped file in
    cache_dir, filled once and shared by all workers and runs with these files and settings).

    paths: file of each name. disk reads the bytes of all files at each start, and decodes all of them the first time: a file that can
    not be decoded is an error then. What comes back must not be written to.
    """

    def __init__(self, kind: str, cache_dir: str, paths: dict[str, Path], decoding: Decoding) -> None:
        if kind not in CACHES:
            raise ConfigError(f"dataset.cache={kind}: choose {', '.join(CACHES)}")
        self.decoding = decoding
        self.kept: dict[str, np.ndarray] | None = {} if kind == "ram" else None
        self.pack: Pack | None = None
        if kind == "disk":
            identity = [decoding.settings, [[name, digest(paths[name])] for name in sorted(paths)]]
            pictures = ((name, decoding.read(name)) for name in sorted(paths))
            self.pack = packed(cache_dir, identity, {"dtype": decoding.dtype}, pictures)

    def __call__(self, name: str) -> np.ndarray:
        """The decoded picture. Raises what decoding raises."""
        if self.pack is not None:
            return self.pack[name]
        if self.kept is None:
            return self.decoding.read(name)
        if name not in self.kept:
            self.kept[name] = self.decoding.read(name)
        return self.kept[name]
