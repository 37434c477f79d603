"""The vocabulary is a rule, not a training: equal texts give equal bytes, in any process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmexpert.encoders.tokenizer import SPECIALS, TextTokenizer, build_vocabulary, scratch_tokenizer
from mmexpert.types import ConfigError, RunFolderError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["A man walks, then turns.", "a man is walking to the Radar's left", "someone waves twice", "a café; Ängstlich 走路"]

BUILD = """
import sys
from pathlib import Path
from mmexpert.encoders.tokenizer import scratch_tokenizer
texts = [f"person {i % 7} walks {'slowly' * (i % 2)} and waves {i} times" for i in range(200)]
scratch_tokenizer(texts, 120, 24).save(Path(sys.argv[1]))
"""


def test_the_vocabulary_is_specials_characters_repeated_words_and_suffixes_in_that_order():
    assert build_vocabulary(["ab ab b cab", "cab cab dab"], 100) == [
        *SPECIALS, "a", "b", "c", "d", "##a", "##b", "##c", "##d",
        "cab", "ab",       # 3 and 2 times; "b" is there already, "dab" occurs once
        "##ab",            # of cab and dab
    ]  # fmt: skip


def test_equally_frequent_pieces_come_in_alphabetical_order_and_the_size_cuts_the_rarest():
    whole = build_vocabulary(["bb aa bb aa", "cc cc cc"], 100)
    assert whole[-3:] == ["cc", "aa", "bb"]
    assert build_vocabulary(["bb aa bb aa", "cc cc cc"], len(whole) - 1) == whole[:-1]


def test_the_order_of_the_texts_changes_nothing():
    assert build_vocabulary(TEXTS, 200) == build_vocabulary(TEXTS[::-1], 200)


def test_too_small_a_vocabulary_is_an_error_that_says_what_is_needed():
    with pytest.raises(ConfigError, match=r"encoder\.text\.vocab_size=8: 2 characters occur, which needs at least 9"):
        build_vocabulary(["ab"], 8)


def test_two_processes_write_the_same_bytes(tmp_path):
    digests = []
    for number, hash_seed in enumerate(("1", "2")):
        folder = tmp_path / str(number)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", BUILD, str(folder)], env=environment, check=True)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())})
    assert digests[0] == digests[1]
    assert {"tokenizer.json", "tokenizer_config.json", "length.json"} <= set(digests[0])


def test_padding_is_id_0_and_a_sentence_stands_between_cls_and_sep():
    tokens = scratch_tokenizer(TEXTS, 200, 48)(["a man", "a man walks, then"])
    assert tokens["input_ids"].dtype == torch.int64
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape
    assert tokens["input_ids"][:, 0].tolist() == [2, 2]
    real = tokens["attention_mask"].sum(1)
    assert [tokens["input_ids"][row, length - 1].item() for row, length in enumerate(real)] == [3, 3]
    assert not tokens["input_ids"][0, real[0] :].any()


def test_no_text_that_built_the_vocabulary_has_an_unknown_piece():
    tokenizer = scratch_tokenizer(TEXTS, 200, 48)
    assert not (tokenizer(TEXTS)["input_ids"] == 1).any()
    assert (tokenizer(["жук"])["input_ids"] == 1).any()


def test_case_and_accents_make_no_difference():
    tokenizer = scratch_tokenizer(TEXTS, 200, 48)
    assert tokenizer(["CAFE Angstlich"])["input_ids"].tolist() == tokenizer(["café ängstlich"])["input_ids"].tolist()


def test_longer_texts_are_cut_keep_their_end_token_and_are_counted():
    tokenizer = scratch_tokenizer(["a b c d e f g"], 100, 5)
    tokens = tokenizer(["a b c d e f g", "a b c", "a"])
    assert tokens["input_ids"].shape == (3, 5)
    assert tokens["input_ids"][0, -1] == 3
    assert tokenizer.truncated == 1
    assert tokenizer.too_long(["a b c d", "a b c"]) == 1
    assert tokenizer.too_long([]) == 0


def test_a_stored_tokenizer_comes_back_as_it_was(tmp_path):
    tokenizer = scratch_tokenizer(TEXTS, 200, 12)
    tokenizer.save(tmp_path / "tokenizer")
    loaded = TextTokenizer.load(tmp_path / "tokenizer")
    texts = [*TEXTS, "unseen words", ""]
    for name, value in tokenizer(texts).items():
        assert torch.equal(loaded(texts)[name], value)
    assert (loaded.max_length, loaded.vocab_size, loaded.special_ids) == (12, tokenizer.vocab_size, (0, 2, 3))


def test_a_folder_without_a_tokenizer_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RunFolderError, match="holds no length.json"):
        TextTokenizer.load(tmp_path)


def test_a_tokenizer_without_padding_pads_with_its_end_token_on_the_right():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", padding_side="left")
    tokens = TextTokenizer(foreign, 8)(["a b", "b"])
    assert tokens["input_ids"].tolist() == [[1, 2], [2, 0]]
    assert tokens["attention_mask"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ConfigError, match="neither a padding nor an end token"):
        TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), 8)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_length_that_leaves_no_room_for_a_word_is_a_config_error_that_says_the_least(length):
    with pytest.raises(ConfigError, match=rf"encoder.text.max_length={length}: 2 tokens frame each text; write 3 or more"):
        scratch_tokenizer(TEXTS, 120, length)
    assert scratch_tokenizer(TEXTS, 120, 3)(["a man walks"])["attention_mask"].sum().item() == 3
