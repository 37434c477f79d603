"""FashionIQ (arXiv 1905.12794): product pictures and two captions that tell what the target has and the reference has not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexpert.data.composed_index import Annotations, Query, Reading, check_list, check_row, check_split, find_root, warn_queries
from mmexpert.data.composed_records import ComposedDataset
from mmexpert.data.findings import DataFault
from mmexpert.data.paths import plain
from mmexpert.data.radar_text_index import read_json
from mmexpert.types import ConfigError

CATEGORIES = ("dress", "shirt", "toptee")
SPLITS = ("train", "val", "test")
_STRIPPED = ".?, "


@dataclass(kw_only=True, eq=False)
class FashionIQ(ComposedDataset):
    """categories: trained on together, each evaluated with its own gallery (a picture may be in two). gallery: split (all names of the
    split file) | union (only references and targets of the queries: 7 to 8 points more, compares with no split figure)."""

    categories: Sequence[str]
    gallery: str

    set_name = "fashion_iq"

    def read(self, split: str) -> Annotations:
        """The annotations of a split."""
        return read_fashion_iq(self.root, self.categories, split, self.gallery)

    def picture_root(self) -> tuple[Path, str]:
        """(folder of all pictures, pattern)."""
        root = find_root(self.root, ("fashionIQ_dataset",))
        tops = [Path(self.image_root)] if self.image_root else [root, root.parent]
        folders = [top / "images" for top in tops] + ([tops[0]] if self.image_root else [])
        return next((folder for folder in folders if folder.is_dir()), folders[0]), "NAME.jpg or NAME.png"


def read_fashion_iq(root: str, categories: Sequence[str], split: str, gallery: str) -> Annotations:
    """Queries and galleries of a split, test without targets. Raises DataFault(s) with file and row, ConfigError."""
    check_split(split, SPLITS)
    if gallery not in ("split", "union"):
        raise ConfigError(f"dataset.gallery={gallery}: choose split or union")
    unknown = [category for category in categories if category not in CATEGORIES]
    if unknown or not categories or len(set(categories)) < len(categories):
        raise ConfigError(f"dataset.categories={list(categories)}: each once, out of {', '.join(CATEGORIES)}")
    folder, reading = find_root(root, ("fashionIQ_dataset",)), Reading(f"fashion_iq {split}")
    galleries: dict[str, tuple[str, ...]] = {}
    queries: list[tuple[Query, Path, int]] = []
    for category in categories:
        listed = _names(folder / "image_splits" / f"split.{category}.{split}.json", reading)
        rows = list(_queries(folder / "captions" / f"cap.{category}.{split}.json", (category, split), set(listed), reading))
        used = {name for query, _, _ in rows for name in (query.reference, query.target) if name}
        galleries[category] = tuple(listed if gallery == "split" else sorted(used))
        queries += rows
        warn_queries(rows, reading)
        galleries |= {f"{category} all": tuple(listed)}
    names = tuple(sorted({name for category in categories for name in galleries.pop(f"{category} all")}))
    paths = {name: (f"{name}.jpg", f"{name}.png") for name in names}
    return Annotations(split, tuple(query for query, _, _ in queries), galleries, names, paths, gallery, reading.settle())


def _names(file: Path, reading: Reading) -> list[str]:
    """Sorted names of a split file, each once."""
    content = check_list(read_json(file), file)
    seen: set[str] = set()
    for row, name in enumerate(content):
        if not isinstance(name, str):
            reading.fault("wrong_field", file, row, f"{name!r} is no name")
            continue
        try:
            plain(name, str(row), file)
        except DataFault as fault:
            reading.faults.append(fault)
            continue
        if name in seen:
            reading.warn("names repeated in a split file (kept once)", file, row)
        seen.add(name)
    return sorted(seen)


def _queries(file: Path, where: tuple[str, str], listed: set[str], reading: Reading) -> Iterator[tuple[Query, Path, int]]:
    """The sound rows of a captions file with their numbers."""
    category, split = where
    pictures = ["candidate"] if split == "test" else ["candidate", "target"]
    keys: dict[str, Any] = {name: str for name in pictures} | {"captions": list}
    for number, row in enumerate(check_list(read_json(file), file)):
        if not check_row(row, keys, reading, file, number):
            continue
        captions = row["captions"]
        if len(captions) != 2 or any(not isinstance(caption, str) for caption in captions):
            reading.fault("wrong_field", file, number, f"captions is {captions!r}, expected exactly two sentences")
            continue
        strange = [(key, row[key]) for key in pictures if row[key] not in listed]
        for key, name in strange:
            reading.fault("wrong_field", file, number, f"{key} {name!r} is not in the split file of {category} {split}")
        if strange:
            continue
        if not any(map(clean, captions)):
            reading.warn("queries whose captions are both empty", file, number)
        target = row["target"] if split != "test" else ""
        name = f"{split}.{category}.{number:05d}"
        yield Query(name, category, row["candidate"], target, evaluation_text(*captions), training_texts(*captions)), file, number


def clean(caption: str) -> str:
    """The caption without dots, question marks, commas and blanks at both ends."""
    return caption.strip(_STRIPPED)


def evaluation_text(first: str, second: str) -> str:
    """ "C1 and c2": both, also where one is empty; `capitalize` lowers all but the first letter, as published."""
    return f"{clean(first).capitalize()} and {clean(second)}"


def training_texts(first: str, second: str) -> tuple[str, ...]:
    """What training draws from, equally likely: "C1 and c2", "C2 and c1", "C1", "C2"; only the other alone where one is empty."""
    if not clean(first) or not clean(second):
        return ((clean(first) or clean(second)).capitalize(),)
    both = evaluation_text(first, second), evaluation_text(second, first)
    return (*both, clean(first).capitalize(), clean(second).capitalize())
