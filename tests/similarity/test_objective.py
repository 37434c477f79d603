"""The sequence term in the objective: its own scale, unweighted log, ramp, errors; and two processes of B as one of 2 B."""

import math

import pytest
import torch
from rank_processes import end_rank, run_ranks, this_rank
from torch import distributed as dist
from torch import nn
from toy_towers import D, Model, combined

from mmexpert.engine.accumulate import joined_encodings
from mmexpert.engine.objective import Objective
from mmexpert.engine.optim import parameter_groups
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.models.heads import BothHead, TextHead
from mmexpert.similarity.global_ import Global
from mmexpert.types import ClassTable, ConfigError, Encoding, Pair

B, PROCESSES = 4, 2


class Doubled(ClipLoss):
    """A direction of its own: nothing is known of its columns, so ranks gather the whole matrix."""

    def direction(self, logits, positives, side):
        loss, floor = super().direction(logits, positives, side)
        return 2 * loss, floor


LOSSES = {
    "clip": lambda: ClipLoss(0.07, True, "out", "both"),
    "clip_in": lambda: ClipLoss(0.07, True, "in", "both"),
    "clip_one_way": lambda: ClipLoss(0.07, True, "out", "query"),
    "siglip": lambda: SigLipLoss(0.1, True, -2.0, 1.0),
    "superclip": lambda: SuperClipLoss(0.07, True, "out", "both", 1.0, 0.0, 0.0, 0.0),
    "own_direction": lambda: Doubled(0.07, True, "out", "both"),
}


class WithFurther(Model):
    """Further texts are columns behind the own ones, as reference negatives are."""

    def forward(self, batch):
        pair, further = super().forward(batch), self.encoders["text"](batch["further"])
        return Pair(
            pair.query, joined_encodings([pair.target, further]), target_key=torch.cat([batch["positive_key"], batch["further_key"]])
        )


CASES = [(name, model) for name in LOSSES for model in (Model, WithFurther)]
CLASSES = ClassTable(("walk", "jump"), (("a walk",), ("a jump",)), (3, 1))
HEADS = ("global", "local", "attention", "temporal")


def objective(loss="clip", similarity=combined, weight=0.5, ramp=0.0, model=Model):
    torch.manual_seed(0)
    module = similarity() if similarity else None
    return Objective(model(), LOSSES[loss](), module, LOSSES[loss]() if similarity else None, weight, ramp).double()


def whole_batch():
    """2 B rows, keys shared within and across ranks; the second rank's texts are longer. 4 further texts, one of an own key."""
    generator = torch.Generator().manual_seed(5)  # recall is neither 0 nor 1, and differs from that of each rank alone
    rows = B * PROCESSES

    def side(longest, lengths):
        mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return {"tokens": torch.randn(len(lengths), longest, D, generator=generator, dtype=torch.float64), "mask": mask}

    return {
        "radar": side(5, [5, 3, 4, 2, 5, 1, 4, 5]),
        "text": side(6, [3, 2, 3, 1, 6, 2, 5, 4]),
        "positive_key": torch.tensor([0, 1, 2, 2, 4, 1, 6, 0]),
        "id": torch.arange(rows),
        "further": side(4, [4, 1, 2, 3][: 2 * PROCESSES]),
        "further_key": torch.tensor([90, 1, 92, 93]),
    }


def share(rank):
    """Rows of a rank, texts cut to its own longest."""
    own, further = slice(rank * B, (rank + 1) * B), slice(rank * 2, (rank + 1) * 2)
    batch = whole_batch()
    mine = {name: batch[name][own] for name in ("positive_key", "id")} | {"further_key": batch["further_key"][further]}
    for name, rows in (("radar", own), ("text", own), ("further", further)):
        longest = int(batch[name]["mask"][rows].sum(1).max())
        mine[name] = {key: x[rows, :longest] for key, x in batch[name].items()}
    return mine


def numbers(module, losses):
    return {name: value.detach() for name, value in losses.items()} | {name: p.grad for name, p in module.named_parameters()}


def worker(rank, processes, folder):
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    found = {}
    for name, model in CASES:
        module = objective(name, model=model)
        wrapped = nn.parallel.DistributedDataParallel(module)
        losses, _ = wrapped(share(rank))
        losses["loss_total"].backward()
        shown = numbers(module, losses)
        for key in losses:
            dist.all_reduce(shown[key])
            shown[key] /= PROCESSES
        found[f"{name}/{model.__name__}"] = shown
    if rank == 0:
        torch.save(found, folder / "found.pt")
    end_rank()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, PROCESSES, folder)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("name, model", CASES)
def test_two_processes_give_the_terms_the_report_and_every_gradient_of_one(name, model, found):
    module, there = objective(name, model=model), found[f"{name}/{model.__name__}"]
    losses, _ = module(whole_batch())
    losses["loss_total"].backward()
    expected = numbers(module, losses)
    reported = {"score_gap", "in_batch_recall_1", *(f"score_gap_{head}" for head in HEADS)}
    assert reported | {"similarity.theta", "sequence_loss.logit_scale", "similarity.query_map.weight"} <= expected.keys() == there.keys()
    for number, value in expected.items():
        error = float((there[number] - value).norm() / value.norm().clamp(min=1e-12))
        assert error <= 1e-12, f"{number}: relative error {error:.1e}"


@pytest.mark.parametrize("model", [Model, WithFurther])
def test_gaps_and_recall_are_plain_means_over_pairs_and_rows(model):
    module, batch = objective(model=model), whole_batch()
    losses, pair = module(batch)
    keys = batch["positive_key"].tolist()
    target_keys = keys if pair.target_key is None else pair.target_key.tolist()

    def gap(scores):
        positive, negative = [], []
        for i, key in enumerate(keys):
            for j, other in enumerate(target_keys):
                (positive if key == other else negative).append(scores[i][j])
        return sum(positive) / len(positive) - sum(negative) / len(negative)

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    pooled = [[cosine(a, b) for b in pair.target.features.tolist()] for a in pair.query.features.tolist()]
    hits = [target_keys[row.index(max(row))] == key for row, key in zip(pooled, keys, strict=True)]
    assert losses["in_batch_recall_1"].item() == pytest.approx(sum(hits) / len(hits)) and 0 < sum(hits) < len(hits)
    assert losses["score_gap"].item() == pytest.approx(gap(pooled), rel=1e-9)
    for name, scores in module.similarity.head_scores(pair.query, pair.target).items():
        assert losses[f"score_gap_{name}"].item() == pytest.approx(gap(scores.tolist()), rel=1e-9)


@pytest.mark.parametrize("name", ["clip", "clip_in", "clip_one_way", "siglip"])
def test_further_target_rows_change_the_row_direction_alone_in_the_sequence_term_too(name):
    module = objective(name, model=WithFurther)
    losses, pair = module(whole_batch())
    scores, keys = module.similarity(pair.query, pair.target), whole_batch()["positive_key"]
    rows, own = len(keys), scores[:, : len(keys)]
    positives = keys[:, None] == pair.target_key
    loss = module.sequence_loss
    if name == "siglip":
        expected = loss.from_row_block(own, positives[:, :rows])["loss_clip"]
        further = loss.logit_scale.exp() * scores[:, rows:] + loss.logit_bias
        signs = torch.where(positives[:, rows:], 1.0, -1.0)
        expected = expected - torch.nn.functional.logsigmoid(signs * further).sum() / rows
    else:
        there, _ = loss.direction(loss.logit_scale.exp() * scores, positives, "query")
        back, _ = loss.direction(loss.logit_scale.exp() * own.T, positives[:, :rows].T, "target")
        expected = there if name == "clip_one_way" else (there + back) / 2
    assert losses["loss_seq"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_total_is_the_clip_term_and_the_weighted_sequence_term_logged_unweighted():
    module = objective(weight=0.3)
    losses, _ = module(whole_batch())
    assert losses["loss_total"].item() == pytest.approx((losses["loss_clip"] + 0.3 * losses["loss_seq"]).item(), rel=1e-12)
    assert {"score_gap", "score_gap_global", "score_gap_local", "score_gap_attention", "score_gap_temporal"} <= losses.keys()
    scales = module.scales()
    assert [round(scales[f"similarity_weight_{name}"].item(), 2) for name in ("global", "local", "attention", "temporal")] == [
        0.5,
        0.25,
        0.15,
        0.1,
    ]
    assert {"logit_scale", "logit_scale_seq"} <= scales.keys()


def test_without_a_similarity_term_parameters_and_keys_are_absent():
    module = objective(similarity=None)
    losses, _ = module(whole_batch())
    assert "loss_seq" not in losses and losses["loss_total"] == losses["loss_clip"]
    assert not [name for name, _ in module.named_parameters() if name.startswith(("similarity", "sequence"))]


def test_the_weight_grows_over_the_ramp():
    module = objective(weight=0.5, ramp=4)
    seen = []
    for epoch in (0, 1, 4, 9):
        module.at_epoch(epoch)
        losses, _ = module(whole_batch())
        seen.append(((losses["loss_total"] - losses["loss_clip"]) / losses["loss_seq"]).item())
    assert seen == pytest.approx([0, 0.125, 0.5, 0.5])


def test_every_parameter_is_in_one_group_and_the_scales_are_not_decayed():
    module = objective("siglip")
    groups = parameter_groups(module, 1e-3, 0.01)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    decayed = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    assert not decayed & {"similarity.theta", "sequence_loss.logit_scale", "sequence_loss.logit_bias"}
    assert "similarity.query_map.weight" in decayed


def test_the_sequence_scale_is_clamped_after_the_step_and_doubled_temperature_leaves_scores_in_range():
    module = objective()
    with torch.no_grad():
        module.sequence_loss.logit_scale.fill_(99.0)
    module.clamp_()
    assert module.scales()["logit_scale_seq"].item() == pytest.approx(100)
    pair = module.model(whole_batch())
    assert module.similarity(pair.query, pair.target).abs().max() <= 1


@pytest.mark.parametrize("head", [lambda: TextHead(0.05, 0.0, CLASSES), lambda: BothHead(D, 0.05, 0.0, CLASSES)], ids=["text", "both"])
def test_the_scales_and_biases_of_all_terms_are_told_by_their_logged_names(head):
    module = objective("siglip", similarity=lambda: Global(D, True))
    module.model.head = head().double()
    with torch.no_grad():
        module.sequence_loss.logit_scale.fill_(math.log(30))
        module.sequence_loss.logit_bias.fill_(-4.0)
    told = {name: value.item() for name, value in module.scales().items()}
    expected = {"logit_scale": 10, "logit_bias": -2, "logit_scale_seq": 30, "logit_bias_seq": -4, "logit_scale_class": 20}
    assert told == pytest.approx(expected, rel=1e-6)


def test_a_tower_without_tokens_ends_with_the_remedy():
    module = objective(similarity=lambda: Global(D, True))
    whole = module.model
    module.model.forward = lambda batch: Pair(Encoding(torch.ones(8, D).double()), whole.encoders["text"](batch["text"]))
    with pytest.raises(KeyError, match="query's encoder returned none"):
        module(whole_batch())


def test_a_similarity_and_its_loss_come_together():
    with pytest.raises(ConfigError, match="come together"):
        Objective(Model(), LOSSES["clip"](), combined(), None, 0.5, 0)


if __name__ == "__main__":
    worker(*this_rank())
