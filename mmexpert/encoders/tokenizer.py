"""Tokenizers: any Hugging Face one, or a WordPiece vocabulary built from captions by a rule that gives the same bytes every time.

The tokenizers library's own WordPiece trainer gave four vocabularies in four runs on one input: it is not used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmexpert.types import ConfigError, RunFolderError, TokenCorpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_SUFFIX = 5


def check_max_length(value: int) -> None:
    """Raises ConfigError where a text of so many tokens could hold none beside the two that frame it."""
    if value < 3:
        raise ConfigError(f"encoder.text.max_length={value}: 3 or more, two of which frame the text")


class TextTokenizer:
    """A Hugging Face tokenizer with a length: texts -> padded tensors. truncated counts the texts that were too long.

    Raises ConfigError where the tokenizer has neither a padding nor an end token, or the length leaves no room for a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length, self.truncated = tokenizer, max_length, 0
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise ConfigError("encoder.text: the tokenizer has neither a padding nor an end token, so texts can not share a batch")
            tokenizer.pad_token = tokenizer.eos_token  # masked anyway
        tokenizer.padding_side = "right"  # pooling=cls reads the first token
        if max_length <= (frame := tokenizer.num_special_tokens_to_add()):
            raise ConfigError(f"encoder.text.max_length={max_length}: {frame} tokens frame each text; write {frame + 1} or more")

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """B texts -> {input_ids, attention_mask} int64 [B, M], M = the longest of them, at most max_length."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        full = tokens["attention_mask"].sum(1) >= self.max_length
        self.truncated += self.too_long([text for text, is_full in zip(texts, full.tolist(), strict=True) if is_full])
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def too_long(self, texts: Iterable[str]) -> int:
        """How many of the texts will be truncated."""
        texts = list(texts)
        return sum(len(ids) > self.max_length for ids in self.tokenizer(texts, verbose=False)["input_ids"]) if texts else 0

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.tokenizer)

    @property
    def longest(self) -> int:
        """Most word pieces that the tokenizer's model takes; huge where it does not say."""
        return self.tokenizer.model_max_length

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of padding and of the tokens that frame a sentence: belong to pooling, not to alignment."""
        names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        return tuple(sorted({i for name in names if (i := getattr(self.tokenizer, name, None)) is not None}))

    def corpus(self, texts: Iterable[str]) -> TokenCorpus:
        """In how many of the texts each token occurs, cut to max_length as in a batch."""
        texts, counts = list(texts), [0] * self.vocab_size
        for ids in self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []:
            for token in set(ids):
                counts[token] += 1
        return TokenCorpus(tuple(counts), len(texts), self.special_ids)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files and its length."""
        self.tokenizer.save_pretrained(str(folder))
        (folder / "length.json").write_text(json.dumps({"max_length": self.max_length}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Reads what save wrote; never from a hub. Raises RunFolderError where it is not there."""
        from transformers import AutoTokenizer

        if not (folder / "length.json").exists():
            raise RunFolderError(f"{folder}: holds no length.json, expected the files of a stored tokenizer; copy the model folder whole")
        length = json.loads((folder / "length.json").read_text(encoding="utf-8"))["max_length"]
        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True), length)


def scratch_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> TextTokenizer:
    """WordPiece over the vocabulary that build_vocabulary makes from the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = build_vocabulary(texts, vocab_size)
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    )
    return TextTokenizer(tokenizer, max_length)


def build_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """Specials, every character c and ##c seen (sorted), words seen twice or more by (-count, word), then suffix pieces ##xy of 2 to
    5 characters by the same order, up to size entries. Raises ConfigError where the characters alone do not fit."""
    words = count_words(texts)
    characters = sorted({c for word in words for c in word})
    vocabulary = [*SPECIALS, *characters, *(f"##{c}" for c in characters)]
    if len(vocabulary) > size:
        raise ConfigError(f"encoder.text.vocab_size={size}: {len(characters)} characters occur, which needs at least {len(vocabulary)}")
    known = set(vocabulary)
    suffixes: Counter[str] = Counter()
    for word, count in words.items():
        for length in range(2, min(_LONGEST_SUFFIX, len(word) - 1) + 1):
            suffixes[f"##{word[-length:]}"] += count
    repeated = [word for word, count in words.items() if count >= 2]
    for counts, candidates in ((words, repeated), (suffixes, list(suffixes))):
        for piece in sorted(candidates, key=lambda piece: (-counts[piece], piece)):  # noqa: B023  used at once
            if len(vocabulary) < size and piece not in known:
                vocabulary.append(piece)
                known.add(piece)
    return vocabulary


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word or punctuation mark occurs, split by the very rules that the tokenizer will apply."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
