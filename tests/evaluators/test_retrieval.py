"""The retrieval evaluator on tables of features: names, keys, galleries, hard captions, rows of files."""

import logging

import pytest
import torch
from evaluator_toys import ACCELERATOR, ToyLoaders, ToyModel, ToyRecord, plain_records, table, toy_objective

from mmexpert.evaluators.retrieval import RetrievalEvaluator
from mmexpert.metrics.retrieval import chance_recall
from mmexpert.types import ConfigError, DataError, NonFiniteError


def evaluator(**given):
    usual = {"k": [1, 5, 10], "ties": "pessimistic", "rank_by": "auto", "small_gallery": None, "folds_of": None}
    return RetrievalEvaluator(**(usual | {"ablate_views": False, "allow_unanswerable": False} | given))


def loaders(query, text, **given):
    return ToyLoaders(given.pop("records", plain_records(len(query))), {"range_time": query, "text": text}, **given)


def evaluated(query, text, similarity=None, kept=None, **given):
    mine = loaders(query, text, **(kept or {}))
    return evaluator(**given)(toy_objective(ToyModel(), similarity), mine, ACCELERATOR, "test")


def test_directions_are_named_by_the_models_roles_and_chance_stands_beside_each():
    got = evaluated(torch.eye(30), torch.eye(30))
    for direction in ("radar_to_text", "text_to_radar"):
        assert got.metrics[f"{direction}_R@1"] == 100.0 and got.metrics[f"{direction}_gallery"] == 30
        assert got.protocol["chance"][f"{direction}_R@5"] == pytest.approx(100 * 5 / 30)
    assert got.metrics["RSum"] == 600 and {"similarity_gap", "radar_effective_rank", "loss_clip", "loss_total"} <= got.metrics.keys()
    assert got.protocol["directions"] == ["radar_to_text", "text_to_radar"] and got.protocol["rank_by"] == "pooled"
    assert got.protocol["ties"] == "pessimistic" and got.protocol["queries"] == got.protocol["gallery"] == 30


def test_a_collapsed_model_ranks_last():
    got = evaluated(torch.ones(30, 4), torch.ones(30, 4))
    assert got.metrics["RSum"] == 0 and got.metrics["text_to_radar_median_rank"] == 30


def test_a_repeated_caption_is_no_miss_and_the_gallery_keeps_every_row():
    features = torch.eye(12)
    text = features.clone()
    text[3] = text[2]  # the same caption twice
    apart = evaluated(features, text)
    together = evaluated(features, text, kept={"keys": [i if i != 3 else 2 for i in range(12)]})
    assert apart.metrics["radar_to_text_hits@1"] == 10 and together.metrics["radar_to_text_hits@1"] == 12 - 1
    assert together.metrics["radar_to_text_gallery"] == 12
    assert together.protocol["chance"]["radar_to_text_R@1"] == pytest.approx(100 * (10 / 12 + 2 * 2 / 12) / 12)


def captioned():
    """10 items with three captions each, in shuffled order of ids; caption 2 of each is off."""
    records = [ToyRecord(f"c{k}-{i:02d}", "g", item=f"i{i:02d}") for k in range(3) for i in range(10)]
    items = torch.eye(10)
    text = torch.cat([items + 0.1, items + 0.2, 0.3 * items + 0.5 * items.roll(1, 0) + 0.1])
    return items.repeat(3, 1), text, {"records": records, "keys": list(range(10)) * 3}


def test_an_item_with_several_captions_is_one_query_and_its_best_caption_counts():
    query, text, kept = captioned()
    got = evaluated(query, text, kept=kept)
    assert got.metrics["radar_to_text_queries"] == 10 and got.metrics["radar_to_text_gallery"] == 30
    assert got.metrics["text_to_radar_queries"] == 30 and got.metrics["text_to_radar_gallery"] == 10
    assert got.metrics["radar_to_text_hits@1"] == 10 and got.metrics["text_to_radar_hits@1"] == 20
    assert got.protocol["captions"] == {"min": 3, "max": 3}


def test_ranks_by_a_similarity_treat_items_alike():
    query, text, kept = captioned()
    cosine = lambda a, b: torch.nn.functional.normalize(a.features, dim=1) @ torch.nn.functional.normalize(b.features, dim=1).T  # noqa: E731
    pooled = evaluated(query, text, kept=kept).metrics
    got = evaluated(query, text, similarity=cosine, kept=kept)
    assert got.protocol["rank_by"] == "fused"
    for name, value in pooled.items():
        if "_hits@" in name or name == "RSum" or name.endswith(("queries", "gallery")):
            assert got.metrics[name] == value, name
    assert got.metrics["sequence_RSum"] == got.metrics["pooled_RSum"] == pooled["RSum"]


@pytest.mark.parametrize("rank_by, plain", [("auto", "fused"), ("pooled", "pooled"), ("sequence", "sequence"), ("fused", "fused")])
def test_every_score_that_exists_is_reported_and_the_chosen_one_has_the_plain_names(rank_by, plain):
    generator = torch.Generator().manual_seed(0)
    query, text, odd = (torch.randn(25, 6, generator=generator) for _ in range(3))
    similarity = lambda a, b: torch.tanh(a.features @ odd[: b.features.shape[0]].T)  # noqa: E731
    everything = {
        name: evaluated(query, text, similarity, rank_by=name).metrics["radar_to_text_R@5"] for name in ("pooled", "sequence", "fused")
    }
    got = evaluated(query, text, similarity, rank_by=rank_by)
    assert got.metrics["radar_to_text_R@5"] == everything[plain] and len(set(everything.values())) > 1
    for name, value in everything.items():
        assert name == plain or got.metrics[f"{name}_radar_to_text_R@5"] == value


def test_a_small_gallery_is_labelled_easier_and_never_in_place_of_the_full_one():
    query = table(0, 40, 4)
    text = query + table(1, 40, 4)
    got = evaluated(query, text, small_gallery=8).metrics
    assert got["gallery8_radar_to_text_R@1"] > got["radar_to_text_R@1"]
    assert got["radar_to_text_gallery"] == 40 and "gallery8_RSum" in got and "gallery8_similarity_gap" not in got
    assert not any(name.startswith("gallery8_") for name in evaluated(query[:6], text[:6], small_gallery=8).metrics)


def test_folds_are_cut_in_id_order_and_averaged_and_a_remainder_is_an_error():
    query = torch.eye(4).repeat(2, 1)  # rows 0..3 again as 4..7: every second fold is easy alone, the whole is not
    got = evaluated(query, query, folds_of=4).metrics
    assert got["folds4_radar_to_text_R@1"] == 100 and got["folds4_radar_to_text_hits@1"] == 4 and got["radar_to_text_R@1"] == 0
    with pytest.raises(ConfigError, match="evaluator.folds_of=3: the part has 8 items, not a multiple"):
        evaluated(query, query, folds_of=3)


def test_folds_of_the_specifications_vector_add_to_its_hits():
    """retrieval.md section 5: folds of 40 images, hits added: 105, 182, 194 and 330, 688, 858."""
    import hashlib

    import numpy as np

    def noise(name):
        return np.frombuffer(hashlib.shake_256(name.encode()).digest(192), dtype="<u4") / 2**31 - 1.0

    names = [f"img{i:04d}" for i in range(200)]
    pairs = [(name, f"{name}#{k}") for name in names for k in range(5)]
    query = torch.from_numpy(np.stack([noise(f"image:{name}") for name, _ in pairs])).float()
    text = torch.from_numpy(np.stack([0.25 * noise(f"image:{name}") + noise(f"text:{caption}") for name, caption in pairs])).float()
    records = [ToyRecord(caption, "g", item=name) for name, caption in pairs]
    kept = {"records": records, "keys": [i // 5 for i in range(1000)], "batch": 250}
    got = evaluated(query, text, kept=kept, folds_of=40).metrics
    for direction, hits in (("radar_to_text", (105, 182, 194)), ("text_to_radar", (330, 688, 858))):
        assert [round(5 * got[f"folds40_{direction}_hits@{k}"]) for k in (1, 5, 10)] == list(hits)
    assert [got[f"radar_to_text_hits@{k}"] for k in (1, 5, 10)] == [51, 131, 156]


def test_each_view_alone_is_scored_beside_all():
    query = torch.eye(12)
    mine = ToyLoaders(plain_records(12), {"range_time": query, "doppler_time": torch.ones(12, 12), "text": query})
    got = evaluator(ablate_views=True)(toy_objective(ToyModel()), mine, ACCELERATOR, "test").metrics
    assert got["only_range_time_radar_to_text_R@1"] == 100 and got["only_doppler_time_radar_to_text_R@1"] == 0
    assert got["radar_to_text_R@1"] == 100
    assert not any(
        name.startswith("only_") for name in evaluated(query, query, ablate_views=True).metrics
    )  # one view: nothing to leave out


def test_hard_captions_count_where_the_own_one_scores_above_and_a_tie_is_a_miss():
    query = torch.eye(8)
    worse, equal, better = 0.5 * query[0] + query[1], query[1], 0.9 * query[2] + 0.1
    hard = {0: [(0, worse), (1, worse)], 1: [(0, equal)], 2: [(0, better)]}
    text = query.clone()
    text[2] = query[2] + query[3]
    got = evaluated(query, text, kept={"hard": hard}).metrics
    assert got["hard_side"] == pytest.approx(100 / 3) and got["hard_speed"] == 100


def test_rows_of_the_predictions_hold_ids_groups_and_both_ranks():
    query, text, kept = captioned()
    rows = evaluated(query, text, kept=kept).predictions
    assert len(rows) == 30 and {row["gallery"] for row in rows} == {30}
    by_id = {row["id"]: row for row in rows}
    assert by_id["c0-04"]["rank_radar_to_text"] == 1 and by_id["c1-04"]["rank_radar_to_text"] is None
    assert by_id["c1-04"]["rank_text_to_radar"] == 1 and by_id["c2-04"]["rank_text_to_radar"] > 1


def keyed_apart():
    """Six captions of five items, where the first row of item 0 has the key of none: its second caption stands under another one."""
    records = [ToyRecord(f"c{i}", "g", item="i0" if i < 2 else f"i{i}") for i in range(6)]
    features = torch.eye(6)
    features[1] = features[0]
    return features, torch.eye(6), {"records": records, "keys": [0, 90, 2, 3, 4, 5]}


def test_a_query_without_an_answer_is_an_error_unless_dropped_and_counted_and_other_rows_keep_their_ranks():
    query, text, kept = keyed_apart()
    with pytest.raises(DataError, match="allow_unanswerable=true drops and counts"):
        evaluated(query, text, kept=kept)
    got = evaluated(query, text, kept=kept, allow_unanswerable=True)
    assert got.protocol["unanswerable"] == {"radar_to_text": 0, "text_to_radar": 1} and got.metrics["text_to_radar_queries"] == 5
    by_id = {row["id"]: row for row in got.predictions}
    assert by_id["c1"]["rank_text_to_radar"] is None and by_id["c1"]["rank_radar_to_text"] is None
    assert [by_id[f"c{i}"]["rank_text_to_radar"] for i in (0, 2, 3, 4, 5)] == [1] * 5
    assert [by_id[f"c{i}"]["rank_radar_to_text"] for i in (0, 2, 3, 4, 5)] == [1] * 5


def test_tables_for_the_plots_count_every_pair_query_and_row():
    query, text, kept = captioned()
    tables = evaluated(query, text, kept=kept).tables
    histogram = tables["similarity_histogram"]
    assert sum(histogram["positive"]) == 30 and sum(histogram["negative"]) == 270
    assert {name: len(ranks) for name, ranks in tables["ranks"].items()} == {"radar_to_text": 10, "text_to_radar": 30}
    assert {name: (len(n), sum(n)) for name, n in tables["n10"].items()} == {"radar_to_text": (30, 100), "text_to_radar": (10, 300)}


def test_a_gallery_no_larger_than_k_is_warned_of_once(caplog):
    mine, judge = loaders(torch.eye(8), torch.eye(8)), evaluator()
    with caplog.at_level(logging.WARNING, logger="mmexpert"):
        for _ in range(2):
            judge(toy_objective(ToyModel()), mine, ACCELERATOR, "test")
    assert caplog.text.count("a gallery of 8 rows makes R@10 100 whatever the model does") == 1


@pytest.mark.parametrize(
    "given, message",
    [
        ({"rank_by": "best"}, "evaluator.rank_by=best: choose auto"),
        ({"ties": "lucky"}, "evaluator.ties=lucky: choose pessimistic"),
        ({"k": []}, "one or more limits"),
        ({"k": [0, 1]}, "at least 1"),
        ({"small_gallery": 1}, "evaluator.small_gallery=1: 2 or more"),
    ],
)
def test_settings_out_of_range_are_config_errors(given, message):
    with pytest.raises(ConfigError, match=message):
        evaluator(**given)


@pytest.mark.parametrize("rank_by", ["sequence", "fused"])
def test_ranking_by_a_similarity_that_is_not_there_is_an_error(rank_by):
    with pytest.raises(ConfigError, match=f"evaluator.rank_by={rank_by} needs a similarity"):
        evaluated(torch.eye(4), torch.eye(4), rank_by=rank_by)


def test_a_trained_models_recall_is_far_above_chance_and_shuffled_captions_are_at_it():
    query = table(0, 200, 16)
    keys = torch.arange(200)
    near = evaluated(query, query + 0.3 * table(1, 200, 16)).metrics["radar_to_text_R@10"]
    shuffled = evaluated(query, query[torch.randperm(200, generator=torch.Generator().manual_seed(3))]).metrics["radar_to_text_R@10"]
    chance = chance_recall(keys, keys, 10)
    assert near > 95 and abs(shuffled - chance) < 3 * 100 * (0.05 * 0.95 / 200) ** 0.5


def test_non_finite_features_name_the_role():
    from mmexpert.types import NonFiniteError

    query = torch.eye(6)
    query[2, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="1 radar features"):
        evaluated(query, torch.eye(6))


def test_a_lost_sample_is_an_error_and_not_a_smaller_gallery():
    mine = loaders(torch.eye(6), torch.eye(6))
    mine.lost = 3
    with pytest.raises(DataError, match="not evaluated"):
        evaluator()(toy_objective(ToyModel()), mine, ACCELERATOR, "test")


@pytest.mark.parametrize("fault", [float("nan"), 0.0])
def test_a_feature_that_is_zero_or_not_finite_is_an_error_naming_role_and_id(fault):
    text, records = torch.eye(12), plain_records(12)
    text[7] = fault
    with pytest.raises(NonFiniteError, match=f"1 text features are zero or not finite, the first of {records[7].id}$"):
        evaluated(torch.eye(12), text)
