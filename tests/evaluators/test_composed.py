"""The composed evaluator on tiny folders: galleries, groups, tables, pictures that are missing; figures from plain loops."""

import math
from types import SimpleNamespace

import pytest
import torch
from composed_sets import cirr, fashion_iq, write_cirr, write_fashion_iq
from evaluator_toys import ACCELERATOR, toy_objective
from torch import nn

from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings
from mmexpert.data.workers import WorkerSettings
from mmexpert.engine.console import result_table
from mmexpert.engine.plots import write_plots
from mmexpert.engine.results import write_predictions
from mmexpert.evaluators.composed import ComposedEvaluator
from mmexpert.types import ConfigError, DataError, Encoding

WIDTH = 192  # 3 x 8 x 8 pixels


class ToyComposed(nn.Module):
    """A picture's features are its pixels; a text's depend on its length; the query is their sum, or the same for all."""

    query, target, head = "query", "target", None

    def __init__(self, constant: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.encoders, self.constant, self.encoded = {}, constant, []

    def encode_gallery(self, batch):
        self.encoded += batch["id"].tolist()
        return batch["image"].flatten(1) if not self.constant else torch.ones(len(batch["id"]), WIDTH)

    def encode(self, role, inputs):
        return Encoding(inputs["input_ids"].float() @ torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)))

    def compose(self, reference, text):
        return reference + self.encode("text", text).features if not self.constant else torch.ones_like(reference)


def tokenizer(texts):
    ids = torch.tensor([[len(text)] for text in texts])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def scored():
    opened = []

    def score(dataset, part="valid", constant=False, **changed):
        settings = {"protocol": "auto", "combine": "auto", "ties": "pessimistic"} | changed
        parts = {name: dataset.part(name) for name in ("train", "valid", "test")}
        parts["train"] = parts["train"] or [0]
        plan = PlanSettings(4, 5, 1, 1, 0, False)  # 5 does not divide the queries
        loaders = Loaders(dataset, parts, Collate(tokenizer, 1, "batch", 1), plan, WorkerSettings(0, 2, False, 60), 0, torch.device("cpu"))
        opened.append(loaders)
        model = ToyComposed(constant)
        evaluation = ComposedEvaluator(**settings)(toy_objective(model), loaders, ACCELERATOR, part)
        return SimpleNamespace(evaluation=evaluation, metrics=evaluation.metrics, protocol=evaluation.protocol, model=model)

    yield score
    for loaders in opened:
        loaders.close()


@pytest.fixture
def fiq(tmp_path):
    return write_fashion_iq(tmp_path / "fiq")


@pytest.fixture
def cir(tmp_path):
    return write_cirr(tmp_path / "cirr_dataset", pictures=14, queries=7)


def cosines(dataset, query):
    """Cosine of a query with every picture of the part, by name, in fp64."""
    text = tokenizer([query.text])
    picture = {name: torch.from_numpy(dataset.picture("valid", name)).flatten() for name in dataset.files["valid"]}
    q = (picture[query.reference] + ToyComposed().encode("text", text).features[0]).double()
    return {name: float(torch.cosine_similarity(q, x.double(), dim=0)) for name, x in picture.items()}


def test_cirr_ranks_are_those_of_plain_loops_without_the_reference(cir, tmp_path, scored):
    dataset = cirr(cir, tmp_path)
    found = scored(dataset)
    rows = {row["id"]: row for row in found.evaluation.predictions}
    hits, group_hits = 0, 0
    for index in dataset.part("valid"):
        query = dataset.records[index].source
        score = cosines(dataset, query)
        rivals = [name for name in score if name not in (query.target, query.reference)]
        rank = 1 + sum(score[name] >= score[query.target] for name in rivals)
        group = 1 + sum(score[name] >= score[query.target] for name in rivals if name in query.members)
        assert (rows[query.id]["rank"], rows[query.id]["group_rank"]) == (rank, group)
        first = sorted([*rivals, query.target], key=lambda name: -score[name])[:10]  # noqa: B023
        assert rows[query.id]["first_10"].split() == first
        hits, group_hits = hits + (rank <= 5), group_hits + (group == 1)
    assert (found.metrics["hits@5"], found.metrics["Rs_hits@1"], found.metrics["queries"]) == (hits, group_hits, 7)
    assert found.metrics["average"] == pytest.approx(100 * (hits / 7 + group_hits / 7) / 2)


def test_each_picture_is_encoded_once(cir, tmp_path, scored):
    assert sorted(scored(cirr(cir, tmp_path)).model.encoded) == list(range(14))


@pytest.mark.parametrize("gallery", ["split", "union"])
def test_fashioniq_ranks_each_category_in_its_own_gallery_with_the_reference(fiq, tmp_path, scored, gallery):
    dataset = fashion_iq(fiq, tmp_path, gallery=gallery)
    found = scored(dataset)
    rows = {row["id"]: row for row in found.evaluation.predictions}
    for index in dataset.part("valid"):
        query = dataset.records[index].source
        score = cosines(dataset, query)
        rivals = [name for name in dataset.annotations["valid"].galleries[query.category] if name != query.target]
        assert rows[query.id]["rank"] == 1 + sum(score[name] >= score[query.target] for name in rivals)
        assert rows[query.id]["gallery"] == len(rivals) + 1
    assert found.protocol["gallery"] == gallery and found.protocol["categories"] == ["dress", "shirt"]
    assert found.protocol["reference"] == "in the gallery"
    assert found.metrics["average_R@10"] == pytest.approx((found.metrics["dress_R@10"] + found.metrics["shirt_R@10"]) / 2)


def test_constant_features_find_nothing(cir, tmp_path, scored):
    metrics = scored(cirr(write_cirr(tmp_path / "large", pictures=40, queries=8), tmp_path), constant=True).metrics
    assert metrics["R@1"] == metrics["Rs@1"] == metrics["harmonic_mean"] == 0
    assert metrics["hub_share"] > 0.8  # the first row, but where it is the reference


def test_image_and_text_alone_and_their_sums_are_chosen_by_combine(cir, tmp_path, scored):
    dataset = cirr(cir, tmp_path)
    plain = scored(dataset)
    found = {way: scored(dataset, combine=way) for way in ("sum", "image", "text", "normalised_sum")}
    ranks = {way: [row["rank"] for row in each.evaluation.predictions] for way, each in found.items()}
    assert ranks["sum"] == [row["rank"] for row in plain.evaluation.predictions]
    assert ranks["image"] != ranks["text"]
    assert found["image"].protocol["combiner"] == "image"
    assert "loss_total" in plain.metrics and "loss_total" not in found["image"].metrics


def test_missing_pictures_mark_metrics_protocol_and_console(fiq, tmp_path, scored):
    (fiq / "images/valdress2.jpg").unlink()
    found = scored(fashion_iq(fiq, tmp_path, allow_missing=True))
    for place in (found.metrics, found.protocol):
        assert (place["partial"], place["gallery_missing"], place["queries_dropped"]) == (True, 1, 2)
    assert "PARTIAL" in result_table(found.metrics, found.protocol)[0]
    whole = scored(fashion_iq(write_fashion_iq(tmp_path / "whole"), tmp_path))
    assert whole.protocol["partial"] is False and "partial" not in whole.metrics


def test_a_part_of_one_query_is_scored(cir, tmp_path, scored):
    dataset = cirr(write_cirr(tmp_path / "one", pictures=8, queries=1), tmp_path)
    assert scored(dataset).metrics["queries"] == 1


@pytest.mark.parametrize("protocol", ["auto", "fashioniq"])
def test_files_and_pictures_of_an_evaluation_are_written(cir, fiq, tmp_path, scored, protocol):
    dataset = cirr(cir, tmp_path) if protocol == "auto" else fashion_iq(fiq, tmp_path)
    evaluation = scored(dataset, protocol=protocol).evaluation
    write_predictions(tmp_path, evaluation.predictions, evaluation.tables)
    write_plots(tmp_path, [], evaluation.tables, evaluation.protocol, evaluation.metrics, 0, 4)
    lines = (tmp_path / "ranks.csv").read_text().splitlines()
    assert lines[0] == "id,group,reference,target,caption,rank,group_rank,gallery,first_10"
    assert len(lines) == 1 + len(dataset.part("valid"))
    for name in ("retrieved", "model_metrics"):
        assert (tmp_path / f"plots/{name}.png").read_bytes()[:4] == b"\x89PNG"
    told = result_table(evaluation.metrics, evaluation.protocol)
    assert any(line.startswith("average ") for line in told)
    assert all(math.isfinite(value) for value in evaluation.metrics.values())


def test_what_can_not_be_scored_is_refused(cir, fiq, tmp_path, scored):
    with pytest.raises(DataError, match="the test part keeps its targets secret"):
        scored(cirr(cir, tmp_path, split="test1"), part="test")
    with pytest.raises(ConfigError, match="ranks the valid or test queries"):
        scored(cirr(cir, tmp_path), part="train")
    with pytest.raises(ConfigError, match="evaluator.protocol=cirr has one gallery, fashion_iq has 2"):
        scored(fashion_iq(fiq, tmp_path), protocol="cirr")
    with pytest.raises(ConfigError, match="needs the groups of CIRR"):
        scored(fashion_iq(fiq, tmp_path, categories=["dress"]), protocol="cirr")
    with pytest.raises(ConfigError, match="evaluator.combine=mean"):
        ComposedEvaluator("auto", "mean", "pessimistic")
