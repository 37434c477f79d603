"""Towers that look up: the features were computed once and lie in a table. Shapes: N rows of the table, B rows of a batch, D width."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmexpert.encoders.base import Encoder
from mmexpert.types import ConfigError, DataError, Encoding, TokenCorpus

_CACHES = "outputs/cache/features/FINGERPRINT"


class Table(Encoder):
    """Rows of the array in file (images.npy or texts.npy of a feature cache), float32 [N, D]; nothing here learns.

    The table is a buffer that is not saved: it lies on the device of the model and comes from its file each time. Raises ConfigError
    for another width than dim.
    """

    def __init__(self, dim: int, lr_scale: float, file: str) -> None:
        super().__init__(dim, lr_scale)
        self.register_buffer("table", torch.from_numpy(read_table(Path(file))), persistent=False)
        if self.table.shape[1] != dim:
            raise ConfigError(f"{file} holds features of width {self.table.shape[1]}, but model.projection_dim={dim}: set it to the same")

    def forward(self, ids: Tensor) -> Encoding:
        """ids int64 [B], rows of the table -> features [B, D]."""
        return Encoding(self.table[ids])


class TextTable(Table):
    """As Table, of captions: its tokenizer gives a caption's row in place of word pieces."""

    def __init__(self, tokenizer: RowTokenizer, dim: int, lr_scale: float, file: str) -> None:
        super().__init__(dim, lr_scale, file)
        if len(tokenizer.rows) != len(self.table):
            raise ConfigError(
                f"{file} holds {len(self.table)} rows, texts.json beside it {len(tokenizer.rows)} texts: build the cache again"
            )

    def forward(self, text: dict[str, Tensor]) -> Encoding:
        """text {input_ids int64 [B, 1]}, rows of the table -> features [B, D]."""
        return super().forward(text["input_ids"][:, 0])

    @staticmethod
    def tokenizer_for(texts: list[str], node: dict[str, Any]) -> RowTokenizer:
        """The tokenizer of a config node: from texts.json beside its file."""
        return RowTokenizer.read(Path(node["file"]).with_name("texts.json"))


class RowTokenizer:
    """A caption -> its row in a table of features. texts: distinct, in the order of the rows."""

    max_length, truncated = 1, 0

    def __init__(self, texts: Sequence[str]) -> None:
        self.rows = {text: row for row, text in enumerate(texts)}

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """B texts -> {input_ids, attention_mask} int64 [B, 1]. Raises DataError for a caption that was not encoded."""
        if unknown := next((text for text in texts if text not in self.rows), None):
            raise DataError(
                f"the feature cache has no caption {unknown!r}: choose cache=false, or remove the cache so that it is built anew"
            )
        ids = torch.tensor([self.rows[text] for text in texts])[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def too_long(self, texts: Iterable[str]) -> int:
        """None is: a caption is one row. What its tower truncated was counted when it was encoded."""
        return 0

    def corpus(self, texts: Iterable[str]) -> TokenCorpus:
        """In how many of the texts each row occurs: 0 or 1 time in a text."""
        counts, texts = [0] * len(self.rows), list(texts)
        for text in texts:
            counts[self.rows[text]] += 1
        return TokenCorpus(tuple(counts), len(texts), ())

    def save(self, folder: Path) -> None:
        """Writes texts.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "texts.json").write_text(json.dumps(list(self.rows)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RowTokenizer:
        """From a list of strings. Raises ConfigError where there is none."""
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"encoder.text.file: {path} can not be read ({error}); name texts.npy of a folder {_CACHES}") from error


def read_table(path: Path) -> np.ndarray:
    """float32 [N, D]. Raises ConfigError where the file is no such array."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder.*.file={path} can not be read ({error}); name images.npy or texts.npy of a folder {_CACHES}") from error
    if table.ndim != 2 or table.dtype != np.float32:
        raise ConfigError(f"{path} is {table.dtype} {list(table.shape)}, expected float32 [N, D]: the features of a cache")
    return table
