"""What every data set is to the rest of the package: sorted records with ids, groups, labels, captions and positive keys."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmexpert.data.cache import file_digest
from mmexpert.types import ClassTable, ConfigError, DataError

Draw = tuple[int, int, int]
"""(index, epoch, repeat): which record, in which epoch (-1 = evaluation: nothing random), its how-manieth draw in that epoch."""

POSITIVES = ("instance", "text", "label", "group")


@dataclass(frozen=True)
class Record:
    """One sample before its files are read."""

    id: str  # unique in the data set, stable when files are added
    split: str  # train, valid, test, or "" where the data set has no parts of its own
    group: str  # rows of one group never straddle a fold
    captions: tuple[str, ...] = ()
    label: int = -1  # index into classes.names
    source: Any = None  # what the data set needs to load it: paths, a window, a shard
    text_key: str = ""  # canonical description, where the set has one; equal descriptions are positives of each other
    hard_captions: tuple[tuple[str, str], ...] = ()  # (kind, caption that differs from captions[0] in that one attribute)
    size: int = 0  # bytes of the source files, for the fingerprint
    item: str = ""  # the query-side sample; several records of one item are its captions ("" = the record alone)


@dataclass
class Exclusions:
    """What reading left out and what it warned of: nothing is dropped without a line here."""

    dropped: list[tuple[str, str, str]] = field(default_factory=list)  # (file, record, reason)
    warnings: list[str] = field(default_factory=list)


class RecordDataset(Dataset):
    """Base of all data sets: a sequence of records, drawn by (index, epoch, repeat).

    A subclass reads and checks all records in its constructor, calls super().__init__, and defines sample(). It knows no
    tokenizer, no device, no global random state.

    records: any order; sorted by id here. positives: instance | text | label | group. hard_kinds: kinds of hard captions.
    together: ids that a training batch must keep side by side (pairs), or None. balance_settings: data.balance.BalanceSettings of a
    set with classes, or None. content_roots: folders whose files' bytes belong to the fingerprint
    (dataset.fingerprint=content). merged: classes that a run has made one (`other`). groups: declared | none declared (each record is
    its own by the user's word) | unknown. lengths: of clips, how many of the records read have so many frames ("96..127"); else empty.
    """

    hard_kinds: tuple[str, ...] = ()
    together: list[tuple[str, ...]] | None = None
    balance_settings: Any = None
    content_roots: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    groups: str = "declared"
    lengths: Mapping[str, int] = MappingProxyType({})

    def __init__(self, name: str, records: Iterable[Record], positives: str, classes: ClassTable | None = None) -> None:
        self.name = name
        self.records = sorted(records, key=lambda record: record.id)
        self.classes = classes
        self.exclusions = Exclusions()
        check_unique(self.records, name)
        self.positives = positives
        self.keys = positive_keys(self.records, positives)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The sample of a draw: roles of types.Batch for one row, as NumPy arrays, ints and strings; id and positive_key included."""
        index, epoch, repeat = draw
        record = self.records[index]
        sample = self.sample(record, epoch, repeat)
        return sample | {"id": index, "positive_key": int(self.keys[index])}

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """Loads one record; draws come from data.sampling.sample_rng(seed, epoch, record.id, repeat), none where epoch is -1."""
        raise NotImplementedError

    def part(self, split: str) -> list[int]:
        """Indices of the records that the data set itself puts into a split."""
        return [i for i, record in enumerate(self.records) if record.split == split]

    def fit(self, train: Sequence[int]) -> None:
        """Learns what a data set measures on its own records (image mean and sd): from a fold's training part, before its loaders."""

    def take_up(self, preparation: dict[str, Any] | None) -> None:
        """What fit() would learn, from the preparation() that is stored with a model instead: for other records than its own."""

    def preparation(self) -> dict[str, Any] | None:
        """What a model trained here asks of a picture, as a plain node (`_target_` and values) that is stored with it; after fit().

        None: there are no pictures, or dataset.transform says it all.
        """
        return None

    def require_groups(self) -> None:
        """Raises ConfigError where nobody has said which records belong together; called under a grouped cv."""

    def record_columns(self, record: Record) -> dict[str, Any]:
        """What else is known of a record (a table's further columns), for the predictions; the same names for all records."""
        return {}

    def training_texts(self, indices: Sequence[int]) -> list[str]:
        """Captions that training may see: those of the given records, and the class texts."""
        texts = [caption for i in indices for caption in self.records[i].captions]
        if self.classes is not None:
            texts += [text for texts_of_class in self.classes.texts for text in texts_of_class]
        return texts

    def vocabulary_texts(self, indices: Sequence[int]) -> list[str]:
        """Texts from which a vocabulary is built: the training texts, but where a data set has a fixed list of words."""
        return self.training_texts(indices)

    def fingerprint(self) -> str:
        """SHA-256 over the sorted records: id, split, label, group, texts and bytes; no modification times."""
        digest = hashlib.sha256()
        for line in [*self.fingerprint_lines(), *content_lines(self.content_roots)]:
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    def fingerprint_lines(self) -> list[str]:
        """One line a record: a stored run compares them to name the records that changed."""
        return ["\t".join([r.id, r.split, str(r.label), r.group, "|".join(r.captions), r.text_key, str(r.size)]) for r in self.records]


def content_lines(roots: Sequence[str]) -> list[str]:
    """One line a file below the roots, hidden ones left out: relative path and SHA-256 of its bytes."""
    lines = []
    for root in map(Path, roots):
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                lines.append(f"{name.as_posix()}\t{file_digest(path)}")
    return lines


def one_caption_each(record: Record) -> list[Record]:
    """The record as one (sample, caption) pair per caption."""
    if len(record.captions) < 2:
        return [record]
    return [
        replace(record, id=f"{record.id}#{k}", captions=(caption,), item=record.id, hard_captions=record.hard_captions if k == 0 else ())
        for k, caption in enumerate(record.captions)
    ]


def check_unique(records: Sequence[Record], name: str) -> None:
    """Raises DataError where two records share an id."""
    for before, after in zip(records, records[1:], strict=False):
        if before.id == after.id:
            raise DataError(f"{name}: two records have the id {after.id!r} ({before.source}, {after.source}): give each its own")


def positive_keys(records: Sequence[Record], by: str) -> np.ndarray:
    """int64 [n]: equal where two records are positives of each other.

    by: instance (each record alone) | text (same text_key; without one, connected components of equal normalised captions)
    | label (same class) | group.
    """
    if by == "instance":
        names = [record.item or record.id for record in records]
    elif by == "label":
        if any(record.label < 0 for record in records):
            raise ConfigError("dataset.positives=label needs a label in every record: choose instance, text or group")
        names = [f"label {record.label}" for record in records]
    elif by == "group":
        names = [record.group for record in records]
    elif by == "text":
        if records and all(record.text_key for record in records):
            names = [record.text_key for record in records]
        else:
            names = caption_components(records)
    else:
        raise ConfigError(f"dataset.positives={by!r}: choose {', '.join(POSITIVES)}")
    return np.array([stable_key(name) for name in names], dtype=np.int64)


def caption_components(records: Sequence[Record]) -> list[str]:
    """Name of each record's component under "is of the same item or shares a normalised caption with" (union-find)."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        """The record that stands for i's component; halves the way to it."""
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[tuple[str, str], int] = {}
    for i, record in enumerate(records):
        for tie in [("item", record.item or record.id), *(("caption", normalize_caption(caption)) for caption in record.captions)]:
            other = first_with.setdefault(tie, i)
            parent[root(i)] = root(other)
    lowest: dict[int, int] = {}
    for i in range(len(records)):
        lowest.setdefault(root(i), i)
    return [records[lowest[root(i)]].id for i in range(len(records))]


def normalize_caption(caption: str) -> str:
    """NFKC, casefold, blanks collapsed, trailing .!?,; off: what counts as the same caption."""
    text = unicodedata.normalize("NFKC", caption).casefold()
    return re.sub(r"\s+", " ", text).strip().rstrip(".!?,;").rstrip()


def wordless(text: str) -> bool:
    """Whether nothing of a text can be seen: spaces, control and format characters (such as U+200B), marks without a letter."""
    return all(unicodedata.category(c)[0] in "CZ" or unicodedata.category(c) == "Mn" for c in text)


def stable_key(name: str) -> int:
    """First 8 bytes of BLAKE2b as a signed integer: the same in every process, unlike hash()."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
