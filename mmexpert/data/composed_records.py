"""Composed retrieval as a data set: relative rows (reference, text, target) of the parts, classic rows (one picture each) of galleries."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.composed_index import PARTS, Annotations, Query, drawn_text
from mmexpert.data.findings import DataFault, Finding
from mmexpert.data.pictures import open_picture
from mmexpert.data.preflight import find_pictures, missing_pictures, write_missing
from mmexpert.data.records import Draw, Record, RecordDataset
from mmexpert.types import ConfigError

Transform = Callable[[Image.Image, np.random.Generator | None], np.ndarray]

_THUMBNAIL = 128  # longer side, pixels


class Pictures(RecordDataset):
    """Classic rows: {image [3, S, S], id} of each picture, the id being its position in the sorted names of the split."""

    def __init__(self, name: str, files: dict[str, Path], ids: dict[str, int], transform: Transform) -> None:
        super().__init__(name, [Record(picture, "", picture) for picture in files], "instance")
        self.files, self.ids, self.transform = files, ids, transform

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The picture of a draw; nothing about it is random."""
        name = self.records[draw[0]].id
        return {"image": self.transform(open_picture(self.files[name], name, False), None), "id": self.ids[name]}


@dataclass(kw_only=True, eq=False)
class ComposedDataset(RecordDataset):
    """Base of the composed sets. A subclass has set_name, read(split) and picture_root().

    split: null (train and val) or the one split to read (test, test1: no targets). transform: as in data.pictures, called
    as in evaluation. The constructor reads all rows and looks every picture up; missing_file lists those that are not there.
    """

    root: str
    image_root: str | None
    split: str | None
    allow_missing: bool
    missing_file: str
    transform: Transform
    seed: int

    unit_length, pad_to, max_length = 1, "batch", 1  # what collate asks of clips; pictures have none
    set_name = ""
    exif = False  # pictures are not turned, as published; a saved model prepares them alike

    def read(self, split: str) -> Annotations:
        """The annotations of a split. Raises DataError and ConfigError."""
        raise NotImplementedError

    def picture_root(self) -> tuple[Path, str]:
        """(folder of the pictures, pattern of their names)."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        splits = [self.split] if self.split else ["train", "val"]
        self.annotations: dict[str, Annotations] = {}
        for split in splits:
            self.annotations[PARTS.get(split, split)] = self.read(split)
        self.files: dict[str, dict[str, Path]] = {}  # by part, then by name: two splits may use one name
        self.dropped: dict[str, tuple[int, int]] = {}  # gallery rows missing, queries dropped
        missing_pictures_of = self._preflight()
        queries = [(part, query) for part, found in self.annotations.items() for query in self._usable(part, found)]
        super().__init__(self.set_name, [self._record(part, query) for part, query in queries], "instance")
        ids = [self.annotations[r.split].position for r in self.records]
        self.keys = np.array([at.get(r.source.target, -1) for at, r in zip(ids, self.records, strict=True)], np.int64)
        self.findings = [
            Finding("warning", "duplicate_content", self.set_name, found.split, warning)
            for found in self.annotations.values()
            for warning in found.warnings
        ]
        if missing_pictures_of:
            total = ", ".join(f"{part}: {gallery} pictures, {rows} queries" for part, (gallery, rows) in self.dropped.items())
            advice = f"{self.set_name}: pictures are missing, results are partial ({total}); all are listed in {self.missing_file}"
            self.findings.append(Finding("warning", "missing_file", self.missing_file, "", advice))
        self.exclusions.warnings += [finding.advice for finding in self.findings]

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """A relative row. train: reference and target [3, S, S], text, id, reference_key, positive_key; otherwise text, id,
        reference_key, positive_key (but in test) and members (where the set has groups): features come from the gallery."""
        index, epoch, repeat = draw
        record = self.records[index]
        query, at = record.source, self.annotations[record.split].position
        row: dict[str, Any] = {"text": self.text(record, epoch, repeat), "id": index, "reference_key": at[query.reference]}
        if query.target:
            row["positive_key"] = at[query.target]
        if record.split == "train":
            return {role: self.picture(record.split, getattr(query, role)) for role in ("reference", "target")} | row
        if query.members:
            row["members"] = np.array([at[name] for name in query.members], np.int64)
        return row

    def text(self, record: Record, epoch: int, repeat: int) -> str:
        """The evaluation text, or one of the training variants, equally likely."""
        return drawn_text(record, self.seed, epoch, repeat)

    def picture(self, part: str, name: str) -> np.ndarray:
        """A picture as the tower sees it, float32 [3, S, S]."""
        return self.transform(open_picture(self.files[part][name], name, False), None)  # EXIF rotation is not applied, as published

    def pictures(self, part: str) -> Pictures:
        """Classic rows of all pictures of a part: its galleries, each picture once (in train: references and targets)."""
        return Pictures(f"{self.set_name} {part}", self.files[part], self.annotations[part].position, self.transform)

    def thumbnail(self, part: str, name: str) -> Image.Image:
        """A small RGB picture for the sheet of retrieved pictures, always from its file."""
        picture = open_picture(self.files[part][name], name, False)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return picture

    def told(self, part: str) -> dict[str, Any]:
        """What a protocol says of a part: split, gallery, transform."""
        told = self.transform.told() if hasattr(self.transform, "told") else type(self.transform).__name__
        return {"split": self.annotations[part].split, "gallery": self.annotations[part].gallery, "transform": told}

    def galleries(self, part: str) -> dict[str, np.ndarray]:
        """Ids int64 of each category's gallery, ascending; missing pictures are not among them."""
        found = self.annotations[part]
        return {
            category: np.array([found.position[name] for name in names if name in self.files[part]], np.int64)
            for category, names in found.galleries.items()
        }

    def partial(self, part: str) -> dict[str, Any]:
        """partial, gallery_missing, queries_dropped and train_dropped where pictures are missing; empty otherwise."""
        if not any(map(any, self.dropped.values())):
            return {}
        gallery, queries = self.dropped[part]
        found = {"partial": True, "gallery_missing": gallery, "queries_dropped": queries}
        return found | ({"train_dropped": self.dropped["train"][1]} if "train" in self.dropped and part != "train" else {})

    def deep_check(self) -> list[Finding]:
        """Every picture that the run needs is decoded once; what reading found comes first."""
        found = list(self.findings)
        for part in self.annotations:
            for name, path in self.files[part].items():
                try:
                    open_picture(path, name, False)
                except DataFault as fault:
                    found.append(fault.finding())
        return list(dict.fromkeys(found))

    def require_groups(self) -> None:
        """Raises ConfigError: galleries belong to the published splits."""
        raise ConfigError(f"dataset={self.set_name} has published splits, and galleries that belong to them: choose cv=none")

    def fingerprint_lines(self) -> list[str]:
        """The records with reference, target and group, after the galleries of each part."""
        lines = []
        for part, found in self.annotations.items():
            for category, names in found.galleries.items():
                kept = "\n".join(name for name in names if name in self.files[part])
                lines.append(f"gallery {part} {category}\t{hashlib.sha256(kept.encode()).hexdigest()}")
        for line, record in zip(super().fingerprint_lines(), self.records, strict=True):
            query = record.source
            lines.append("\t".join([line, query.text, query.reference, query.target, "|".join(query.members)]))
        return lines

    def _needed(self, part: str) -> list[str]:
        """Names whose pictures the run opens: references and targets of training, whole galleries otherwise."""
        found = self.annotations[part]
        if part == "train":
            return sorted({name for query in found.queries for name in (query.reference, query.target)})
        return sorted({name for names in found.galleries.values() for name in names})

    def _preflight(self) -> list[str]:
        """Looks every needed picture up; returns what is missing. Raises DataFaults unless allow_missing."""
        folder, pattern = self.picture_root()
        wanted: dict[str, list[Path]] = {}
        for part, found in self.annotations.items():
            wanted |= {name: [folder / path for path in found.paths[name]] for name in self._needed(part)}
        there, missing = find_pictures(wanted)
        for part in self.annotations:
            self.files[part] = {name: there[name] for name in self._needed(part) if name in there}
        if missing:
            write_missing(missing, Path(self.missing_file))
            if not self.allow_missing:
                raise missing_pictures(missing, wanted, f"{folder} ({pattern})", Path(self.missing_file))
        return missing

    def _usable(self, part: str, found: Annotations) -> Sequence[Query]:
        """The queries all of whose pictures are there; counts the others. Raises DataFaults where none is left."""
        files = self.files[part]
        kept = [q for q in found.queries if all(name in files for name in (q.reference, q.target, *self._group(part, q)) if name)]
        gallery_missing = 0 if part == "train" else len(self._needed(part)) - len(files)
        self.dropped[part] = gallery_missing, len(found.queries) - len(kept)
        if not kept:
            raise missing_pictures(
                sorted(set(self._needed(part)) - set(files)),
                {name: [self.picture_root()[0] / path for path in found.paths[name]] for name in self._needed(part)},
                f"{self.picture_root()[0]}, and no {part} query is left",
                Path(self.missing_file),
            )
        return kept

    def _group(self, part: str, query: Query) -> tuple[str, ...]:
        return () if part == "train" else query.members  # group recall needs all six

    def _record(self, part: str, query: Query) -> Record:
        captions = query.variants if part == "train" else (query.text,)
        return Record(query.id, part, f"{part} {query.reference}", captions, source=query)
