"""The embedded composed set: a scene, an edit in words, the edited scene. Relative rows of the parts, classic rows of their galleries.

Pictures have names (their scenes) and ids: positions in the sorted names of a part. The rows are those of FashionIQ and CIRR.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.cache import cached_folder, content_name
from mmexpert.data.composed_index import Query, drawn_text
from mmexpert.data.fashion_iq import evaluation_text, training_texts
from mmexpert.data.records import Draw, Record, RecordDataset
from mmexpert.data.scenes import SPLITS, part_counts
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
_FORMAT = 1  # part of the cache's name; raised by whoever changes what is stored
Transform = Callable[[Image.Image, np.random.Generator | None], np.ndarray]


class ScenePictures(RecordDataset):
    """Classic rows {image: float32 [3, S, S], id} of a part's pictures, uint8 [n, P, P, 3] in the order of the sorted names."""

    def __init__(self, name: str, names: list[str], pixels: np.ndarray, transform: Transform) -> None:
        super().__init__(name, [Record(picture, "", picture) for picture in names], "instance")
        self.ids = {picture: i for i, picture in enumerate(names)}
        self.pixels, self.transform = pixels, transform

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The picture of a draw; nothing about it is random."""
        return {"image": self.picture(draw[0]), "id": draw[0]}

    def picture(self, number: int) -> np.ndarray:
        """The picture of an id, as the tower sees it."""
        return self.transform(Image.fromarray(self.pixels[number]), None)


@dataclass(kw_only=True, eq=False)
class ComposedScenes(RecordDataset):
    """triplets: queries of each part. extra: further edits of each reference in the gallery. captions: 1 (an order: "remove the red
    circle") | 2 (two sentences joined as in FashionIQ; training draws one of the four variants).

    simulator: identity(), words, triplets(count, split, seed, extra), name(scene) and picture(scene, seed), as
    simulate.edits.ComposedSimulator. transform: as in data.pictures, called as in evaluation in training too.
    """

    triplets: dict[str, int]
    extra: int
    captions: int
    seed: int
    simulator: Any
    transform: Transform
    cache_dir: str

    unit_length, pad_to, max_length = 1, "batch", 1  # what collate asks of clips; pictures have none
    set_name = "composed_scenes"

    def __post_init__(self) -> None:
        counts = part_counts(self.triplets, "triplets")
        if self.captions not in (1, 2):
            raise ConfigError(f"dataset.captions={self.captions}: choose 1 or 2")
        if not isinstance(self.extra, int) or self.extra < 0:
            raise ConfigError(f"dataset.extra={self.extra}: gallery pictures for each query, 0 or more")
        identity = {
            "format": _FORMAT,
            "triplets": counts,
            "extra": self.extra,
            "seed": self.seed,
            "simulator": self.simulator.identity(),
        }
        self.cache = cached_folder(Path(self.cache_dir) / content_name(self.set_name, identity), self._generate)
        self.shown: dict[str, ScenePictures] = {}
        for part in [part for part in SPLITS if counts[part]]:
            names = json.loads((self.cache / f"{part}.json").read_text(encoding="utf-8"))
            pixels = np.load(self.cache / f"{part}.npy", mmap_mode="r", allow_pickle=False)  # loader workers share the pages
            self.shown[part] = ScenePictures(f"{self.set_name} {part}", names, pixels, self.transform)
        rows = [json.loads(line) for line in (self.cache / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
        super().__init__(self.set_name, [self._record(row) for row in rows], "instance")
        self.keys = np.array([self.shown[r.split].ids[r.source.target] for r in self.records], np.int64)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """A relative row. train: reference and target [3, S, S], text, id, reference_key, positive_key; otherwise text, id,
        reference_key, positive_key, members [6]: features come from the gallery. Keys and members are picture ids of the part."""
        index, epoch, repeat = draw
        record = self.records[index]
        query, ids = record.source, self.shown[record.split].ids
        row = {
            "text": self.text(record, epoch, repeat),
            "id": index,
            "reference_key": ids[query.reference],
            "positive_key": ids[query.target],
        }
        if record.split != "train":
            return row | {"members": np.array([ids[name] for name in query.members], np.int64)}
        return {role: self.picture(record.split, getattr(query, role)) for role in ("reference", "target")} | row

    def text(self, record: Record, epoch: int, repeat: int) -> str:
        """The evaluation text, or one of the training variants, equally likely."""
        return drawn_text(record, self.seed, epoch, repeat)

    def picture(self, part: str, name: str) -> np.ndarray:
        """A picture as the tower sees it, float32 [3, S, S]."""
        pictures = self.shown[part]
        return pictures.picture(pictures.ids[name])

    def pictures(self, part: str) -> ScenePictures:
        """Classic rows of all pictures of a part: its gallery; in train, references and targets."""
        return self.shown[part]

    def thumbnail(self, part: str, name: str) -> Image.Image:
        """The picture for the sheet of retrieved pictures."""
        pictures = self.shown[part]
        return Image.fromarray(pictures.pixels[pictures.ids[name]])

    def told(self, part: str) -> dict[str, Any]:
        """What a protocol says of a part: split, gallery, transform."""
        told = self.transform.told() if hasattr(self.transform, "told") else type(self.transform).__name__
        return {"split": part, "gallery": "split", "transform": told}

    def galleries(self, part: str) -> dict[str, np.ndarray]:
        """The one gallery of a part: ids int64, ascending; the union over its queries."""
        return {"": np.arange(len(self.shown[part]), dtype=np.int64)}

    def partial(self, part: str) -> dict[str, Any]:
        """Nothing: no picture is ever missing."""
        return {}

    def require_groups(self) -> None:
        """Raises ConfigError: galleries belong to the parts."""
        raise ConfigError(f"dataset={self.set_name} has parts of its own, and galleries that belong to them: choose cv=none")

    def vocabulary_texts(self, indices: list[int]) -> list[str]:
        """The fixed words of scenes and edits, twice (words seen once are cut up): towers of one set read the other's texts."""
        return [" ".join(self.simulator.words)] * 2

    def fingerprint_lines(self) -> list[str]:
        """The cache's name says what pictures, queries and galleries are."""
        return [self.cache.name, *super().fingerprint_lines()]

    def _record(self, row: dict[str, Any]) -> Record:
        names = self.shown[row["part"]].records
        first, second = row["texts"]
        text, variants = (first, (first,)) if self.captions == 1 else (evaluation_text(first, second), training_texts(first, second))
        query = Query(
            id=row["id"],
            category="",
            reference=names[row["reference"]].id,
            target=names[row["target"]].id,
            text=text,
            variants=variants,
            members=tuple(names[i].id for i in row["members"]),
            edit=row["edit"],
        )
        captions = variants if row["part"] == "train" else (text,)
        return Record(row["id"], row["part"], f"{row['part']} {query.reference}", captions, source=query, text_key=query.target)

    def _generate(self, folder: Path) -> None:
        """Writes PART.npy and PART.json (pictures and their names, sorted by name) and queries.jsonl."""
        log.info("drawing the scenes of %d edits, once: %s", sum(self.triplets.values()), folder.parent)
        lines = []
        for part, split in SPLITS.items():
            found = self.simulator.triplets(self.triplets[part], split, self.seed, None if part == "train" else self.extra)
            shown = {scene for t in found for scene in (t.reference, t.target, *t.members, *t.extra)}
            named = {self.simulator.name(scene): scene for scene in shown}
            names = sorted(named)
            ids = {named[name]: number for number, name in enumerate(names)}
            if names:
                np.save(folder / f"{part}.npy", np.stack([self.simulator.picture(named[name], self.seed) for name in names]))
            (folder / f"{part}.json").write_text(json.dumps(names), encoding="utf-8")
            for number, triplet in enumerate(found):
                row = {
                    "id": f"{part}-{number:05d}",
                    "part": part,
                    "reference": ids[triplet.reference],
                    "target": ids[triplet.target],
                    "members": sorted(ids[scene] for scene in triplet.members),  # sorted: a place tells nothing
                    "edit": triplet.edit.kind,
                    "texts": triplet.edit.texts(),
                }
                lines.append(json.dumps(row, sort_keys=True) + "\n")
        (folder / "queries.jsonl").write_text("".join(lines), encoding="utf-8")
