"""The features of frozen towers, computed once: every picture and every caption variant of a composed data set, fp32 and raw.

A folder outputs/cache/features/FINGERPRINT holds images.npy, image_names.json, texts.npy, texts.json (of the towers that are frozen)
and meta.json. Its name says what the features depend on; it appears whole, and is made again where a file is damaged.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmexpert.data.cache import cached_folder
from mmexpert.data.collate import Collate, to_device
from mmexpert.data.feature_rows import TableLook
from mmexpert.data.records import RecordDataset
from mmexpert.data.sampling import EVALUATION
from mmexpert.data.workers import BatchSource, Stream, WorkerSettings
from mmexpert.encoders.table import RowTokenizer, Table, TextTable

log = logging.getLogger(__name__)
_FORMAT = 1  # raised by whoever changes what is stored
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class CacheSettings:
    """folder: where the caches lie. batch_size: pictures or texts encoded at once. identity: plain values beside towers and data that
    the features depend on: the nodes of towers and transform. workers: processes that read pictures."""

    folder: Path
    batch_size: int
    identity: dict[str, Any]
    workers: WorkerSettings


class FeatureCache:
    """Puts tables in place of a composed model's frozen towers, and back.

    dataset, tokenizer: what the loaders take from now on; the set's samples hold rows in place of pictures where the image tower is
    frozen, the tokenizer gives rows where the text tower is. Nothing changes where no tower is frozen.
    """

    def __init__(self, model: nn.Module, dataset: RecordDataset, tokenizer: Any, settings: CacheSettings) -> None:
        self.model, self.dataset, self.tokenizer, self.settings = model, dataset, tokenizer, settings
        self.towers: dict[str, nn.Module] = {}
        roles = getattr(model, "frozen", ())
        if not roles:
            return
        galleries = {part: dataset.pictures(part) for part in _PARTS if dataset.part(part)}
        texts = all_texts(dataset)
        self.look, self.device = TableLook(galleries), next(model.parameters()).device
        self.folder = settings.folder / self._fingerprint(roles, texts)
        make = self._makers(galleries, texts)
        cached_folder(self.folder, lambda folder: self._fill(folder, {role: make[role] for role in roles}))
        for role in roles:
            self._replace(role)

    def put_back(self) -> None:
        """The towers themselves again, for whoever saves the model."""
        for role, tower in self.towers.items():
            self.model.encoders[role] = tower.to(self.device)
        self.towers = {}

    def _replace(self, role: str) -> None:
        tower = self.model.encoders[role]
        self.towers[role] = tower.cpu()
        if role == "image":
            self.dataset = self.look.over(self.dataset)
            table: nn.Module = Table(tower.dim, 1.0, str(self.folder / "images.npy"))
        else:
            self.tokenizer = RowTokenizer.read(self.folder / "texts.json")
            table = TextTable(self.tokenizer, tower.dim, 1.0, str(self.folder / "texts.npy"))
        self.model.encoders[role] = table.to(self.device)

    def _fingerprint(self, roles: tuple[str, ...], texts: list[str]) -> str:
        """SHA-256 over tower weights, their nodes and the transform, tokenizer, data and precision."""
        digest = hashlib.sha256()
        identity = {
            "format": _FORMAT,
            "roles": sorted(roles),
            "precision": "fp32",
            "data": self.dataset.fingerprint(),
            "texts": texts,
        }
        digest.update(json.dumps(identity | self.settings.identity, sort_keys=True).encode())
        for tokens in self._text_blocks(texts) if "text" in roles else ():
            digest.update(tokens["input_ids"].numpy())
        for role in sorted(roles):
            for name, value in sorted(self.model.encoders[role].state_dict().items()):
                digest.update(f"{role}.{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _makers(self, galleries: dict[str, RecordDataset], texts: list[str]) -> dict[str, Callable[[Path], None]]:
        def images(folder: Path) -> None:
            """Features of every gallery's pictures, and whose they are."""
            names = [f"{part}/{record.id}" for part, pictures in galleries.items() for record in pictures.records]
            blocks = (block for pictures in galleries.values() for block in self._picture_blocks(pictures))
            self._encode("image", blocks, len(names), folder / "images.npy")
            (folder / "image_names.json").write_text(json.dumps(names), encoding="utf-8")

        def sentences(folder: Path) -> None:
            """Features of the texts, and the texts."""
            self._encode("text", self._text_blocks(texts), len(texts), folder / "texts.npy")
            (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")

        return {"image": images, "text": sentences}

    def _fill(self, folder: Path, makers: dict[str, Callable[[Path], None]]) -> None:
        log.info("features of the frozen towers (%s) are computed once: %s", ", ".join(makers), self.folder)
        training = self.model.training
        self.model.eval()
        for make in makers.values():
            make(folder)
        self.model.train(training)
        meta = {"format": _FORMAT, "precision": "fp32", "normalized": False, "roles": sorted(makers), "data": self.dataset.fingerprint()}
        (folder / "meta.json").write_text(json.dumps(meta | self.settings.identity, indent=1, sort_keys=True), encoding="utf-8")

    def _text_blocks(self, texts: list[str]) -> Iterator[dict[str, Tensor]]:
        size = self.settings.batch_size
        return (self.tokenizer(texts[i : i + size]) for i in range(0, len(texts), size))

    def _picture_blocks(self, pictures: RecordDataset) -> Iterator[Tensor]:
        size = self.settings.batch_size
        draws = [[(i, EVALUATION, 0) for i in range(b, min(b + size, len(pictures)))] for b in range(0, len(pictures), size)]
        stream = Stream(BatchSource(pictures, Collate(None, 1, "batch", 1)), self.settings.workers, 0, persistent=False)
        try:
            for batch in stream.batches(draws):
                yield batch["image"]
        finally:
            stream.close()

    def _encode(self, role: str, blocks: Iterator[Any], rows: int, path: Path) -> None:
        """Writes the raw features of all blocks, block by block: the table need not fit into memory beside the tower."""
        tower = self.model.encoders[role]
        table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, tower.dim))
        done = 0
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for block in blocks:
                features = tower(to_device(block, self.device)).features.float().cpu().numpy()
                table[done : done + len(features)] = features
                done += len(features)
        table.flush()


def all_texts(dataset: RecordDataset) -> list[str]:
    """Every caption that a sample may hold, sorted: all variants of training, and the evaluation's."""
    texts = {caption for record in dataset.records for caption in record.captions}
    return sorted(texts | {dataset.text(record, EVALUATION, 0) for record in dataset.records})
