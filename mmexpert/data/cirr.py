"""CIRR, version rc2 (arXiv 2108.04024): real-life pictures in groups of six, one caption a pair."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmexpert.data.composed_index import Annotations, Query, Reading, check_list, check_row, check_split, find_root, warn_queries
from mmexpert.data.composed_records import ComposedDataset
from mmexpert.data.findings import DataFault
from mmexpert.data.radar_text_index import read_json

SPLITS = ("train", "val", "test1")
LAYOUTS = ("cirr", "cirr_dataset/cirr", "cirr_dataset")
_MEMBERS = 6
Rows = Iterator[tuple[Query, Path, int]]


@dataclass(kw_only=True, eq=False)
class Cirr(ComposedDataset):
    """All names of the split file are the gallery; the reference is left out of it when its own query is ranked."""

    set_name = "cirr"

    def read(self, split: str) -> Annotations:
        """The annotations of a split."""
        return read_cirr(self.root, split)

    def picture_root(self) -> tuple[Path, str]:
        """(folder to which the paths of the split file are relative, pattern)."""
        root = find_root(self.root, LAYOUTS)
        if self.image_root:
            return Path(self.image_root), "the paths of the split file"
        paths = next(iter(self.annotations.values())).paths.values()
        tops = {PurePosixPath(path).parts[0] for (path,) in paths}
        there = next((folder for folder in (root, root.parent) if any((folder / top).is_dir() for top in tops)), root)
        return there, "the paths of the split file"


def read_cirr(root: str, split: str) -> Annotations:
    """Queries and gallery of a split, test1 without targets. Raises DataFault(s) with file and row, ConfigError."""
    check_split(split, SPLITS)
    folder, reading = find_root(root, LAYOUTS), Reading(f"cirr {split}")
    paths = _paths(folder / "image_splits" / f"split.rc2.{split}.json", reading)
    rows = list(_queries(folder / "captions" / f"cap.rc2.{split}.json", split, set(paths), reading))
    warn_queries(rows, reading)
    names = tuple(sorted(paths))
    return Annotations(split, tuple(query for query, _, _ in rows), {"": names}, names, paths, "split", reading.settle())


def _paths(file: Path, reading: Reading) -> dict[str, tuple[str, ...]]:
    """Path of each picture by name, relative to the image root."""
    repeated: list[str] = []
    content = read_json(file, repeated)
    if not isinstance(content, dict) or not content:
        raise DataFault(f"{file}: expected a dict of names and paths", "wrong_field", str(file))
    for name in repeated:
        reading.warn("names repeated in a split file (kept once)", file, name)
    for name, path in content.items():
        if not isinstance(path, str) or not PurePosixPath(path).parts:
            reading.fault("wrong_field", file, name, f"{path!r} is no path")
        elif PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
            reading.fault("outside_root", file, name, f"the path {path!r} leads out of the image root")
    return {name: (path,) for name, path in content.items()}


def _queries(file: Path, split: str, listed: set[str], reading: Reading) -> Rows:
    """The sound rows of a captions file with their numbers. target_soft is not read: in 37 val rows it lacks the hard target."""
    has_target = split != "test1"
    keys: dict[str, Any] = {"reference": str, "caption": str, "img_set": dict} | ({"target_hard": str} if has_target else {})
    first: dict[int, int] = {}
    for number, row in enumerate(check_list(read_json(file), file)):
        if not check_row(row, keys | {"pairid": object}, reading, file, number):
            continue
        pairid = row["pairid"]
        if not isinstance(pairid, int):
            reading.fault("wrong_field", file, number, f"pairid is {pairid!r}, expected an integer")
            continue
        if first.setdefault(pairid, number) != number:
            reading.fault("duplicate_id", file, number, f"the pairid {pairid} is also that of row {first[pairid]}")
            continue
        target = row["target_hard"] if has_target else ""
        members = row["img_set"].get("members")
        if fault := _wrong(row["reference"], target, members, listed):
            reading.fault("wrong_field", file, number, f"pairid {pairid}: {fault}")
            continue
        text = row["caption"]
        if not text.strip():
            reading.warn("empty captions", file, number)
        yield Query(f"{split}.{pairid:08d}", "", row["reference"], target, text, (text,), tuple(members), pairid), file, number


def _wrong(reference: str, target: str, members: Any, listed: set[str]) -> str:
    """What is wrong with the names of a row; empty where nothing is."""
    if not isinstance(members, list) or any(not isinstance(name, str) for name in members) or len(set(members)) != _MEMBERS:
        return f"img_set.members is {members!r}, expected six distinct names"
    if len(members) != _MEMBERS:
        return f"img_set.members has {len(members)} names, expected six distinct ones"
    strange = [name for name in (reference, target, *members) if name and name not in listed]
    if strange:
        return f"{strange[0]!r} is not in the split file"
    outside = [f"{role} {name!r}" for role, name in (("reference", reference), ("target", target)) if name and name not in members]
    return f"the {outside[0]} is not among img_set.members {members}" if outside else ""
