"""Composed metrics against the figures of the specification, on the real annotations, and against plain loops."""

import pytest
import torch
from composed_vector import SHARED, gallery_features, text_features
from torch.nn.functional import normalize

from mmexpert.metrics.composed import (
    ComposedRanks,
    cirr_metrics,
    combined,
    fashioniq_metrics,
    group_ranks,
    plain_metrics,
    rank_targets,
    three_means,
)
from mmexpert.metrics.ranks import rank_scores
from mmexpert.types import ConfigError, DataError, NonFiniteError

WAYS = ("sum", "normalised_sum", "text", "image")
FASHION = {  # hits@10, hits@50 by way, in the order of WAYS
    ("dress", "split"): ((850, 1344), (688, 1236), (1305, 1721), (8, 29)),
    ("dress", "union"): ((959, 1444), (786, 1359), (1413, 1789), (9, 43)),
    ("shirt", "split"): ((746, 1175), (544, 1033), (1197, 1616), (3, 13)),
    ("shirt", "union"): ((912, 1372), (726, 1297), (1373, 1764), (8, 23)),
}
SIZES = {("dress", "split"): 3817, ("dress", "union"): 2628, ("shirt", "split"): 6346, ("shirt", "union"): 3089}
CIRR = ((900, 1728, 2112, 3076), (629, 1385, 1792, 2885), (1500, 2552, 2959, 3748), (3, 8, 16, 89))
CIRR_GROUP = ((3781, 4085, 4148), (3704, 4061, 4151), (4030, 4156, 4175), (832, 1653, 2493))
needs_annotations = pytest.mark.skipif(not (SHARED / "cirr").is_dir(), reason=f"the real annotations are not in {SHARED}")


def annotations_of(name: str, *arguments):
    """Read by the data floor; a metric test asks for names only."""
    if name == "cirr":
        from mmexpert.data.cirr import read_cirr

        return read_cirr(str(SHARED / "cirr"), "val")
    from mmexpert.data.fashion_iq import read_fashion_iq

    category, gallery = arguments
    return read_fashion_iq(str(SHARED / "fashioniq"), [category], "val", gallery)


def vector(found, category: str, way: str, exclude: bool) -> ComposedRanks:
    names = found.galleries[category]
    row = {name: i for i, name in enumerate(names)}
    gallery, text = gallery_features(names), text_features(found.queries)
    reference, target = (torch.tensor([row[getattr(q, role)] for q in found.queries]) for role in ("reference", "target"))
    query = combined(way, gallery[reference], text)
    groups = None
    if exclude:
        members = torch.tensor([[row[name] for name in q.members] for q in found.queries])
        groups = group_ranks(query, gallery, target, reference, members)
    return ComposedRanks(rank_targets(query, gallery, target, reference if exclude else None), len(names), groups)


@needs_annotations
@pytest.mark.parametrize("category, gallery", FASHION)
def test_fashioniq_hits_of_the_test_vector(category, gallery):
    found = annotations_of("fashion_iq", category, gallery)
    for way, hits in zip(WAYS, FASHION[category, gallery], strict=True):
        metrics = fashioniq_metrics({category: vector(found, category, way, False)})
        assert (metrics[f"{category}_hits@10"], metrics[f"{category}_hits@50"]) == hits, way
        assert metrics[f"{category}_gallery"] == SIZES[category, gallery]


@needs_annotations
def test_fashioniq_figures_of_the_sum_over_both_categories():
    ranks = {name: vector(annotations_of("fashion_iq", name, "split"), name, "sum", False) for name in ("dress", "shirt")}
    metrics = fashioniq_metrics(ranks)
    assert metrics["dress_R@10"] == pytest.approx(42.141795, abs=1e-6)
    assert metrics["average_R@10"] == pytest.approx(39.373154, abs=1e-6)
    assert metrics["average_R@50"] == pytest.approx(62.144089, abs=1e-6)
    assert metrics["average"] == pytest.approx((39.373154 + 62.144089) / 2, abs=1e-6)
    assert metrics["dress_mean_rank"] * 2017 == pytest.approx(220792)  # 109.465543; see the test of rank_scores below
    assert metrics["dress_median_rank"] == 17


@needs_annotations
@pytest.mark.parametrize("way", WAYS)
def test_cirr_hits_of_the_test_vector(way):
    metrics = cirr_metrics(vector(annotations_of("cirr"), "", way, True))
    assert tuple(metrics[f"hits@{k}"] for k in (1, 5, 10, 50)) == CIRR[WAYS.index(way)]
    assert tuple(metrics[f"Rs_hits@{k}"] for k in (1, 2, 3)) == CIRR_GROUP[WAYS.index(way)]
    assert (metrics["queries"], metrics["gallery"]) == (4181, 2297)
    if way == "sum":
        expected = {"arithmetic_mean": 67.755493, "harmonic_mean": 51.693948, "geometric_mean": 60.298445, "average": 65.881368}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert metrics["mean_rank"] * 4181 == pytest.approx(314310)  # 75.175795; see the test of rank_scores below
        assert metrics["median_rank"] == 10


@needs_annotations
@pytest.mark.parametrize("name, mean", [("dress", 109.466039), ("cirr", 75.176513)])
def test_mean_ranks_of_the_specification_are_those_of_ties_within_1e_6(name, mean):
    """Its figures lack the fp64 second look of its own rule, which tells 1 and 3 pairs apart that lie within 1e-6; no hit differs."""
    found = annotations_of("cirr") if name == "cirr" else annotations_of("fashion_iq", name, "split")
    names = found.galleries["" if name == "cirr" else name]
    row = {picture: i for i, picture in enumerate(names)}
    gallery = gallery_features(names)
    reference, target = (torch.tensor([row[getattr(q, role)] for q in found.queries]) for role in ("reference", "target"))
    query = normalize(gallery[reference] + text_features(found.queries), dim=1)
    exclude = reference[:, None] if name == "cirr" else None
    ranking = rank_scores(lambda rows: query[rows] @ normalize(gallery, dim=1).T, target, torch.arange(len(names)), exclude=exclude)
    assert float(ranking.rank.mean()) == pytest.approx(mean, abs=1e-6)


def small(seed: int):
    torch.manual_seed(seed)
    gallery, query = torch.randn(12, 5), torch.randn(7, 5)
    members = torch.stack([torch.randperm(12)[:6] for _ in range(7)])
    return query, gallery, members[:, 0], members[:, 3], members


@pytest.mark.parametrize("seed", range(5))
def test_group_ranks_are_those_of_plain_loops(seed):
    query, gallery, target, reference, members = small(seed)
    found = group_ranks(query, gallery, target, reference, members)
    for i in range(len(query)):
        cosine = {m: float(torch.cosine_similarity(query[i].double(), gallery[m].double(), dim=0)) for m in members[i].tolist()}
        rivals = [m for m in cosine if m not in (int(target[i]), int(reference[i]))]
        assert len(rivals) == 4
        assert found[i] == 1 + sum(cosine[m] >= cosine[int(target[i])] for m in rivals)


def test_equal_features_rank_the_target_last_in_gallery_and_group():
    _, _, target, reference, members = small(0)
    gallery = torch.ones(12, 5) * torch.arange(1, 13)[:, None]
    query = torch.ones(7, 5)
    assert group_ranks(query, gallery, target, reference, members).tolist() == [5.0] * 7
    assert group_ranks(query, gallery, target, reference, members, "optimistic").tolist() == [1.0] * 7
    ranked = ComposedRanks(rank_targets(query, gallery, target, reference), 12, torch.full((7,), 5.0))
    assert ranked.rank.tolist() == [11.0] * 7
    metrics = cirr_metrics(ranked)
    assert metrics["R@1"] == 0 and metrics["harmonic_mean"] == 0 and metrics["geometric_mean"] == 0


def test_constant_features_make_one_row_the_hub_of_all_queries():
    target = torch.arange(40)
    ranked = ComposedRanks(rank_targets(torch.ones(40, 3), torch.ones(50, 3), target, None), 50, None)
    metrics = plain_metrics(ranked, (1, 5))
    assert metrics["R@1"] == 0 and metrics["hub_share"] == 1


def test_the_reference_is_no_rival_only_where_it_is_left_out():
    gallery = torch.eye(4)
    query, target, reference = torch.tensor([[1.0, 0.5, 0, 0]]), torch.tensor([1]), torch.tensor([0])
    assert rank_targets(query, gallery, target, None).rank.tolist() == [2.0]
    assert rank_targets(query, gallery, target, reference).rank.tolist() == [1.0]


def test_a_target_that_is_its_own_reference_is_ranked_all_the_same():
    gallery, target, members = torch.eye(6), torch.tensor([2]), torch.arange(6)[None]
    assert rank_targets(gallery[2:3], gallery, target, target).rank.tolist() == [1.0]
    assert group_ranks(gallery[2:3], gallery, target, target, members).tolist() == [1.0]
    assert group_ranks(gallery[3:4], gallery, target, target, members).tolist() == [6.0]


def test_means_follow_their_formulas():
    assert three_means([20.0, 40.0, 60.0]) == pytest.approx(
        {"arithmetic_mean": 40.0, "harmonic_mean": 3 / (1 / 20 + 1 / 40 + 1 / 60), "geometric_mean": (20 * 40 * 60) ** (1 / 3)}
    )


def test_wrong_inputs_are_named():
    query, gallery, target, reference, members = small(0)
    with pytest.raises(DataError, match="its target is not among the members"):
        group_ranks(query, gallery, torch.full_like(target, 99), reference, members)
    with pytest.raises(NonFiniteError):
        rank_targets(query * torch.nan, gallery, target, None)
    with pytest.raises(ConfigError, match="evaluator.combine=mean"):
        combined("mean", query, query)
