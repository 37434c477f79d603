"""Split files of source 1: JSON records {filefolder, fileindex, captions, classid?, classname?, group?}, checked one by one."""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.parsed_json import parsed_json
from mmexpert.data.paths import plain
from mmexpert.data.sampling import hash_order

_NEEDED = ("filefolder", "fileindex", "captions")
_TYPES = {
    "filefolder": (str,),
    "fileindex": (str, int),
    "captions": (str, list),
    "classid": (int,),
    "classname": (str,),
    "group": (str, int),
}


@dataclass(frozen=True)
class Entry:
    """A record of a split file. where: file and record as messages name them; folder: found below the root or beside the split file."""

    id: str
    split: str
    folder: Path
    index: str
    captions: tuple[str, ...]
    class_id: int | None
    class_name: str | None
    group: str
    file: Path
    where: str

    def fault(self, code: str, text: str) -> DataFault:
        """The error of this record."""
        return DataFault(f"{self.where} ({self.id}): {text}", code, str(self.file), self.id)


def read_json(path: Path, repeated: list[str] | None = None) -> Any:
    """The content of a JSON file. Raises DataFault: missing, not UTF-8, syntax with its line, NaN, a key twice.

    repeated: a list that is given takes the keys that are there twice, of which the first is kept.
    """

    def fault(code: str, text: str) -> DataFault:
        return DataFault(f"{path}{text}", code, str(path))

    def constant(name: str) -> None:
        raise fault("json_nan", f": holds {name}, which is no JSON; write null or remove it")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; a key that is there twice is told, or is a fault."""
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names) and repeated is not None:
            seen: set[str] = set()
            repeated.extend(name for name in names if name in seen or seen.add(name))
            return dict(reversed(pairs))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise fault("duplicate_id", f": the key {twice!r} is there twice, and JSON would keep the last only; give each its own")
        return dict(pairs)

    try:
        return parsed_json(path.read_text(encoding="utf-8-sig"), unique, constant)
    except FileNotFoundError as error:
        raise fault("missing_file", ": there is no such file; correct dataset.splits or dataset.root") from error
    except UnicodeDecodeError as error:
        raise fault("json_syntax", f": byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise fault("json_syntax", f", line {error.lineno}, column {error.colno}: {error.msg}; is the file cut short?") from error
    except ValueError as error:
        raise fault("json_syntax", f": {error}; it should be a dict or list of records") from error


def read_split_file(path: Path, split: str, root: Path, faults: FaultList) -> list[Entry]:
    """All records of a file; a wrong one goes to faults. Raises DataFault where the file holds no records."""
    if split != "train" and not path.exists():
        remedy = f"correct dataset.root or dataset.splits; a part without a file is dataset.splits.{split}=[]"
        raise DataFault(f"{path}: there is no such file; {remedy}", "missing_file", str(path))
    content = read_json(path)
    if isinstance(content, dict) and not set(_NEEDED) & set(content):
        named = list(content.items())
    elif isinstance(content, list):
        named = list(enumerate(content))
    else:
        kind = "one record" if isinstance(content, dict) else type(content).__name__
        raise DataFault(f"{path}: is {kind}, expected a dict or a list of records", "wrong_field", str(path))
    if not named:
        raise DataFault(f"{path}: holds no record; remove it from dataset.splits.{split}", "wrong_field", str(path))
    entries = []
    for name, fields in named:
        with faults.catching():
            entries.append(_entry(path, split, str(name), fields, root))
    return entries


def _entry(path: Path, split: str, name: str, fields: Any, root: Path) -> Entry:
    def fault(code: str, text: str) -> DataFault:
        return DataFault(f"{path}, record {name}: {text}", code, str(path), name)

    if not isinstance(fields, dict):
        raise fault("wrong_field", f"is {type(fields).__name__}, expected {{filefolder, fileindex, captions}}")
    fields = {key: value for key, value in fields.items() if value is not None}  # null is as good as absent
    for key in fields:
        if key not in _TYPES:
            close = difflib.get_close_matches(key, _TYPES, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(_TYPES)}"
            raise fault("wrong_field", f"the key {key!r} is unknown{hint}")
    for key, kinds in _TYPES.items():
        if key in fields and (not isinstance(fields[key], kinds) or isinstance(fields[key], bool)):  # True is an int to Python
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise fault("wrong_field", f"{key} is {type(fields[key]).__name__}, expected {expected}")
        if key in _NEEDED and key not in fields:
            what = "which names its files" if key != "captions" else "a string or a list"
            raise fault("wrong_field", f"there is no {key!r}, {what}; it has {', '.join(fields) or 'nothing'}")
    captions = fields["captions"] if isinstance(fields["captions"], list) else [fields["captions"]]
    if not captions or any(not isinstance(caption, str) or not caption.strip() for caption in captions):
        raise fault("empty_caption", "a caption is empty or no string; write one, or take the record out")
    filefolder = fields["filefolder"].replace("\\", "/").rstrip("/")  # of Windows, or to climb out unseen
    index = plain(str(fields["fileindex"]), name, path)
    return Entry(
        id=f"{filefolder}/{index}",
        split=split,
        folder=_folder(filefolder, root, path, name),
        index=index,
        captions=tuple(dict.fromkeys(caption.strip() for caption in captions)),
        class_id=fields.get("classid"),
        class_name=fields.get("classname"),
        group=str(fields.get("group", "")),
        file=path,
        where=f"{path}, record {name}",
    )


def _folder(filefolder: str, root: Path, path: Path, name: str) -> Path:
    places = [root / filefolder, path.parent / filefolder]  # an absolute filefolder is itself in both
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(dict.fromkeys(map(str, places)))
    raise DataFault(f"{path}, record {name}: filefolder {filefolder!r} is not there; looked for {looked}", "missing_file", str(path), name)


def smallest_hashes(entries: list[Entry], ratio: float) -> list[Entry]:
    """The share of the entries whose ids have the smallest hash: file order is not random, and a larger share holds the smaller one."""
    kept = set(hash_order([entry.id for entry in entries])[: math.ceil(ratio * len(entries))])
    return [entry for i, entry in enumerate(entries) if i in kept]


def apart(entries: Sequence[Entry], faults: FaultList) -> list[Entry]:
    """The entries with every id once, none in two splits. A test part equal to the valid part is kept, under other ids, with a warning."""
    ids = {split: {entry.id for entry in entries if entry.split == split} for split in ("train", "valid", "test")}
    one_part = bool(ids["test"]) and ids["test"] == ids["valid"]
    if one_part:
        message = f"{faults.name}: valid and test hold the same {len(ids['test'])} records: the test figures are optimistic"
        faults.warn("id_in_two_splits", message)
        entries = [replace(e, id=f"{e.id}@test", group=f"{e.group or e.id}@test") if e.split == "test" else e for e in entries]
    owner: dict[str, Entry] = {}
    kept = []
    for entry in entries:
        with faults.catching():
            other = owner.setdefault(entry.id, entry)
            if other is not entry and other.split == entry.split:
                raise entry.fault("duplicate_id", f"is also {other.where}; join their captions in one record")
            if other is not entry:
                text = f"is in {entry.split} and, as {other.where}, in {other.split}; remove it from one of them"
                raise entry.fault("id_in_two_splits", text)
            kept.append(entry)
    return kept
