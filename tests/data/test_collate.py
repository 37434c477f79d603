"""Samples become batches: padded up to the unit, masked, tokenised, hard captions with their rows."""

import re

import numpy as np
import pytest
import torch

from mmexpert.data.collate import Collate
from mmexpert.encoders.tokenizer import scratch_tokenizer
from mmexpert.types import ConfigError, DataError


def tokens(texts):
    return {"input_ids": torch.tensor([[len(text)] for text in texts]), "attention_mask": torch.ones(len(texts), 1, dtype=torch.long)}


def sample(frames, **more):
    radar = {"range_time": np.ones((256, frames), np.float32), "doppler_time": np.ones((128, frames), np.float32)}
    return {"radar": radar, "text": "a" * frames, "id": frames} | more


def test_clips_are_padded_up_to_the_unit_with_zeros_and_a_mask():
    batch = Collate(tokens, 16, "batch", 496)([sample(20), sample(33)])
    assert batch["radar"]["range_time"].shape == (2, 256, 48)
    assert batch["radar"]["mask"].sum(1).tolist() == [20, 33]
    assert not batch["radar"]["range_time"][0, :, 20:].any() and batch["radar"]["range_time"][0, :, :20].all()
    assert batch["id"].tolist() == [20, 33] and batch["text"]["input_ids"][:, 0].tolist() == [20, 33]


def test_fixed_shapes_take_the_longest_length():
    assert Collate(tokens, 16, "max", 496)([sample(20)])["radar"]["doppler_time"].shape == (1, 128, 496)


def test_hard_captions_keep_the_row_that_they_belong_to():
    told = [(20, [(0, "x"), (2, "yy")]), (33, []), (17, [(1, "zzz")])]
    batch = Collate(tokens, 16, "batch", 496)([sample(frames, hard_text=captions) for frames, captions in told])
    assert batch["hard_row"].tolist() == [0, 0, 2] and batch["hard_kind"].tolist() == [0, 2, 1]
    assert batch["hard_text"]["input_ids"][:, 0].tolist() == [1, 2, 3]


def test_a_clip_without_frames_and_a_text_without_tower_are_errors():
    with pytest.raises(DataError, match="has no frame"):
        Collate(tokens, 16, "batch", 496)([sample(0)])
    with pytest.raises(ConfigError, match="no text tower"):
        Collate(None, 16, "batch", 496)([sample(20)])


def test_the_clip_without_frames_is_named_by_its_id():
    with pytest.raises(DataError, match="sample 7: the clip has no frame"):
        Collate(tokens, 16, "batch", 496)([sample(20), sample(0, id=7)])


def test_samples_of_different_roles_are_an_error_that_names_the_roles():
    with pytest.raises(KeyError, match="id, label, radar, text, another of its batch id, radar, text"):
        Collate(tokens, 16, "batch", 496)([sample(20), sample(20, label=1)])


@pytest.fixture(scope="module")
def words():
    """A tokenizer that frames each text by [CLS] and [SEP]."""
    return scratch_tokenizer(["a walk", "a jump"], 200, 8)


@pytest.mark.parametrize("text", ["\u200b", "\x07", ""])
def test_a_text_that_tokenises_to_no_word_is_named_with_its_sample(words, text):
    collate = Collate(words, 16, "batch", 496)
    with pytest.raises(DataError, match=re.escape(f"sample 21: the text {text!r} has no word")):
        collate([sample(20, text="a walk"), sample(21, text=text), sample(22, text=text)])
    told = [[(0, "a jump")], [(0, "a walk"), (1, text)]]
    with pytest.raises(DataError, match=re.escape(f"sample 21: the text {text!r} has no word")):
        collate([sample(20 + row, text="a walk", hard_text=captions) for row, captions in enumerate(told)])


def test_unknown_words_are_words(words):
    batch = Collate(words, 16, "batch", 496)([sample(20, text="x"), sample(21, text="\U0001f44d")])
    assert batch["text"]["attention_mask"].sum(1).tolist() == [3, 3]


def test_numbers_become_one_row_each_and_no_hard_caption_no_role():
    samples = [sample(20, label=label, weight=np.float32(weight), hard_text=[]) for label, weight in ((3, 0.5), (-1, 2))]
    batch = Collate(tokens, 16, "batch", 496)(samples)
    assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == [3, -1]
    assert batch["weight"].dtype == torch.float32 and not {"hard_text", "hard_row", "hard_kind"} & set(batch)
