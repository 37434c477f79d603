"""Annotations of composed retrieval (reference + text -> target), read and checked without any picture."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmexpert.data.findings import DataFault, DataFaults
from mmexpert.data.records import Record
from mmexpert.data.sampling import EVALUATION, sample_rng
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
PARTS = {"train": "train", "val": "valid", "test": "test", "test1": "test"}
"""Published names of the splits -> parts of a run."""
_NAMED = 10


@dataclass(frozen=True)
class Query:
    """One triplet. text: the evaluation caption; variants: what training draws from, equally likely."""

    id: str
    category: str
    reference: str
    target: str  # "" where the split keeps it secret
    text: str
    variants: tuple[str, ...]
    members: tuple[str, ...] = ()  # the group of CIRR, reference and target among them
    pairid: int | None = None
    edit: str = ""  # kind of change, in sets that know it: R@1 is told by it too


@dataclass(frozen=True)
class Annotations:
    """One split: queries, the sorted gallery names of each category, where each picture may lie below the image root."""

    split: str
    queries: tuple[Query, ...]
    galleries: dict[str, tuple[str, ...]]
    names: tuple[str, ...]  # sorted names of the split files: an id is a position in them, whatever the gallery
    paths: dict[str, tuple[str, ...]]
    gallery: str  # split | union
    warnings: tuple[str, ...] = ()

    @cached_property
    def position(self) -> dict[str, int]:
        """Id of each name."""
        return {name: i for i, name in enumerate(self.names)}


def drawn_text(record: Record, seed: int, epoch: int, repeat: int) -> str:
    """The evaluation text of a Query's record, or one of the training variants, equally likely."""
    if epoch == EVALUATION or len(record.captions) == 1:
        return record.source.text if epoch == EVALUATION else record.captions[0]
    rng = sample_rng(seed, epoch, record.id, repeat)
    return record.captions[int(rng.integers(len(record.captions)))]


@dataclass
class Reading:
    """The faults and warnings of the files of one split; settle() raises all faults at once."""

    name: str
    faults: list[DataFault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def fault(self, code: str, file: Path, row: Any, text: str) -> None:
        """A wrong row; row: its number from 0, as a JSON list counts, or a name."""
        self.faults.append(DataFault(f"{file}, row {row}: {text}", code, str(file), str(row)))

    def warn(self, what: str, file: Path, row: Any) -> None:
        """Counted, the first one named: what may be as it should, but seldom is."""
        self.counts[what] += 1
        self.first.setdefault(what, f"{file}, row {row}")

    def settle(self) -> tuple[str, ...]:
        """The warnings, one line a kind. Raises DataFaults naming the first ten faults."""
        if self.faults:
            lines = [f"{self.name}: {len(self.faults)} faults, nothing has been trained", *map(str, self.faults[:_NAMED])]
            lines += [f"and {len(self.faults) - _NAMED} more"] if len(self.faults) > _NAMED else []
            raise DataFaults("\n  ".join(lines), tuple(self.faults))
        return tuple(f"{count} {what}, the first in {self.first[what]}" for what, count in self.counts.items())


def find_root(root: str, layouts: Sequence[str]) -> Path:
    """The folder that holds captions/ and image_splits/: root itself, or the published folder inside it. Raises DataFault."""
    tried = [Path(root), *(Path(root) / layout for layout in layouts)]
    for folder in tried:
        if (folder / "captions").is_dir() and (folder / "image_splits").is_dir():
            return folder
    names = ", ".join(map(str, tried))
    raise DataFault(f"dataset.root={root}: no folder captions/ beside image_splits/; looked in {names}", "missing_file", str(root))


def check_row(row: Any, keys: Mapping[str, type | tuple[type, ...]], reading: Reading, file: Path, number: int) -> bool:
    """Whether a row is a dict with these keys of these types; what is wrong goes to reading. Further keys are left alone."""
    if not isinstance(row, dict):
        reading.fault("wrong_field", file, number, f"a {type(row).__name__}, expected a dict with {', '.join(keys)}")
        return False
    missing = [key for key in keys if key not in row]
    if missing:
        there = ", ".join(map(str, row)) or "nothing"
        reading.fault("wrong_field", file, number, f"the key {missing[0]!r} is missing; it holds {there}: is this a file of another set?")
        return False
    for key, kinds in keys.items():
        if not isinstance(row[key], kinds) or isinstance(row[key], bool):
            reading.fault("wrong_field", file, number, f"{key} is {row[key]!r}, a {type(row[key]).__name__} of another kind than expected")
            return False
    return True


def check_list(content: Any, file: Path) -> list[Any]:
    """The rows of a captions file. Raises DataFault where it holds none."""
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else f"a {type(content).__name__}"
        raise DataFault(f"{file}: {found}, expected a list of queries", "wrong_field", str(file))
    return content


def check_split(split: str, splits: Sequence[str]) -> None:
    """Raises ConfigError for a split that the set does not have."""
    if split not in splits:
        raise ConfigError(f"dataset.split={split}: choose {', '.join(splits)}, or null for train and val")


def warn_queries(queries: Sequence[tuple[Query, Path, int]], reading: Reading) -> None:
    """Counts references that are their own target, and queries (reference and text) that occur again."""
    seen: set[tuple[str, str, str]] = set()
    for query, file, row in queries:
        if query.reference == query.target:
            reading.warn("queries whose reference is their target", file, row)
        key = (query.category, query.reference, query.text)
        if key in seen:
            reading.warn("repeated queries (same reference, same text)", file, row)
        seen.add(key)
