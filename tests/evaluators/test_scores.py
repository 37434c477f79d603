"""Evaluators with a real similarity on token sequences: its scores, and fused ones, are those of a plain computation over all pairs."""

import pytest
import torch
from evaluator_toys import ACCELERATOR, ToyLoaders, ToyRecord, classes_of, plain_records, table
from torch import nn

from mmexpert.command_line import composed
from mmexpert.config import check, instantiate
from mmexpert.engine.objective import Objective
from mmexpert.evaluators.classification import ClassificationEvaluator
from mmexpert.evaluators.retrieval import RetrievalEvaluator
from mmexpert.losses.clip import ClipLoss
from mmexpert.models.dual_encoder import DualEncoder
from mmexpert.models.heads import ClassPrompts, LinearHead, TextHead
from mmexpert.types import ConfigError, Encoding

DIM, WEIGHT = 8, 0.7
NAMES = ("walk", "jump", "box")
OWNER = torch.tensor([0, 0, 0, 1, 2, 2])  # class of each prompt


class TokenTower(nn.Module):
    """Stored encodings by number: the first view, the row of a text or the token of a prompt is the number."""

    dim = DIM

    def __init__(self, count, seed, longest):
        super().__init__()
        lengths = torch.randint(1, longest + 1, (count, 1), generator=torch.Generator().manual_seed(seed))
        self.features = nn.Parameter(table(seed, count, DIM))
        self.sequence, self.mask = table(seed + 1, count, longest, DIM), torch.arange(longest) < lengths

    def forward(self, inputs):
        numbers = next(inputs[name] for name in ("range_time", "rows", "input_ids") if name in inputs)[:, 0].long()
        mask = self.mask[numbers]
        longest = int(mask.sum(1).max())  # batches are padded to their own longest
        return Encoding(self.features[numbers], self.sequence[numbers, :longest], mask[:, :longest])

    def frozen_modules(self):
        return []

    def all(self, rows):
        return Encoding(self.features[rows].detach(), self.sequence[rows], self.mask[rows])


def real_similarity(name):
    """As conf/similarity builds it, its maps moved away from the identity."""
    similarity = instantiate(check(composed(f"similarity={name}", f"model.projection_dim={DIM}"))["similarity"], "similarity")
    torch.manual_seed(1)
    for side in (similarity.query_map, similarity.target_map):
        nn.init.orthogonal_(side.weight)
    return similarity


def task(n, similarity, head=None, labels=None):
    """(objective, loaders, query tower, text tower): n pairs; with labels also the prompts, behind the texts of the pairs."""
    towers = {"radar": TokenTower(n, 0, 9), "text": TokenTower(n + len(OWNER), 5, 6)}
    classes = None if labels is None else classes_of(NAMES)
    prompts = ClassPrompts((n + torch.arange(len(OWNER)))[:, None], torch.ones(len(OWNER), 1), OWNER) if labels else None
    model = DualEncoder("radar", "text", DIM, towers, head(classes) if head else None, prompts)
    loss = ClipLoss(0.07, True, "out", "both")
    objective = Objective(model, loss, similarity, similarity and ClipLoss(0.5, True, "out", "both"), WEIGHT, 0).eval()
    records = plain_records(n) if labels is None else [ToyRecord(f"r{i:03d}", f"g{i}", label) for i, label in enumerate(labels)]
    numbers = torch.arange(n, dtype=torch.float32)[:, None]
    loaders = ToyLoaders(records, {"range_time": numbers, "text": numbers}, labels, classes=classes, batch=5)
    return objective, loaders, *towers.values()


def watched(similarity):
    """(rows of each call, whether any call kept gradients), filled as the similarity is used."""
    calls, kept = [], []

    def watch(module, given):
        calls.append(len(given[0].features))
        kept.append(torch.is_grad_enabled())

    similarity.register_forward_pre_hook(watch)
    return calls, kept


def cosines(query, target):
    return torch.stack([torch.stack([nn.functional.cosine_similarity(q, t, dim=0) for t in target]) for q in query])


def plain_ranks(scores):
    """Rank of each row's own column, by counting."""
    return [float(1 + sum(bool(line[j] >= line[i]) for j in range(len(line)) if j != i)) for i, line in enumerate(scores)]


@pytest.mark.parametrize("rank_by", ["pooled", "sequence", "fused", "auto"])
def test_a_gallery_is_ranked_as_by_the_scores_of_all_pairs_at_once_in_blocks_of_32_rows(rank_by):
    similarity = real_similarity("combined")
    objective, loaders, query, text = task(70, similarity)
    everything = torch.arange(70)
    with torch.no_grad():
        sequence = similarity(query.all(everything), text.all(everything))
    pooled = cosines(query.features[everything], text.features[everything]).detach()
    plain = {"pooled": pooled, "sequence": sequence, "fused": (pooled + WEIGHT * sequence) / (1 + WEIGHT)}
    calls, kept = watched(similarity)
    got = RetrievalEvaluator([1, 5, 10], "pessimistic", rank_by, None, None, False, False)(objective, loaders, ACCELERATOR, "test")
    assert calls[:3] == [32, 32, 6] and not any(kept)
    ranks = {name: (plain_ranks(scores), plain_ranks(scores.T)) for name, scores in plain.items()}
    chosen = "fused" if rank_by == "auto" else rank_by
    assert got.protocol["rank_by"] == chosen and len({str(found) for found in ranks.values()}) == 3
    assert (got.tables["ranks"]["radar_to_text"], got.tables["ranks"]["text_to_radar"]) == ranks[chosen]
    for name, (forth, back) in ranks.items():
        prefix = "" if name == chosen else f"{name}_"
        assert got.metrics[f"{prefix}radar_to_text_R@10"] == pytest.approx(100 * sum(rank <= 10 for rank in forth) / 70)
        assert got.metrics[f"{prefix}text_to_radar_R@5"] == pytest.approx(100 * sum(rank <= 5 for rank in back) / 70)


def classified(labels, similarity, head=None, rank_by="auto"):
    objective, loaders, query, text = task(len(labels), similarity, head, labels)
    calls = watched(similarity) if similarity is not None else None
    got = ClassificationEvaluator([], [], "as_trained", rank_by, 0)(objective, loaders, ACCELERATOR, "test")
    return got, query, text, calls


def of_classes(similarity, query, text, n):
    """Pooled, sequence and fused scores [n, 3] of one sample with one prompt at a time."""
    unit = nn.functional.normalize
    pooled, sequence = torch.zeros(n, 3), torch.zeros(n, 3)
    for k in range(3):
        prompts = [n + p for p in range(len(OWNER)) if OWNER[p] == k]
        mean = unit(sum(unit(text.features[p].detach(), dim=0) for p in prompts), dim=0)
        for i in range(n):
            pooled[i, k] = nn.functional.cosine_similarity(query.features[i].detach(), mean, dim=0)
            with torch.no_grad():
                alone = [float(similarity(query.all([i]), text.all([p]))) for p in prompts]
            sequence[i, k] = sum(alone) / len(alone)
    return {"pooled": pooled, "sequence": sequence, "fused": (pooled + WEIGHT * sequence) / (1 + WEIGHT)}


@pytest.mark.parametrize("name", ["local", "temporal"])
@pytest.mark.parametrize("rank_by", ["auto", "fused", "sequence"])
def test_classes_are_told_by_the_mean_of_their_prompts_fused_scores(name, rank_by):
    labels, similarity = [i % 3 for i in range(40)], real_similarity(name)
    got, query, text, (calls, kept) = classified(labels, similarity, lambda classes: TextHead(0.2, 0.0, classes), rank_by)
    assert calls[:2] == [32, 8] and not any(kept)
    chosen = "fused" if rank_by == "auto" else rank_by
    plain = of_classes(similarity, query, text, 40)
    found = torch.tensor([[row[f"p_{name}"] for name in NAMES] for row in got.predictions])
    torch.testing.assert_close(found, torch.softmax(plain[chosen] / 0.2, 1), atol=1e-5, rtol=0)
    assert got.protocol["by"] == f"text prompts, {chosen} scores" and got.protocol["uncalibrated"]
    for score, scores in plain.items():
        right = float((scores.argmax(1) == torch.tensor(labels)).double().mean())
        assert got.metrics["acc" if score == chosen else f"{score}_acc"] == pytest.approx(right)
    assert len({str(scores.argmax(1).tolist()) for scores in plain.values()}) == 3


def test_without_a_head_fused_scores_are_scaled_as_cosines_are():
    labels, similarity = [i % 3 for i in range(12)], real_similarity("local")
    got, query, text, _ = classified(labels, similarity)
    expected = torch.softmax(of_classes(similarity, query, text, 12)["fused"] / 0.07, 1)
    torch.testing.assert_close(torch.tensor([row["p_jump"] for row in got.predictions]), expected[:, 1], atol=1e-4, rtol=0)


def without_scores(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith(("sequence_", "fused_", "loss_"))}


def test_ranking_by_pooled_scores_gives_the_numbers_of_a_run_without_a_similarity():
    labels = [i % 3 for i in range(40)]
    for head in (None, lambda classes: TextHead(0.2, 0.0, classes)):
        plain, *_ = classified(labels, None, head)
        got, *_ = classified(labels, real_similarity("local"), head, "pooled")
        assert without_scores(got.metrics) == without_scores(plain.metrics) and got.predictions == plain.predictions
        assert got.protocol == plain.protocol and got.protocol["by"] == "text prompts"
        assert {"sequence_acc", "fused_acc", "fused_balanced_acc"} <= got.metrics.keys()


def linear(classes):
    torch.manual_seed(2)
    return LinearHead(DIM, 0.0, classes)


def test_a_linear_head_is_not_altered_by_a_similarity_and_does_not_rank_by_one(monkeypatch):
    monkeypatch.setattr(LinearHead, "without_loss", lambda self: None)  # no class term trains here
    labels = [i % 3 for i in range(40)]
    plain, got = (classified(labels, similarity, linear)[0] for similarity in (None, real_similarity("local")))
    assert got.predictions == plain.predictions and got.protocol == plain.protocol and got.protocol["by"] == "linear head"
    assert without_scores(got.metrics) == without_scores(plain.metrics) and "fused_acc" not in got.metrics
    with pytest.raises(ConfigError, match="evaluator.rank_by=fused: the linear head decides here; choose model/head=text"):
        classified(labels, real_similarity("local"), linear, "fused")


@pytest.mark.parametrize("rank_by", ["sequence", "fused", "best"])
def test_classes_by_a_score_that_is_not_there_are_an_error(rank_by):
    with pytest.raises(ConfigError, match=f"evaluator.rank_by={rank_by}(: choose auto| needs a similarity)"):
        classified([0, 1, 2], None, rank_by=rank_by)
