"""The embedded scenes: drawn once into a cache folder, served with five captions each. The simulator comes as an object."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.augment import tells_side
from mmexpert.data.cache import cached_folder, content_name
from mmexpert.data.records import Record, RecordDataset, one_caption_each
from mmexpert.data.sampling import EVALUATION, epoch_order, sample_rng
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
SPLITS = {"train": "train", "valid": "val", "test": "test"}  # our part -> the simulator's split
CAPTIONS = ("random", "first", "all")
_FORMAT = 1  # part of the cache's name; raised by whoever changes what is stored


@dataclass(kw_only=True, eq=False)
class Scenes(RecordDataset):
    """images: pictures of each part, no scene in two of them; a longer part begins with the shorter one.

    simulator: identity(), words, described(count, split, seed) and picture(scene, seed), as simulate.scenes.SceneSimulator. captions of
    training: random (an item is a picture, one caption an epoch) | first | all (an item is a pair); evaluation takes all.
    shuffle_captions: captions handed round among the training pictures, a control experiment.
    """

    images: dict[str, int]
    seed: int
    captions: str
    positives: str
    shuffle_captions: bool
    simulator: Any
    transform: Any
    cache_dir: str

    unit_length, pad_to, max_length = 1, "batch", 1  # what collate asks of clips; pictures have none

    def __post_init__(self) -> None:
        counts = part_counts(self.images, "images")
        check_captions(self.captions)
        identity = {"format": _FORMAT, "images": counts, "seed": self.seed, "simulator": self.simulator.identity()}
        self.cache = cached_folder(Path(self.cache_dir) / content_name("scenes", identity), self._generate)
        self.pictures = np.load(self.cache / "pictures.npy", allow_pickle=False)  # [n, P, P, 3]: loader workers share the pages
        rows = [json.loads(line) for line in (self.cache / "records.jsonl").read_text(encoding="utf-8").splitlines()]
        if self.shuffle_captions:
            rows = self._shuffled(rows)
        records = []
        for position, row in enumerate(rows):
            name, captions = row["id"], tuple(row["captions"])
            record = Record(id=name, split=row["split"], group=name, captions=captions, text_key=row["key"], source=position)
            records += caption_records(record, self.captions)
        super().__init__("scenes", records, self.positives)
        warn_of_flips(self)

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'image': float32 [3, S, S], 'text'}."""
        picture = Image.fromarray(self.pictures[record.source])
        text, rng = drawn_caption(record, self.captions, self.seed, epoch, repeat)
        return {"image": self.transform(picture, rng), "text": text}

    def vocabulary_texts(self, indices: list[int]) -> list[str]:
        """The fixed words of scenes and edits, twice (words seen once are cut up): towers of one set read the other's texts."""
        return [" ".join(self.simulator.words)] * 2

    def fingerprint_lines(self) -> list[str]:
        """The cache's name says what the pictures are; the records, whose captions may be shuffled, come after it."""
        return [self.cache.name, *super().fingerprint_lines()]

    def _generate(self, folder: Path) -> None:
        """Writes pictures.npy and records.jsonl."""
        log.info("drawing %d scenes, once: %s", sum(self.images.values()), folder.parent)
        pictures, lines = [], []
        for part, split in SPLITS.items():
            for number, told in enumerate(self.simulator.described(self.images[part], split, self.seed)):
                pictures.append(self.simulator.picture(told.scene, self.seed))
                row = {"id": f"{part}-{number:05d}", "split": part, "key": told.key, "captions": told.captions}
                lines.append(json.dumps(row, sort_keys=True) + "\n")
        np.save(folder / "pictures.npy", np.stack(pictures))
        (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")

    def _shuffled(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        train = [i for i, row in enumerate(rows) if row["split"] == "train"]
        shuffled = list(rows)
        for i, j in zip(train, epoch_order(len(train), self.seed, 0), strict=True):
            giver = rows[train[j]]
            shuffled[i] = rows[i] | {"captions": giver["captions"], "key": giver["key"]}
        return shuffled


def part_counts(counts: dict[str, int], key: str) -> dict[str, int]:
    """The counts by part. Raises ConfigError where a part is missing or unknown, or a count is none."""
    right = isinstance(counts, dict) and set(counts) == set(SPLITS)
    if not right or any(not isinstance(count, int) or count < 0 for count in counts.values()) or not counts["train"]:
        raise ConfigError(f"dataset.{key}={counts}: {', '.join(SPLITS)}, each 0 or more, train 1 or more; dataset.{key}.train=N sets one")
    return {part: counts[part] for part in SPLITS}


def check_captions(captions: str) -> None:
    """Raises ConfigError for an unknown dataset.captions."""
    if captions not in CAPTIONS:
        raise ConfigError(f"dataset.captions={captions}: choose {', '.join(CAPTIONS)}")


def caption_records(record: Record, captions: str) -> list[Record]:
    """The records that stand for a picture: one a caption in evaluation and where training takes all of them."""
    return one_caption_each(record) if record.split != "train" or captions == "all" else [record]


def drawn_caption(record: Record, captions: str, seed: int, epoch: int, repeat: int) -> tuple[str, np.random.Generator | None]:
    """A record's caption in this epoch, and the generator for its picture; None in evaluation."""
    if epoch == EVALUATION:
        return record.captions[0], None
    rng = sample_rng(seed, epoch, record.id, repeat)
    pick = int(rng.integers(len(record.captions)))  # always drawn: captions=first moves no draw of the picture's
    return record.captions[pick if captions == "random" else 0], rng


def warn_of_flips(dataset: RecordDataset) -> None:
    """A warning of the data set where its transform mirrors pictures whose captions tell left from right."""
    if getattr(dataset.transform, "flip", 0) > 0:
        told = sum(tells_side(caption) for record in dataset.records for caption in record.captions)
        if told:
            message = f"dataset.transform.flip={dataset.transform.flip}: {told} captions say left or right, which a mirror makes false"
            dataset.exclusions.warnings.append(message)
