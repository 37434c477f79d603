"""The token term by hand, its vocabularies and weights; composites in YAML."""

import math

import pytest
import torch

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.composite import CompositeLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.losses.superclip_token import SuperClipTokenLoss, TokenTerm
from mmexpert.types import ConfigError, Encoding, Pair, TokenCorpus

# ids: 0 pad, 1 cls, 2 sep (special); 3 in all of 4 captions, 4 in two, 5 in one, 6 never
CORPUS = TokenCorpus((0, 4, 4, 4, 2, 1, 0), 4, (0, 1, 2))
IDS = torch.tensor([[1, 3, 4, 4, 2], [1, 3, 5, 2, 0], [1, 3, 2, 0, 0]])
D = 6


def term(idf="corpus", vocab="seen", ignore_special=True, weight=1.0):
    torch.manual_seed(0)
    loss = TokenTerm(D, weight, idf, vocab, ignore_special)
    loss.see_corpus(CORPUS)
    return loss.double()


def pair(mask=None):
    generator = torch.Generator().manual_seed(1)
    sequence = torch.randn(3, 4, D, generator=generator, dtype=torch.float64)
    return Pair(Encoding(sequence.mean(1), sequence, mask), Encoding(sequence.mean(1)))


def batch():
    return {"text": {"input_ids": IDS, "attention_mask": (IDS > 0).long()}, "id": torch.arange(3)}


def slow(loss, places, weights, rows):
    """Mean over rows of the weighted cross-entropy of their token sets."""
    logits = loss.head(pair().query.sequence.mean(1)).log_softmax(1)
    losses = []
    for row, tokens in enumerate(rows):
        total = sum(weights[token] for token in tokens)
        if total > 0:
            losses.append(-sum(weights[token] / total * float(logits[row, places[token]]) for token in tokens))
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("idf", ["corpus", "none"])
def test_the_term_is_the_weighted_cross_entropy_of_each_captions_token_set(idf):
    loss = term(idf)
    weights = {3: math.log(5 / 5), 4: math.log(5 / 3), 5: math.log(5 / 2)} if idf == "corpus" else {3: 1.0, 4: 1.0, 5: 1.0}
    value, rows = slow(loss, {3: 0, 4: 1, 5: 2}, weights, [(3, 4), (3, 5), (3,)])
    terms = loss.class_loss(pair(), batch())
    assert float(terms["loss_token"]) == pytest.approx(value, rel=1e-6)
    assert int(terms["token_rows"]) == rows == (2 if idf == "corpus" else 3)  # a caption of common tokens alone has no weight


def test_the_vocabulary_is_that_of_training_or_all_with_or_without_special_tokens():
    sizes = {(v, s): term(vocab=v, ignore_special=s).head[1].out_features for v in ("seen", "full") for s in (True, False)}
    assert sizes == {("seen", True): 3, ("seen", False): 5, ("full", True): 4, ("full", False): 7}


def test_online_counts_move_in_training_only_and_once_a_micro_batch():
    loss = term("online")
    loss.eval().class_loss(pair(), batch())
    assert loss.documents == 0
    loss.train().class_loss(pair(), batch())
    assert loss.documents == 3 and loss.document_counts.tolist() == [3, 1, 1]


def test_tokens_outside_the_vocabulary_leave_a_finite_loss_and_gradient():
    strange = batch() | {"text": {"input_ids": torch.full((3, 2), 6), "attention_mask": torch.ones(3, 2)}}
    loss, given = term(), pair()
    given.query.sequence.requires_grad_()
    terms = loss.class_loss(given, strange)
    terms["loss_token"].backward()
    assert float(terms["loss_token"]) == 0 and bool(given.query.sequence.grad.isfinite().all())


def test_what_lies_in_the_querys_pads_does_not_matter():
    mask = torch.tensor([[True, True, False, False]] * 3)
    clean, dirty = pair(mask), pair(mask)
    dirty.query.sequence[:, 2:] = torch.nan
    assert float(term().class_loss(clean, batch())["loss_token"]) == float(term().class_loss(dirty, batch())["loss_token"])


def test_what_is_missing_is_named():
    loss = term()
    with pytest.raises(KeyError, match="query's token sequence"):
        loss.class_loss(Pair(Encoding(torch.zeros(3, D)), Encoding(torch.zeros(3, D))), batch())
    with pytest.raises(KeyError, match="batch has no 'text'; it holds id"):
        loss.class_loss(pair(), {"id": torch.arange(3)})
    with pytest.raises(ConfigError, match="needs encoder/text"):
        TokenTerm(D, 1.0, "corpus", "seen", True).see_corpus(None)
    with pytest.raises(ConfigError, match="corpus, online or none"):
        TokenTerm(D, 1.0, "tfidf", "seen", True)


def test_superclip_token_is_clip_beside_the_token_term_and_plain_clip_for_sequences():
    loss = SuperClipTokenLoss(0.07, True, D, 0.4, "corpus", "seen", True)
    loss.see_corpus(CORPUS)
    features = torch.randn(3, D, generator=torch.Generator().manual_seed(2), requires_grad=True)
    keys = torch.arange(3)
    plain = ClipLoss(0.07, True, "out", "both")
    assert loss(features, features, keys)["loss_clip"] == plain(features, features, keys)["loss_clip"]
    assert loss.term_weights == {"loss_clip": 1.0, "loss_token": 0.4}
    assert type(loss.for_scores()) is ClipLoss


def test_a_composite_sums_its_terms_by_weight_and_refuses_two_of_one_name():
    superclip = SuperClipLoss(0.07, True, "out", "both", 0.5, 2.0, 0.0, 0.0)
    loss = CompositeLoss(
        {"superclip": {"weight": 2.0, "loss": superclip}, "token": {"weight": 0.5, "loss": TokenTerm(D, 3.0, "none", "seen", True)}}
    )
    loss.see_corpus(CORPUS)
    assert loss.term_weights == {"loss_clip": 1.0, "loss_class": 4.0, "loss_token": 1.5}
    given = pair()
    given.class_logits = torch.zeros(3, 2)
    terms = loss.float().class_loss(
        Pair(Encoding(given.query.features.float(), given.query.sequence.float()), given.target, given.class_logits),
        batch() | {"label": torch.tensor([0, 1, 1])},
    )
    assert float(terms["loss_class"]) == pytest.approx(math.log(2)) and float(terms["loss_token"]) > 0
    assert type(loss.for_scores()) is ClipLoss and loss.logit_scale is superclip.logit_scale
    with pytest.raises(ConfigError, match="another term logs loss_clip too"):
        CompositeLoss({"a": {"weight": 1.0, "loss": superclip}, "b": {"weight": 1.0, "loss": ClipLoss(0.07, True, "out", "both")}})
