"""The embedded radiographs: drawn once into a cache folder, served with class texts. The simulator comes as an object."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.augment import augment, preset
from mmexpert.data.balance import balance_settings
from mmexpert.data.cache import cached_folder, content_name
from mmexpert.data.preparation import film_node
from mmexpert.data.radiographs import FilmTransform, per_image
from mmexpert.data.records import Record, RecordDataset
from mmexpert.data.sampling import EVALUATION, epoch_order, sample_rng
from mmexpert.types import ClassTable, ConfigError

log = logging.getLogger(__name__)
_FORMAT = 1  # part of the cache's name; raised by whoever changes what is stored


@dataclass(kw_only=True, eq=False)
class HipPhantom(RecordDataset):
    """n_patients x images_per_patient films, grouped by patient; a longer set begins with the shorter one.

    simulator: classes, identity() and film(patient, visit), as simulate.radiograph.Radiograph. class_texts: a text or a list of them by
    class; templates multiply them. captions: which of a class's prompts training takes, random (one per film and epoch) | first.
    normalize: per_image (mean 0, sd 1) | none (0..1). shuffle_labels: labels handed round among the patients, a control experiment.
    rows: what the simulator tells of each film (side, design, severity, ...), in the order of the records; its true_label is what is
    drawn.
    """

    n_patients: int
    images_per_patient: int
    simulator: Any
    class_texts: dict[str, Any]
    templates: list[str]
    captions: str
    positives: str
    shuffle_labels: bool
    normalize: str
    seed: int
    augmentation: str
    balance: dict[str, Any]
    cache_dir: str

    unit_length, pad_to, max_length = 1, "batch", 1  # of radar clips, for the collate function: there are none

    def __post_init__(self) -> None:
        self._check_keys()
        self.ranges, self.balance_settings = preset(self.augmentation), balance_settings(self.balance)
        names = tuple(self.simulator.classes)
        texts = prompts_by_class(self.class_texts, self.templates, names)
        identity = {
            "format": _FORMAT,
            "n_patients": self.n_patients,
            "images_per_patient": self.images_per_patient,
            "simulator": self.simulator.identity(),
        }
        self.cache = cached_folder(Path(self.cache_dir) / content_name("hip_phantom", identity), self._generate)
        self.films = np.load(self.cache / "films.npy", allow_pickle=False)  # [n, side, side]: loader workers share the pages
        rows = [json.loads(line) for line in (self.cache / "records.jsonl").read_text(encoding="utf-8").splitlines()]
        if self.shuffle_labels:
            rows = self._shuffled(rows)
        records = [
            Record(id=row["id"], split="", group=row["group"], label=names.index(row["label"]), source=position)
            for position, row in enumerate(rows)
        ]
        counts = np.bincount([record.label for record in records], minlength=len(names))
        super().__init__("hip_phantom", records, self.positives, ClassTable(names, texts, tuple(counts.tolist())))
        self.rows = [rows[record.source] for record in self.records]
        self.told = dict(zip([record.id for record in self.records], self.rows, strict=True))
        self.first_prompt = np.cumsum([0, *(len(prompts) for prompts in texts)])

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'image': float32 [1, H, W], 'text': the class's prompt of this draw, 'label', 'text_index': its row of the prompt table}."""
        prompts, pick = self.classes.texts[record.label], 0
        if epoch != EVALUATION and self.captions == "random":  # a stream of its own: prompts do not depend on augmentation
            pick = int(sample_rng(self.seed, epoch, f"prompt {record.id}", repeat).integers(len(prompts)))
        picture = self.picture(record)[None]
        if epoch != EVALUATION and self.ranges is not None:
            picture = augment(picture, self.ranges, sample_rng(self.seed, epoch, record.id, repeat))
        return {
            "image": per_image(picture) if self.normalize == "per_image" else picture,
            "text": prompts[pick],
            "label": record.label,
            "text_index": int(self.first_prompt[record.label]) + pick,
        }

    def picture(self, record: Record) -> np.ndarray:
        """The film of a record, float32 [H, W] in 0..1."""
        film = self.films[record.source]
        return film.astype(np.float32) / np.iinfo(film.dtype).max

    def preparation(self) -> dict[str, Any]:
        """How a model trained here prepares a film: whole range to 0..1, as the drawn ones are stored."""
        return film_node(FilmTransform(self.films.shape[1], 1, "pad", "none"), self.normalize, None)

    def record_columns(self, record: Record) -> dict[str, Any]:
        """What was drawn: visit, view, side, design, severity, true_label."""
        return {name: value for name, value in self.told[record.id].items() if name not in ("id", "file", "label", "group")}

    def fingerprint_lines(self) -> list[str]:
        """The cache's name says what the films are; the prompts and the records, whose labels may be shuffled, come after it."""
        prompts = [f"{name}\t{'|'.join(texts)}" for name, texts in zip(self.classes.names, self.classes.texts, strict=True)]
        return [self.cache.name, *prompts, *super().fingerprint_lines()]

    def _check_keys(self) -> None:
        for key in ("n_patients", "images_per_patient"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ConfigError(f"dataset.{key}={getattr(self, key)}: 1 or more")
        for key, choices in (("captions", ("random", "first")), ("normalize", ("per_image", "none"))):
            if getattr(self, key) not in choices:
                raise ConfigError(f"dataset.{key}={getattr(self, key)}: choose {' or '.join(choices)}")

    def _generate(self, folder: Path) -> None:
        """Writes films.npy and records.jsonl, patient by patient."""
        log.info("drawing %d radiographs, once: %s", self.n_patients * self.images_per_patient, folder.parent)
        drawn = [self.simulator.film(i, v) for i in range(self.n_patients) for v in range(self.images_per_patient)]
        np.save(folder / "films.npy", np.stack([film for film, _ in drawn]))
        lines = [json.dumps(row, sort_keys=True) + "\n" for _, row in drawn]
        (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")

    def _shuffled(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        labels = {row["group"]: row["label"] for row in rows}
        patients = list(labels)
        givers = epoch_order(len(patients), self.seed, 0)
        given = {patient: labels[patients[giver]] for patient, giver in zip(patients, givers, strict=True)}
        return [row | {"label": given[row["group"]]} for row in rows]


def prompts_by_class(class_texts: dict[str, Any], templates: list[str], names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Every text of each class in every template, the first text in the first template first.

    Raises ConfigError where classes and texts differ, a text is empty or a template has not one {}.
    """
    without, unknown = sorted(set(names) - set(class_texts)), sorted(set(class_texts) - set(names))
    if without or unknown:
        raise ConfigError(
            f"dataset.class_texts: classes without a text: {', '.join(without) or 'none'}; texts without a class: "
            f"{', '.join(unknown) or 'none'}; the classes are {', '.join(names)}"
        )
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise ConfigError(f"dataset.templates={templates}: one or more, each with one {{}} where the class text goes")
    prompts = []
    for name in names:
        texts = [class_texts[name]] if isinstance(class_texts[name], str) else list(class_texts[name] or ())
        if not texts or any(not str(text).strip() for text in texts):
            raise ConfigError(f"dataset.class_texts.{name}: an empty text; give the class one or more sentences")
        prompts.append(tuple(template.replace("{}", str(text)) for template in templates for text in texts))
    return tuple(prompts)
