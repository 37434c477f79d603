"""Text towers: the scratch one, and a tiny BERT made here and loaded through the real code."""

import socket

import pytest
import torch

from mmexpert.encoders.text import ScratchText, TransformersText
from mmexpert.encoders.tokenizer import TextTokenizer, scratch_tokenizer
from mmexpert.types import ConfigError, SourceError

TEXTS = ["a person walks", "someone waves with the left arm, then turns around", "a jump", "walks to the radar"]
BERT = {"width": 16, "layers": 2, "heads": 2, "feedforward": 32, "dropout": 0.1, "init_std": 0.02}
KEYS = {"pooling": "mean", "freeze_backbone": False, "train_layers": "all", "max_length": 24}


@pytest.fixture(scope="module")
def tokenizer():
    return scratch_tokenizer(TEXTS * 2, 300, 24)


def scratch(tokenizer):
    torch.manual_seed(0)
    return ScratchText(tokenizer, 8, 0.5, BERT, 300, 24, False).eval()


def pretrained(folder, tokenizer, **keys):
    torch.manual_seed(0)
    return TransformersText(tokenizer, 8, 1.0, str(folder), **KEYS | keys).eval()


def test_features_are_the_projected_mean_of_the_real_tokens(tokenizer):
    tower, text = scratch(tokenizer), tokenizer(TEXTS)
    encoding = tower(text)
    hidden = tower.model(**text).last_hidden_state  # transformers makes the padding mask itself here
    for row, real in enumerate(text["attention_mask"].sum(1)):
        expected = tower.projection(hidden[row, :real].mean(0))
        torch.testing.assert_close(encoding.features[row], expected, atol=1e-6, rtol=1e-5)
    assert encoding.features.shape == (4, 8)


def test_the_mask_marks_word_pieces_only(tokenizer):
    encoding = scratch(tokenizer)(tokenizer(["a jump", "a person walks to the radar"]))
    assert encoding.mask.sum(1).tolist() == [2, 6]
    assert encoding.mask[0].tolist() == [False, True, True, False, False, False, False, False]
    assert not encoding.sequence[~encoding.mask].any()
    assert encoding.sequence[encoding.mask].any(1).all()


def test_a_text_alone_equals_the_text_in_a_batch_of_longer_ones(tokenizer):
    tower = scratch(tokenizer)
    together, alone = tower(tokenizer(TEXTS)), tower(tokenizer(TEXTS[2:3]))
    torch.testing.assert_close(together.features[2:3], alone.features, atol=1e-6, rtol=1e-5)


def test_an_empty_text_is_finite_and_has_no_word_piece(tokenizer):
    encoding = scratch(tokenizer)(tokenizer(["", "a jump"]))
    assert encoding.features.isfinite().all()
    assert encoding.mask.sum(1).tolist() == [0, 2]


def test_untrained_texts_do_not_all_look_alike(tokenizer):
    """BERT's own initialisation starts at a mean cosine of 0.96, and the loss then stands still for 100 steps."""
    unit = torch.nn.functional.normalize(scratch(tokenizer)(tokenizer(TEXTS)).features, dim=1)
    assert (unit @ unit.T).fill_diagonal_(0).sum() / 12 < 0.8


def test_the_vocabulary_and_sizes_of_the_config_are_checked(tokenizer):
    with pytest.raises(ConfigError, match=r"encoder\.text\.vocab_size=30, but the tokenizer has"):
        ScratchText(tokenizer, 8, 0.5, BERT, 30, 24, False)
    with pytest.raises(ConfigError, match=r"encoder\.text\.bert holds .*hidden.*add or remove hidden, width"):
        ScratchText(tokenizer, 8, 0.5, {**{k: v for k, v in BERT.items() if k != "width"}, "hidden": 16}, 300, 24, False)


def test_the_scratch_tower_reads_nothing_back_from_the_device(tokenizer):
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")), func
            return func(*args, **(kwargs or {}))

    tower, text = scratch(tokenizer).train(), tokenizer(TEXTS)
    with NoReads():
        tower(text)


def test_one_node_gives_tokenizer_and_tower(bert_folder):
    built = ScratchText.tokenizer_for(TEXTS, {"vocab_size": 300, "max_length": 24, "dim": 8})
    assert built.vocab_size <= 300
    stored = TransformersText.tokenizer_for(TEXTS, {"name": str(bert_folder), "max_length": 9})
    assert stored(TEXTS)["input_ids"].shape == (4, 9)


def test_a_local_folder_gives_the_very_weights_it_holds(bert_folder, tokenizer):
    from transformers import BertModel

    reference = BertModel.from_pretrained(bert_folder, local_files_only=True).eval()
    text = tokenizer(TEXTS)
    tower = pretrained(bert_folder, tokenizer)
    hidden = reference(**text).last_hidden_state
    assert torch.equal(tower.model(**text).last_hidden_state, hidden)
    expected = torch.stack([hidden[row, :n].mean(0) for row, n in enumerate(text["attention_mask"].sum(1))])
    torch.testing.assert_close(tower(text).features, tower.projection(expected))


def test_each_pooling_is_what_its_name_says(bert_folder, tokenizer):
    from transformers import BertModel

    text = tokenizer(TEXTS)
    output = BertModel.from_pretrained(bert_folder, local_files_only=True).eval()(**text)
    hidden, lengths = output.last_hidden_state, text["attention_mask"].sum(1)
    expected = {
        "cls": hidden[:, 0],
        "max": torch.stack([hidden[row, :n].amax(0) for row, n in enumerate(lengths)]),
        "pooler": output.pooler_output,
    }
    for pooling, pooled in expected.items():
        tower = pretrained(bert_folder, tokenizer, pooling=pooling)
        torch.testing.assert_close(tower(text).features, tower.projection(pooled))
    with pytest.raises(ConfigError, match="pooling=last: choose mean, max, cls or pooler"):
        pretrained(bert_folder, tokenizer, pooling="last")


def test_a_pooler_that_the_model_lacks_is_an_error(tokenizer, tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=tokenizer.vocab_size, dim=16, hidden_dim=16, n_heads=2, n_layers=1)
    DistilBertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="pooling=pooler: .* has no pooler; choose mean"):
        pretrained(tmp_path, tokenizer, pooling="pooler")


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_every_parameter_gets_a_gradient(bert_folder, tokenizer, pooling):
    tower = pretrained(bert_folder, tokenizer, pooling=pooling).train()
    tower(tokenizer(TEXTS)).features.square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_a_frozen_backbone_learns_nothing_and_its_projection_does(bert_folder, tokenizer):
    tower = pretrained(bert_folder, tokenizer, freeze_backbone=True)
    tower(tokenizer(TEXTS)).features.square().sum().backward()
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == {"projection.weight", "projection.bias"}
    assert tower.frozen_modules() == [tower.model]
    assert pretrained(bert_folder, tokenizer).frozen_modules() == []


def test_train_layers_leaves_the_last_ones_to_learn(bert_folder, tokenizer):
    tower = pretrained(bert_folder, tokenizer, train_layers=1)
    learns = {name.split(".")[3] for name, p in tower.model.named_parameters(prefix="model") if p.requires_grad}
    assert learns == {"1"}
    with pytest.raises(ConfigError, match="train_layers=3: write all, or 1 to 2"):
        pretrained(bert_folder, tokenizer, train_layers=3)


def test_more_word_pieces_than_the_model_has_positions_is_an_error(bert_folder, tokenizer):
    with pytest.raises(ConfigError, match=r"encoder\.text\.max_length=48: .* takes at most 24 word pieces"):
        pretrained(bert_folder, tokenizer, max_length=48)


def test_weights_stored_in_half_precision_are_trained_in_full(bert_folder, tokenizer, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(bert_folder, local_files_only=True).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in pretrained(tmp_path, tokenizer).parameters()} == {torch.float32}


def test_a_saved_backbone_is_a_source_again(bert_folder, tokenizer, tmp_path):
    tower, text = pretrained(bert_folder, tokenizer), tokenizer(TEXTS)
    tower.save_backbone(tmp_path / "backbone")
    again = pretrained(tmp_path / "backbone", tokenizer)
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(text).features, tower(text).features)


def test_a_model_that_is_no_text_encoder_is_an_error(tokenizer, tmp_path):
    from transformers import T5Config, T5Model

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(vocab_size=tokenizer.vocab_size, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a t5 model: choose a text encoder"):
        pretrained(tmp_path, tokenizer)


def test_damaged_files_are_a_source_error(bert_folder, tokenizer, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(SourceError, match="its files can not be read .*never_heard_of"):
        pretrained(tmp_path, tokenizer)


def test_an_unknown_name_without_network_is_a_source_error_for_tokenizer_and_tower(tokenizer, monkeypatch):
    for variable in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    def refuse(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(SourceError, match=r"encoder\.text\.name=nobody/nothing.*hf download nobody/nothing"):
        TransformersText.tokenizer_for(TEXTS, {"name": "nobody/nothing", "max_length": 24})
    with pytest.raises(SourceError, match="does not answer"):
        pretrained("nobody/nothing", tokenizer)


def test_a_tokenizer_is_usable_after_the_model_folder_is_gone(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    tower = scratch(tokenizer)
    loaded = TextTokenizer.load(tmp_path / "tokenizer")
    assert torch.equal(tower(loaded(TEXTS)).features, tower(tokenizer(TEXTS)).features)
