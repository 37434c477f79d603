"""Radar clips with captions in the format of source 1 (mmExpert): split files in JSON, views as NumPy or safetensors files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.arrays import ArrayFile
from mmexpert.data.findings import DataFault, FaultList, Finding, check_groups, deep_check
from mmexpert.data.humanml3d_text import motion_group
from mmexpert.data.paths import inside
from mmexpert.data.radar_base import RadarDataset
from mmexpert.data.radar_pack import digest_of
from mmexpert.data.radar_text_index import Entry, apart, read_split_file, smallest_hashes
from mmexpert.data.records import Record
from mmexpert.data.views import VIEW_ROWS, check_lengths, check_shape, check_view
from mmexpert.types import ClassTable, ConfigError

_SPLITS = ("train", "valid", "test")
_AMPLITUDE = {"amplitude": lambda x: x, "power": np.sqrt, "db": lambda x: 10 ** (x / np.float32(20))}
Views = dict[str, ArrayFile]


@dataclass(kw_only=True, eq=False)
class RadarText(RadarDataset):
    """splits: split files by part, paths relative to root. ratios: share of each file that is used, by part, or None.

    layout: auto | legacy (one fileindex.npy [T, 128] a record: Doppler only). variants: letters of the rotations of one motion, such as
    fileindexA.npz; training draws one, evaluation takes the first. stored: amplitude | power | db. The constructor checks every record's
    header; deep_check() reads the numbers too.
    """

    root: str
    splits: dict[str, Any]
    ratios: dict[str, Any] | None
    layout: str
    variants: Any
    stored: str
    on_error: str
    allow_outside: bool

    def __post_init__(self) -> None:
        self.check_common()
        self._check_keys()
        faults = FaultList("radar_text", self.on_error)
        entries = apart(list(self._entries(faults)), faults)
        self.files: dict[str, list[Views]] = {}
        frames: dict[str, int] = {}
        usable = []
        for entry in entries:
            with faults.catching():
                variants = [self._find(entry, letter, self.view_names) for letter in self.variants or [""]]
                frames[entry.id] = [self._check_headers(views) for views in variants][0]
                self.files[entry.id] = variants
                usable.append(entry)
        classes, labels = class_table(usable, faults)
        faults.settle()  # after all records: one run names them all
        records = [self._record(entry, labels.get(entry.id, -1)) for entry in usable if classes is None or entry.id in labels]
        check_groups("radar_text", records)
        self.take("radar_text", records, frames, classes)
        faults.hand_over(self)

    def versions(self, record: Record) -> tuple[str, ...]:
        """The rotations of a motion; of its source, not id: with captions=all an id carries the caption's number."""
        return tuple(f"{record.source}/{number}" for number in range(len(self.files[record.source])))

    def packed_from(self) -> list[Any]:
        """All bytes of all files: of them alone, no modification times."""
        digests = {
            name: [[digest_of(dict.fromkeys(file.path for file in views.values())), sorted(views)] for views in rotations]
            for name, rotations in self.files.items()
        }
        return [self.stored, self.layout, digests]

    def load(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """Linear amplitude of a rotation's views."""
        return self._load(self.files[record.source][number])

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'radar', 'text'}, and the label where the records have classes."""
        sample = super().sample(record, epoch, repeat)
        return sample if self.classes is None else sample | {"label": record.label}

    def deep_check(self) -> list[Finding]:
        """Every file read once, all rotations included."""
        findings = deep_check(self)
        for rotations in self.files.values():
            for views in rotations[1:]:
                try:
                    self._load(views)
                except DataFault as fault:
                    findings.append(fault.finding())
        return findings

    def _check_keys(self) -> None:
        """Raises ConfigError for what is wrong with its own keys."""
        if self.stored not in _AMPLITUDE:
            raise ConfigError(f"dataset.stored={self.stored}: choose {', '.join(_AMPLITUDE)}")
        if self.layout not in ("auto", "legacy"):
            raise ConfigError(f"dataset.layout={self.layout}: choose auto or legacy")
        if self.layout == "legacy" and self.view_names != ("doppler_time",):
            raise ConfigError("dataset.layout=legacy has Doppler only: set dataset.views=[doppler]")
        for key in ("splits", "ratios"):
            unknown = set(getattr(self, key) or {}) - set(_SPLITS)
            if unknown:
                raise ConfigError(f"dataset.{key}.{sorted(unknown)[0]}: there are {', '.join(_SPLITS)}")
        if not self.splits.get("train"):
            raise ConfigError("dataset.splits.train: name one or more split files")
        if not Path(self.root).is_dir():
            raise DataFault(
                f"dataset.root={self.root}: there is no such folder; it should hold <folder>/<view>/<id>.npy and the split files",
                "missing_file",
                self.root,
            )

    def _entries(self, faults: FaultList) -> Iterator[Entry]:
        """Records of all split files; a relative name is looked for below root, then from here."""
        root = Path(self.root)
        for split in _SPLITS:
            files = self.splits.get(split) or []
            files = [files] if isinstance(files, str) else list(files)
            ratios = list((self.ratios or {}).get(split) or [1.0] * len(files))
            if len(ratios) != len(files) or any(not 0 < ratio <= 1 for ratio in ratios):
                raise ConfigError(f"dataset.ratios.{split}={ratios}: one share in 0..1 for each of the {len(files)} files")
            for name, ratio in zip(files, ratios, strict=True):
                path = next((path for path in (root / name, Path(name)) if path.is_file()), root / name)
                yield from smallest_hashes(read_split_file(path, split, root, faults), ratio)

    def _find(self, entry: Entry, letter: str, names: Sequence[str]) -> Views:
        """The files of a record's views, in the one layout that is there. Raises DataFault."""
        stem = f"{entry.index}{letter}"
        layouts = [{"doppler_time": (f"{stem}.npy", "")}] if self.layout == "legacy" else _layouts(stem)
        there = [files for files in layouts if any((entry.folder / name).is_file() for name, _ in files.values())]
        if not there:
            tried = ", ".join(dict.fromkeys(name for files in layouts for name, _ in files.values()))
            hint = f"; {stem}.npy is there: set dataset.layout=legacy?" if (entry.folder / f"{stem}.npy").is_file() else ""
            raise entry.fault("missing_file", f"no file of it is in {entry.folder}; tried {tried}{hint}")
        if len(there) > 1:
            both = " and ".join(next(iter(files.values()))[0] for files in there)
            raise entry.fault("duplicate_content", f"{entry.folder} holds it in {len(there)} layouts ({both}); keep one")
        found = {}
        for view in names:
            name, member = there[0][view]
            path = inside(entry.folder / name, (Path(self.root), entry.file.parent), self.allow_outside, entry.id)
            if not path.is_file():
                text = f"{path} is missing, other views are there; add it, or leave {view} out of dataset.views"
                raise entry.fault("missing_modality", text)
            found[view] = ArrayFile(path, member, entry.id)
        return found

    def _check_headers(self, views: Views) -> int:
        """T of a record, by the headers of its files. Raises DataFault."""
        shapes = {}
        for view, file in views.items():
            shape, dtype = file.header()
            if self.layout == "legacy":
                if len(shape) != 2 or shape[1] != 128:
                    raise file.fault("wrong_shape", f"{view} is {list(shape)}, expected [T, 128], as dataset.layout=legacy has it")
                shape = shape[::-1]
            with file.coded("wrong_shape" if len(shape) != 2 or 0 not in shape else "zero_length"):
                check_shape(shape, view, file.where)
            if dtype.kind not in "fiu":
                raise file.fault("wrong_dtype", f"{view} has dtype {dtype}, expected numbers; store it as float32")
            shapes[view] = np.broadcast_to(np.float32(0), shape)  # has a shape, takes no memory
        with file.coded("wrong_shape"):
            check_lengths(shapes, file.where)
        return shape[1]

    def _load(self, views: Views) -> dict[str, np.ndarray]:
        loaded = {}
        for view, file in views.items():
            array = file.array()
            array = array.T if self.layout == "legacy" else array
            # said here, because check_view tells the two apart in its text only
            finite = array.dtype.kind not in "fc" or np.isfinite(array).all()
            with file.coded("negative_amplitude" if finite else "non_finite"):
                loaded[view] = _AMPLITUDE[self.stored](check_view(array, view, file.where, decibel=self.stored == "db"))
        return loaded

    def _record(self, entry: Entry, label: int) -> Record:
        paths = {file.path for views in self.files[entry.id] for file in views.values()}
        return Record(
            id=entry.id,
            split=entry.split,
            group=entry.group or entry.id.removesuffix(entry.index) + motion_group(entry.index),
            captions=entry.captions,
            label=label,
            source=entry.id,
            size=sum(path.stat().st_size for path in paths),
        )


def _layouts(stem: str) -> list[dict[str, tuple[str, str]]]:
    """(file, member) of each view in the layouts of a record, in the order in which they are tried."""
    return [
        {view: (f"{stem}.npz", view) for view in VIEW_ROWS},
        {view: (f"{stem}.safetensors", view) for view in VIEW_ROWS},
        {view: (f"{view}/{stem}.npy", "") for view in VIEW_ROWS},
        {view: (f"{stem}_{view}.npy", "") for view in VIEW_ROWS},
    ]


def class_table(entries: Sequence[Entry], faults: FaultList) -> tuple[ClassTable | None, dict[str, int]]:
    """Classes by classid, else by name, and the label of each record; None where not every record has one."""
    told = [entry for entry in entries if entry.class_id is not None or entry.class_name is not None]
    if not told:
        return None, {}
    if len(told) < len(entries):
        message = f"{faults.name}: {len(entries) - len(told)} of {len(entries)} records have no class, so classes are not used"
        faults.warn("unknown_class", message)
        return None, {}
    names: dict[tuple[int, str], str] = {}
    keys: dict[str, tuple[int, str]] = {}
    for entry in entries:
        with faults.catching():
            key = (-1, entry.class_name) if entry.class_id is None else (entry.class_id, "")
            name = entry.class_name or f"class {entry.class_id}"
            if names.setdefault(key, name) != name:
                raise entry.fault("unknown_class", f"classid {entry.class_id} is {name!r} here and {names[key]!r} elsewhere; name it once")
            keys[entry.id] = key
    order = sorted(names)  # by classid, else by name: not by the order of the records
    labels = {sample: order.index(key) for sample, key in keys.items()}
    training = [labels[entry.id] for entry in entries if entry.split == "train" and entry.id in labels]
    counts = tuple(training.count(k) for k in range(len(order)))
    return ClassTable(tuple(names[key] for key in order), tuple((names[key],) for key in order), counts), labels
