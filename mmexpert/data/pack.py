"""Decoded arrays in one memory-mapped file, made once: what is costly to read or to normalise costs a copy afterwards."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.cache import cached_folder, content_name

log = logging.getLogger(__name__)
_VERSION = 1  # part of every pack's name; raised by whoever changes what is stored
_VALUES, _INDEX, _FACTS = "values.bin", "index.jsonl", "pack.json"


class Pack:
    """Arrays of one dtype by name, of a folder that write() has filled. The file is mapped at the first read of each process: forked
    workers share its pages, and no copy of it travels to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / _INDEX).read_text(encoding="utf-8").splitlines()]
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {row["id"]: (row["offset"], tuple(row["shape"])) for row in rows}
        self._values: np.memmap | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as stored, read-only, not yet read from the disk."""
        if self._values is None:
            self._values = np.memmap(self.folder / _VALUES, self.facts["dtype"], "r")
        offset, shape = self.places[name]
        return self._values[offset : offset + int(np.prod(shape))].reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_values": None}


def packed(cache_dir: str, identity: Any, facts: dict[str, Any], arrays: Iterable[tuple[str, np.ndarray]]) -> Pack:
    """The pack of arrays in cache_dir/pack-<16 hex of identity and facts>; they are taken where it is absent or damaged only.

    identity: what the content depends on, digests of source files above all. facts: told beside it, dtype (little-endian) among them.
    Raises StorageError where writing fails; what making an array raises passes through, and no half pack stays.
    """

    def make(folder: Path) -> None:
        log.info("packing decoded data, once: %s", folder.parent)
        write(folder, facts, arrays)

    name = content_name("pack", {"version": _VERSION, "facts": facts, "identity": identity})
    return Pack(cached_folder(Path(cache_dir) / name, make))


def write(folder: Path, facts: dict[str, Any], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """values.bin, index.jsonl {id, offset (in numbers), shape} and pack.json."""
    offset = 0
    with open(folder / _VALUES, "wb") as values, open(folder / _INDEX, "w", encoding="utf-8") as index:
        for name, array in arrays:
            stored = np.ascontiguousarray(array, facts["dtype"])
            values.write(stored.data)
            index.write(json.dumps({"id": name, "offset": offset, "shape": stored.shape}) + "\n")
            offset += stored.size
    (folder / _FACTS).write_text(json.dumps(facts, sort_keys=True), encoding="utf-8")
