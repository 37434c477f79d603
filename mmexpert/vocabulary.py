"""The words of a run: its tokenizer and how often its tokens occur, stored before the first step and never made again.

They lie in checkpoints/tokenizer/, from where unfinished runs are resumed and evaluated; model/tokenizer/ is a copy for mmexpert.load().
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.runtime import Ranks, on_first_rank
from mmexpert.engine.status import trained
from mmexpert.types import RunFolderError, StorageError, TokenCorpus

Config = dict[str, Any]
Words = tuple[TextTokenizer | None, TokenCorpus | None]
"""None, None without a text tower."""

_CORPUS = "corpus.json"


def settle_words(cfg: Config, folder: Path, vocabulary: list[str], texts: Sequence[str], ranks: Ranks) -> Words:
    """The words of a fold in training: the stored ones where it goes on from a checkpoint, else new ones, which rank 0 stores.

    vocabulary: texts of the training part that a tokenizer from scratch is made of. texts: its captions, which are counted.
    Raises StorageError.
    """
    if trained(folder) and _home(folder):
        tokenizer, corpus = stored_words(cfg, folder)
        return tokenizer, corpus or (tokenizer.corpus(texts) if tokenizer else None)
    tokenizer = build.build_tokenizer(cfg, vocabulary)
    corpus = tokenizer.corpus(texts) if tokenizer else None
    if tokenizer:
        on_first_rank(ranks, lambda: _store(folder / "checkpoints" / "tokenizer", tokenizer, corpus))
    return tokenizer, corpus


def stored_words(cfg: Config, folder: Path) -> Words:
    """The words that a fold has stored; the corpus is None where an older run has not counted.

    cfg: its encoder.text.max_length counts. Raises RunFolderError where nothing is stored.
    """
    node = (cfg.get("encoder") or {}).get("text")
    if not node:
        return None, None
    home = _home(folder)
    if home is None:
        raise RunFolderError(f"{folder} holds no tokenizer, in checkpoints/ or model/: the same train command continues and stores it")
    tokenizer = TextTokenizer.load(home)
    tokenizer.max_length = node.get("max_length", tokenizer.max_length)
    counted = home / _CORPUS
    if not counted.exists():
        return tokenizer, None
    stored = json.loads(counted.read_text(encoding="utf-8"))
    return tokenizer, TokenCorpus(tuple(stored["counts"]), stored["documents"], tuple(stored["special_ids"]))


def _home(folder: Path) -> Path | None:
    homes = (folder / "checkpoints" / "tokenizer", folder / "model" / "tokenizer")
    return next((home for home in homes if (home / "length.json").exists()), None)


def _store(home: Path, tokenizer: TextTokenizer, corpus: TokenCorpus) -> None:
    try:
        shutil.rmtree(home, ignore_errors=True)  # of a start that came to no checkpoint
        home.mkdir(parents=True)
        write_atomic(home / _CORPUS, strict_json(asdict(corpus)))
        tokenizer.save(home)  # length.json comes last: without it nothing is read
    except OSError as error:
        raise StorageError(f"{home}: not written ({error}); free space or check the folder's rights") from error
