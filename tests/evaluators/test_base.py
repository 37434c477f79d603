"""What is collected: every sample once, in the order of ids, in fp32, the same from one process and from two; losses over it."""

import pytest
import torch
from evaluator_toys import ACCELERATOR, ToyLoaders, ToyModel, ToyRecord, classes_of, plain_records, table, toy_objective
from rank_processes import end_rank, run_ranks, this_rank
from torch import distributed as dist
from torch.nn import functional as F

from mmexpert.evaluators.base import collect, part_losses
from mmexpert.evaluators.classification import ClassificationEvaluator
from mmexpert.evaluators.retrieval import RetrievalEvaluator
from mmexpert.evaluators.step_terms import StepTerms
from mmexpert.losses.composite import CompositeLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.losses.superclip_token import SuperClipTokenLoss, TokenTerm
from mmexpert.types import DataError, TokenCorpus


def similarity(query, target):
    """Cosine of features plus the mean of real tokens, [Bq, Bt]."""
    means = [(e.sequence * e.mask[:, :, None]).sum(1) / e.mask.sum(1, keepdim=True) for e in (query, target)]
    return F.normalize(query.features + means[0], dim=1) @ F.normalize(target.features + means[1], dim=1).T


def seventeen(processes=1, rank=0, classes=False):
    """17 samples in batches of 4; hard captions of some, a repeated key, groups of two."""
    records = [ToyRecord(f"r{i:03d}", f"g{i // 2}", i % 3) for i in range(20)]
    hard = {i: [(0, table(50 + i, 3)), (1, table(80 + i, 3))] for i in (2, 5, 11)}
    keys = [i if i != 9 else 4 for i in range(20)]
    tables = {"range_time": table(0, 20, 3), "doppler_time": table(1, 20, 3), "text": table(2, 20, 3)}
    tables["tokens"] = torch.tensor([[i % 4 + 2, i % 3] if i % 5 else [1, 1] for i in range(20)])  # every fifth has no known token
    named = classes_of(["a", "b", "c"]) if classes else None
    return ToyLoaders(records, tables, keys, 4, processes, rank, named, {} if classes else hard, train=(17, 18, 19))


def token_losses():
    """The two losses that read texts: superclip_token, and the class term beside the token term."""
    counts = (0, 0, 5, 4, 3, 2)
    torch.manual_seed(0)
    token = SuperClipTokenLoss(0.07, True, 3, 1.5, "corpus", "seen", True)
    parts = {"superclip": SuperClipLoss(0.07, True, "out", "both", 0.5, 2.0, 0.1, 1.0), "token": TokenTerm(3, 2.0, "none", "seen", True)}
    losses = {"token": token, "composite": CompositeLoss({name: {"weight": 0.5, "loss": loss} for name, loss in parts.items()})}
    for loss in losses.values():
        loss.see_corpus(TokenCorpus(counts, 9, ()))
    return losses


def everything(processes=1, rank=0):
    """Metrics of both evaluators over the same seventeen, and the losses that read texts."""
    plain = RetrievalEvaluator([1, 5], "pessimistic", "auto", 8, 17, True, False)
    evaluation = plain(toy_objective(ToyModel(), similarity), seventeen(processes, rank), ACCELERATOR, "test")
    found = {f"retrieval/{name}": value for name, value in evaluation.metrics.items()}
    objective = toy_objective(ToyModel(table(7, 3, 3), head=True), classes=True)
    evaluation = ClassificationEvaluator(["test"], [], "train", "auto", 0)(objective, seventeen(processes, rank, True), ACCELERATOR, "test")
    found |= {f"classes/{name}": value for name, value in evaluation.metrics.items()}
    for kind, loss in token_losses().items():
        objective = toy_objective(ToyModel(table(7, 3, 3), head=True), loss=loss)
        losses = part_losses(objective, collect(objective, seventeen(processes, rank, True), ACCELERATOR, "test"), 5)
        found |= {f"{kind}/{name}": value for name, value in losses.items()}
    return found


def worker(rank, processes, out):
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    torch.save(everything(2, rank), f"{out}.{rank}")
    end_rank()


def test_two_processes_give_exactly_the_metrics_and_losses_of_one(tmp_path):
    run_ranks(__file__, 2, tmp_path / "out")
    expected = everything()
    assert len(expected) > 100 and "classes/probe_acc" in expected and "retrieval/hard_side" in expected
    assert {"token/loss_token", "composite/loss_token", "composite/loss_class"} <= expected.keys()
    for rank in range(2):
        there = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        assert there.keys() == expected.keys()
        for name, value in expected.items():
            loose = any(term in name for term in ("loss_class", "loss_token", "loss_total"))
            assert there[name] == pytest.approx(value, rel=1e-5 if loose else 0, abs=1e-12), name


def test_rows_come_back_by_id_with_their_features_keys_and_padded_sequences():
    loaders = seventeen()
    assert collect(toy_objective(ToyModel()), loaders, ACCELERATOR, "test").query.sequence is None  # nobody would ask for the tokens
    collected = collect(toy_objective(ToyModel(), similarity), loaders, ACCELERATOR, "test")
    assert collected.ids.tolist() == list(range(17)) and collected.keys.tolist() == loaders.keys[:17].tolist()
    torch.testing.assert_close(collected.query.features, (loaders.tables["range_time"] + loaders.tables["doppler_time"])[:17])
    torch.testing.assert_close(collected.target.features, loaders.tables["text"][:17])
    assert collected.query.sequence.shape == (17, 3, 3)  # the longest of all batches
    assert collected.query.mask.sum() == 16 * 2 + 3  # four batches of 4 have 2 tokens, the last sample alone has 3
    assert (collected.query.sequence[collected.query.mask][:, 0].unique() == torch.arange(17)).all()


def test_half_precision_leaves_as_fp32():
    model = ToyModel()
    collected = collect(toy_objective(model.bfloat16(), similarity), seventeen(), ACCELERATOR, "test")
    assert collected.query.features.dtype == collected.query.sequence.dtype == torch.float32


def test_a_sample_that_no_batch_held_is_an_error():
    loaders = seventeen()
    loaders.lost = 6
    with pytest.raises(DataError, match=r"1 samples of the part were not evaluated, the first \[6\]"):
        collect(toy_objective(ToyModel()), loaders, ACCELERATOR, "test")


def test_other_views_are_withheld_where_one_is_asked_for():
    loaders = seventeen()
    collected = collect(toy_objective(ToyModel()), loaders, ACCELERATOR, "test", view="doppler_time")
    torch.testing.assert_close(collected.query.features, loaders.tables["doppler_time"][:17])
    assert collected.hard is None


def test_a_hard_captions_margin_is_own_score_minus_its_score_by_every_score():
    loaders = seventeen()
    objective = toy_objective(ToyModel(), similarity)
    hard = collect(objective, loaders, ACCELERATOR, "test").hard
    assert [(int(i), int(k)) for i, k in zip(hard["id"], hard["kind"], strict=True)] == [(i, k) for i in (2, 5, 11) for k in (0, 1)]
    query = (loaders.tables["range_time"] + loaders.tables["doppler_time"])[5]
    own, other = loaders.tables["text"][5], table(85, 3)
    margin = float(F.cosine_similarity(query, own, dim=0) - F.cosine_similarity(query, other, dim=0))
    assert float(hard["pooled"][3]) == pytest.approx(margin, abs=1e-6)
    torch.testing.assert_close(hard["fused"], (hard["pooled"] + 0.5 * hard["sequence"]) / 1.5)


def slow_losses(objective, loaders, block):
    """Blocks of shuffled rows, terms weighted by rows, from the tables."""
    query, text = sum(x for name, x in loaders.tables.items() if name.endswith("_time"))[:17], loaders.tables["text"][:17]
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for rows in order.split(block):
        keys = loaders.keys[rows]
        scores = F.normalize(query[rows], dim=1) @ F.normalize(text[rows], dim=1).T
        total += float(objective.loss.from_scores(scores, keys[:, None] == keys)["loss_clip"].detach()) * len(rows)
    return total / 17


@pytest.mark.parametrize("block", [4, 5, 64])
def test_losses_are_means_over_blocks_weighted_by_rows_under_the_roles_names(block):
    loaders, objective = seventeen(), toy_objective(ToyModel())
    got = part_losses(objective, collect(objective, loaders, ACCELERATOR, "test"), block)
    assert got["loss_clip"] == pytest.approx(slow_losses(objective, loaders, block), rel=1e-6)
    assert got["loss_total"] == got["loss_clip"]
    assert got["loss_clip"] == pytest.approx((got["loss_radar_to_text"] + got["loss_text_to_radar"]) / 2, rel=1e-6)


def test_losses_do_not_depend_on_the_batches_that_the_features_came_in():
    objective = toy_objective(ToyModel(), similarity)
    loaders = [seventeen(), seventeen()]
    loaders[1].placed = (7, 1, 0)
    first, second = (part_losses(objective, collect(objective, each, ACCELERATOR, "test"), 5) for each in loaders)
    assert first == second and "loss_seq" in first


def test_class_and_sequence_terms_join_the_total_by_their_weights():
    objective, loaders = toy_objective(ToyModel(table(7, 3, 3), head=True), classes=True), seventeen(classes=True)
    collected = collect(objective, loaders, ACCELERATOR, "test")
    got = part_losses(objective, collected, 64)
    assert got["loss_class"] == pytest.approx(float(F.cross_entropy(collected.class_logits, collected.label)), rel=1e-6)
    assert got["loss_total"] == pytest.approx(0.5 * got["loss_clip"] + 2.0 * got["loss_class"], rel=1e-6)
    objective = toy_objective(ToyModel(), similarity)
    got = part_losses(objective, collect(objective, seventeen(), ACCELERATOR, "test"), 64)
    assert got["loss_total"] == pytest.approx(got["loss_clip"] + 0.5 * got["loss_seq"], rel=1e-6) and got["loss_seq"] != got["loss_clip"]


def test_the_objective_trains_on_the_very_terms_that_are_validated():
    objective, loaders = toy_objective(ToyModel(), similarity), seventeen()
    loaders.placed = (17, 1, 0)
    (batch,) = loaders.part("test")
    trained, _ = objective(batch)
    validated = part_losses(objective, collect(objective, loaders, ACCELERATOR, "test"), 17)
    for name in ("loss_clip", "loss_seq", "loss_total", "loss_radar_to_text"):
        assert validated[name] == pytest.approx(float(trained[name].detach()), rel=1e-5), name


@pytest.mark.parametrize("kind", ["token", "composite"])
@pytest.mark.parametrize("batch", [4, 7, 17])
def test_losses_that_read_texts_validate_every_term_of_training_over_the_whole_part(kind, batch):
    """In training mode's terms of one batch of all rows: captions without a known token are dealt out unevenly to the batches."""
    objective, loaders = toy_objective(ToyModel(table(7, 3, 3), head=True), loss=token_losses()[kind]), seventeen(classes=True)
    loaders.placed = (17, 1, 0)
    trained = {name: float(value.detach()) for name, value in objective(next(loaders.part("test")))[0].items()}
    loaders.placed = (batch, 1, 0)
    collected = collect(objective, loaders, ACCELERATOR, "test")
    assert collected.query.sequence is None  # no token of a row is kept
    validated = part_losses(objective, collected, 17)
    terms = {name for name in trained if name.startswith("loss_") or name == "token_rows"}
    assert {"loss_token", "loss_total", "loss_clip", "token_rows"} <= terms and ("loss_class" in terms) == (kind == "composite")
    for name in terms:
        assert validated[name] == pytest.approx(trained[name], rel=1e-5, abs=1e-6), name
    assert validated["token_rows"] == 13


def test_a_token_term_is_asked_for_as_often_as_rows_stand_for_it_and_repeats_are_left_out():
    objective = toy_objective(ToyModel(table(7, 3, 3), head=True), loss=token_losses()["token"])
    loaders, terms = seventeen(), StepTerms(objective.loss)
    for indices in ([0, 1, 2, 3], [3, 3, 4], [1, 0]):
        batch = loaders.batch(indices)
        terms.add(objective.model(batch), batch)
    batch = loaders.batch([0, 1, 2, 3, 4])
    once = objective.loss.class_loss(objective.model(batch), batch)
    assert terms.means() == {"loss_token": pytest.approx(float(once["loss_token"].detach()), rel=1e-6), "token_rows": 4}


@pytest.mark.parametrize("part", ["test", "train"])
def test_a_part_holds_its_own_rows_only(part):
    records = plain_records(20)
    loaders = ToyLoaders(records, {"range_time": table(0, 20, 3), "text": table(1, 20, 3)}, train=range(15))
    collected = collect(toy_objective(ToyModel()), loaders, ACCELERATOR, part)
    assert collected.ids.tolist() == (list(range(15)) if part == "train" else list(range(15, 20)))


if __name__ == "__main__":
    worker(*this_rank())
