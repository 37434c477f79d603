"""Films of one class each, with class texts: class folders or a metadata.csv below one root (hip prostheses, implants, chest films)."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.augment import FLIPS, augment, mirrored, preset, swap_sides, tells_side
from mmexpert.data.balance import balance_settings
from mmexpert.data.class_texts import class_names, class_prompts
from mmexpert.data.findings import DataFault, FaultList, Finding, check_groups, deep_check
from mmexpert.data.image_groups import check_sums, group_remedy, grouped, settle_duplicates
from mmexpert.data.image_index import METADATA, Columns, Row, read_index
from mmexpert.data.picture_cache import CACHES, Decoding, PictureCache
from mmexpert.data.preparation import film_node, stored_constants
from mmexpert.data.radiographs import FilmTransform, check_header, per_image, standardized, tower_constants
from mmexpert.data.records import Record, RecordDataset
from mmexpert.data.sampling import EVALUATION, epoch_order, sample_rng
from mmexpert.types import ClassTable, ConfigError, DataError

log = logging.getLogger(__name__)
_FITTED_ON = 2000  # images, at most, for mean and sd under normalize=dataset
_NORMALIZE = ("encoder", "per_image", "dataset", "none")
_SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}


@dataclass(kw_only=True, eq=False)
class ImageFolder(RecordDataset):
    """root, metadata: class folders, or a table of the images. conf/dataset/image_folder.yaml says what each key means.

    side, in_chans, mean, std: of the image tower, which the YAML refers to. The constructor reads all headers and every sha256 column;
    deep_check() decodes every film. Raises DataError and ConfigError before anything is trained.
    """

    root: str
    metadata: str | None
    class_texts: Any
    class_order: Sequence[Any] | None
    templates: Any
    label_column: str
    group_column: str | None
    group_from: str | None
    positives: str
    channels: int
    side: int
    in_chans: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    resize: str
    window: Any
    normalize: str
    augmentation: str
    flip: str
    balance: dict[str, Any]
    duplicates: str
    cache: str
    cache_dir: str
    seed: int
    on_error: str
    allow_outside: bool

    unit_length, pad_to, max_length = 1, "batch", 1  # what collate asks of clips; films have none

    def __post_init__(self) -> None:
        self._check_keys()
        faults = FaultList("image_folder", self.on_error)
        columns = Columns(self.label_column, self.group_column)
        index = read_index(Path(self.root), self.metadata, columns, self.allow_outside, faults)
        rows, self.groups = grouped(index, columns, self.group_from, faults)
        rows = self._usable(rows, index.columns, faults)
        faults.settle()  # after all rows: one run names them all
        names = class_names([row.label for row in rows], self.class_order)
        prompts = class_prompts(names, self.class_texts, self.templates, Path(self.root), faults)
        self.rows = {row.id: row for row in rows}
        records = [self._record(row, names, prompts) for row in rows]
        check_groups("image_folder", [record for record in records if record.split])
        training = [record.label for record in records if record.split in ("train", "")]
        classes = ClassTable(names, prompts, tuple(training.count(k) for k in range(len(names))), self.class_order is not None)
        super().__init__("image_folder", records, self.positives, classes)
        faults.hand_over(self)
        self._warn(names)
        self.first_prompt = np.cumsum([0, *(len(texts) for texts in prompts)])
        mirrors_text = self.flip == "swap" and any(tells_side(text) for texts in prompts for text in texts)
        self.has_text_index = "text" not in index.columns and not mirrors_text  # the table's row would tell the other side
        self.statistics = self.constants if self.normalize == "encoder" else None  # mean and sd by channel; else from fit()
        self._flat: set[str] = set()
        self.films = self._cache(self.cache)

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'image': float32 [C, S, S], 'text', 'label', 'text_index': row of the prompt table, absent where texts are a film's own}."""
        picture, text, pick = self.picture(record), record.captions[0], 0
        if epoch != EVALUATION:
            rng = sample_rng(self.seed, epoch, record.id, repeat)
            prompt, side = rng.random(2)  # always both, and first: no key of the picture moves another draw
            pick = int(prompt * len(record.captions))
            text = record.captions[pick]
            if self.flip == "swap" and side < 0.5:
                picture, text = mirrored(picture), swap_sides(text)
            picture = picture if self.ranges is None else augment(picture, self.ranges, rng)
        sample: dict[str, Any] = {"image": self.normalized(picture), "text": text, "label": record.label}
        if self.has_text_index:
            sample["text_index"] = int(self.first_prompt[record.label]) + pick
        return sample

    def picture(self, record: Record) -> np.ndarray:
        """The film of a record, float32 [C, S, S] in 0..1, before augmentation and normalisation."""
        return self.films(record.id)

    def _cache(self, kind: str) -> PictureCache:
        left = sorted(row.id for row in self.rows.values() if self._mirrored(row))
        settings = [asdict(self.transform), left]
        return PictureCache(kind, self.cache_dir, {row.id: row.path for row in self.rows.values()}, Decoding(self._film, settings, "<f4"))

    def _film(self, name: str) -> np.ndarray:
        row = self.rows[name]
        picture, flat = self.transform(row.path, name)
        if flat and name not in self._flat:
            self._flat.add(name)
            log.warning("%s (record %s) has one grey value only", row.path, name)
        return mirrored(picture) if self._mirrored(row) else picture

    def _mirrored(self, row: Row) -> bool:
        return self.flip == "canonical" and _SIDES[row.side.lower()] == "L"

    def record_columns(self, record: Record) -> dict[str, str]:
        """The columns of metadata.csv that mean nothing here."""
        return self.rows[record.id].extra

    def normalized(self, picture: np.ndarray) -> np.ndarray:
        """The picture as the tower sees it. Raises ConfigError where normalize=dataset has not been fitted."""
        if self.normalize == "per_image":
            return per_image(picture)
        if self.normalize == "none":
            return picture
        if self.statistics is None:
            raise ConfigError("dataset.normalize=dataset: fit(training indices) comes before the first sample")
        return standardized(picture, *self.statistics)

    def preparation(self) -> dict[str, Any]:
        """How a model trained here prepares a film: as evaluation does, but for flip=canonical, which needs the film's side."""
        return film_node(self.transform, self.normalize, self.statistics)

    def fit(self, train: Sequence[int]) -> None:
        """Mean and sd by channel over at most 2,000 films of a fold's training part, drawn by seed; nothing under another normalize."""
        if self.normalize != "dataset":
            return
        train = sorted(train)
        drawn = [train[i] for i in epoch_order(len(train), self.seed, 0)[:_FITTED_ON]]
        sums, squares = np.zeros(self.channels), np.zeros(self.channels)
        for i in drawn:  # one film in memory at a time
            picture = self.picture(self.records[i]).astype(np.float64)
            sums += picture.mean((1, 2))
            squares += (picture**2).mean((1, 2))
        mean = sums / len(drawn)
        sd = np.sqrt(np.maximum(squares / len(drawn) - mean**2, 0))
        self.statistics = mean.astype(np.float32), sd.astype(np.float32)

    def take_up(self, preparation: dict[str, Any] | None) -> None:
        """Mean and sd of a stored model. Raises ConfigError where normalize=dataset finds none."""
        if self.normalize == "dataset":
            self.statistics = stored_constants(preparation)

    def require_groups(self) -> None:
        """Raises ConfigError under a grouped cv where nobody has said which films are of one patient."""
        if self.groups == "unknown":
            raise ConfigError(
                f"dataset.root={self.root}: nothing says which images are of one patient, which a grouped cv needs. "
                + group_remedy(self.group_column)
            )

    def deep_check(self) -> list[Finding]:
        """Every film decoded once."""
        checked = copy.copy(self)
        checked.normalize, checked._flat = "none", set()
        checked.films = checked._cache("none")
        findings = deep_check(checked)
        flat = [(str(self.rows[name].path), name) for name in sorted(checked._flat)]
        return findings + [
            Finding("warning", "constant_image", file, name, f"{file} has one grey value only: is it a film?") for file, name in flat
        ]

    def fingerprint_lines(self) -> list[str]:
        """The records with their relative paths, after the prompts of each class."""
        prompts = [f"{name}\t{'|'.join(texts)}" for name, texts in zip(self.classes.names, self.classes.texts, strict=True)]
        lines = super().fingerprint_lines()
        return prompts + [f"{line}\t{self.rows[record.id].file}" for line, record in zip(lines, self.records, strict=True)]

    def _check_keys(self) -> None:
        """Raises ConfigError for a value that no film could be read with."""
        for key, choices in (("flip", FLIPS), ("normalize", _NORMALIZE), ("cache", CACHES)):
            if getattr(self, key) not in choices:
                raise ConfigError(f"dataset.{key}={getattr(self, key)}: choose {', '.join(choices)}")
        if self.in_chans != self.channels:
            raise ConfigError(f"dataset.channels={self.channels} must equal encoder.image.in_chans={self.in_chans}: set one to the other")
        self.transform = FilmTransform(self.side, self.channels, self.resize, self.window)
        self.ranges = preset(self.augmentation)
        self.balance_settings = balance_settings(self.balance)
        if self.normalize == "encoder":
            self.constants = tuple(tower_constants(key, getattr(self, key), self.channels) for key in ("mean", "std"))

    def _usable(self, rows: list[Row], columns: Sequence[str], faults: FaultList) -> list[Row]:
        """Rows whose file, class and side can be used; the rest goes to faults. Raises DataError where none is left."""
        if self.flip == "canonical" and "side" not in columns:
            there = ", ".join(columns) or f"none: there is no {METADATA}"
            raise DataFault(f"dataset.flip=canonical needs a column 'side' (L or R) for each image; there are {there}", "wrong_field")
        order = None if self.class_order is None else {str(name) for name in self.class_order}
        usable = []
        for row in rows:
            with faults.catching():
                if order is not None and row.label not in order:
                    raise row.fault("unknown_class", f"the label {row.label!r} is not in dataset.class_order={list(self.class_order)}")
                if self.flip == "canonical" and row.side.lower() not in _SIDES:
                    raise row.fault("wrong_field", f"the side is {row.side!r}, expected L or R, which dataset.flip=canonical needs")
                try:
                    check_header(row.path, row.id)
                except DataFault as fault:  # known by its path; the table's line is what is to be mended
                    raise row.fault(fault.code, str(fault)) from fault
                usable.append(row)
        usable, digests = check_sums(usable, faults)
        usable = settle_duplicates(usable, self.duplicates, digests, faults)
        if len({row.label for row in usable}) < 2:
            faults.insist()  # they are the reason, not the classes
        if not usable:
            raise DataError(f"dataset.root={self.root}: there is no image in it")
        return usable

    def _record(self, row: Row, names: tuple[str, ...], prompts: tuple[tuple[str, ...], ...]) -> Record:
        label = names.index(row.label)
        return Record(
            id=row.id,
            split=row.split,
            group=row.group,
            captions=(row.text,) if row.text else prompts[label],
            label=label,
            source=row.path,
            size=row.path.stat().st_size,
        )

    def _warn(self, names: tuple[str, ...]) -> None:
        """What to look at before a long run."""
        absent = [name for label, name in enumerate(names) if not any(record.label == label for record in self.records)]
        if absent:
            self.exclusions.warnings.append(f"dataset.class_order: no image of the class {', '.join(absent)}; it can not be learned")
        if self.flip == "swap":
            self.exclusions.warnings.append("dataset.flip=swap mirrors films with the side letters burnt in; use it where there are none")
