"""Two towers, one Pair: roles, class prompts and the errors of a batch or a configuration that does not fit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.text import ScratchText
from mmexpert.encoders.tokenizer import scratch_tokenizer
from mmexpert.models.dual_encoder import DualEncoder
from mmexpert.models.heads import ClassPrompts, LinearHead, TextHead
from mmexpert.types import ClassTable, ConfigError, Encoding

DIM = 8
CLASSES = ClassTable(("walk", "jump"), (("a person walks", "someone is walking"), ("a jump", "a person jumps up", "hops")), (3, 1))
PROMPTS = [text for texts in CLASSES.texts for text in texts]
BERT = {"width": 16, "layers": 1, "heads": 2, "feedforward": 16, "dropout": 0.1, "init_std": 0.02}


class Radar(Encoder):
    """A tower of one linear map over frames."""

    def __init__(self, dim=DIM):
        super().__init__(dim, 1.0)
        self.linear = nn.Linear(4, dim)

    def forward(self, radar):
        sequence = self.linear(radar["doppler_time"].transpose(1, 2))
        return Encoding(sequence.mean(1), sequence, radar["mask"])


@pytest.fixture(scope="module")
def tokenizer():
    return scratch_tokenizer(PROMPTS, 200, 16)


def model(tokenizer, head=None, prompts=True, **changes):
    torch.manual_seed(0)
    encoders = {"radar": Radar(), "text": ScratchText(tokenizer, DIM, 0.5, BERT, 200, 16, False)}
    keys = {"query": "radar", "target": "text", "projection_dim": DIM, "encoders": encoders, "head": head}
    return DualEncoder(**keys | {"class_prompts": ClassPrompts.of(CLASSES, tokenizer) if prompts else None} | changes).eval()


def radar(rows=3):
    frames = torch.rand(rows, 4, 6, generator=torch.Generator().manual_seed(0))
    return {"doppler_time": frames, "mask": torch.ones(rows, 6, dtype=torch.bool)}


def calls(module):
    """How many texts each call of the text tower gets."""
    sizes = []
    module.encoders["text"].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]["input_ids"])))
    return sizes


def test_query_and_target_are_what_their_towers_make_of_their_roles(tokenizer):
    module, texts = model(tokenizer, prompts=False), tokenizer(["a jump", "hops", "a person walks"])
    pair = module({"radar": radar(), "text": texts})
    assert torch.equal(pair.query.features, module.encoders["radar"](radar()).features)
    assert torch.equal(pair.target.features, module.encoders["text"](texts).features)
    assert pair.class_logits is None
    swapped = model(tokenizer, prompts=False, query="text", target="radar")({"radar": radar(), "text": texts})
    assert torch.equal(swapped.query.features, pair.target.features)
    assert torch.equal(module.encode("text", texts).sequence, pair.target.sequence)


def test_text_index_gives_what_encoding_those_texts_gives_from_one_pass_over_the_prompts(tokenizer):
    module = model(tokenizer)
    sizes, rows = calls(module), torch.tensor([4, 0, 4, 1, 2, 3])
    target = module({"radar": radar(6), "text_index": rows}).target
    assert sizes == [5]
    expected = module.encode("text", tokenizer([PROMPTS[row] for row in rows]))
    torch.testing.assert_close(target.features, expected.features)
    torch.testing.assert_close(target.sequence, expected.sequence)
    assert torch.equal(target.mask, expected.mask)


def test_prompts_that_are_drawn_teach_the_text_tower(tokenizer):
    module = model(tokenizer)
    module({"radar": radar(2), "text_index": torch.tensor([0, 3])}).target.features.square().sum().backward()
    assert all(p.grad is not None for p in module.encoders["text"].parameters())


def test_class_scores_are_cosines_with_the_normalised_mean_of_normalised_prompts(tokenizer):
    module = model(tokenizer)
    query = module.encode("radar", radar())
    prompts = module.encode("text", tokenizer(PROMPTS)).features
    for k, members in enumerate(([0, 1], [2, 3, 4])):
        mean = sum(prompts[p] / prompts[p].norm() for p in members) / len(members)
        expected = [(f @ mean / f.norm() / mean.norm()).item() for f in query.features]
        assert module.class_scores(query)[:, k].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_text_head_scales_the_class_scores_and_shares_one_pass_with_the_target(tokenizer):
    module = model(tokenizer, head=TextHead(0.1, 0.0, CLASSES))
    sizes = calls(module)
    pair = module({"radar": radar(), "text_index": torch.tensor([0, 1, 2])})
    assert sizes == [5]
    torch.testing.assert_close(pair.class_logits, 10 * module.class_scores(pair.query))
    texts = tokenizer(["a jump", "hops", "a person walks"])
    torch.testing.assert_close(module({"radar": radar(), "text": texts}).class_logits, pair.class_logits)


def test_a_linear_head_needs_no_prompts(tokenizer):
    module, texts = model(tokenizer, head=LinearHead(DIM, 0.0, CLASSES)), tokenizer(["a jump", "hops", "a person walks"])
    sizes = calls(module)
    pair = module({"radar": radar(), "text": texts})
    assert sizes == [3]
    torch.testing.assert_close(pair.class_logits, module.head.linear(pair.query.features))


def test_the_prompts_travel_with_the_weights(tokenizer):
    module, other = model(tokenizer), model(tokenizer)
    other.prompt_ids.zero_()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.prompt_ids, tokenizer(PROMPTS)["input_ids"])
    assert other.prompt_owner.tolist() == [0, 0, 1, 1, 1]


def test_a_batch_that_lacks_a_role_is_an_error_that_names_those_it_holds(tokenizer):
    module = model(tokenizer, prompts=False)
    with pytest.raises(KeyError, match="batch has no 'radar'; it holds id, image, text: choose a dataset .* or set model.query"):
        module({"text": {}, "image": None, "id": None})
    with pytest.raises(KeyError, match="batch has no 'text'; it holds radar, text_index"):
        module({"radar": radar(), "text_index": torch.tensor([0])})
    with pytest.raises(KeyError, match="no tower for 'image'; there are radar, text"):
        module.encode("image", {})
    with pytest.raises(KeyError, match="the model has no class texts"):
        module.class_scores(module.encode("radar", radar()))


def test_towers_of_other_widths_are_an_error_that_names_the_keys(tokenizer):
    text = ScratchText(tokenizer, DIM, 0.5, BERT, 200, 16, False)
    with pytest.raises(ConfigError, match=r"encoder\.radar\.dim=16, encoder\.text\.dim=8, model\.projection_dim=8: the widths differ"):
        model(tokenizer, encoders={"radar": Radar(16), "text": text})


def test_a_role_without_a_tower_is_an_error_that_names_group_and_key(tokenizer):
    with pytest.raises(ConfigError, match=r"no tower for the role 'image'; towers: radar, text. Choose encoder/image=.*set model\.query"):
        model(tokenizer, query="image")


def test_a_text_head_without_class_texts_is_an_error(tokenizer):
    with pytest.raises(ConfigError, match="model/head=text compares with class texts"):
        model(tokenizer, head=TextHead(0.07, 0.0, CLASSES), prompts=False)


def test_class_scores_and_logits_are_fp32_under_autocast(tokenizer):
    module = model(tokenizer, head=TextHead(0.07, 0.0, CLASSES))
    with torch.autocast("cpu", torch.bfloat16):
        pair = module({"radar": radar(), "text_index": torch.tensor([0, 1, 2])})
        scores = module.class_scores(pair.query)
    assert scores.dtype == pair.class_logits.dtype == torch.float32
    unit = F.normalize(pair.query.features.float(), dim=1)
    assert unit.shape == (3, DIM)
    assert scores.abs().max() <= 1 + 1e-6


def test_clamp_reaches_the_head(tokenizer):
    module = model(tokenizer, head=TextHead(0.07, 0.0, CLASSES))
    nn.init.constant_(module.head.logit_scale, 9.0)
    module.clamp_()
    assert module.head.logit_scale.exp().item() == pytest.approx(100)
    model(tokenizer).clamp_()
