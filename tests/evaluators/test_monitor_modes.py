"""Every name that an evaluator gives is monitored in its own direction: a table by hand beside what mode_of makes of the name."""

import re

import pytest
import torch
from evaluator_toys import ACCELERATOR, ToyLoaders, ToyModel, ToyRecord, classes_of, table, toy_objective

from mmexpert.engine.monitor_mode import mode_of
from mmexpert.evaluators.classification import ClassificationEvaluator
from mmexpert.evaluators.retrieval import RetrievalEvaluator
from mmexpert.metrics.composed import ComposedRanks, cirr_metrics, fashioniq_metrics, group_ranks, rank_targets

DIRECTION = r"((radar_to_text|text_to_radar|dress|shirt)_)?"
SCORE = r"((pooled|sequence|only_[a-z]+_time|gallery\d+|folds\d+)_)?"
LOWER = (
    r"loss_(clip(_floor|_excess)?|total|seq|class|token|radar_to_text|text_to_radar|query_to_target|target_to_query)",
    r"(group_)?(nll|brier|ece|ece_adaptive)",
    SCORE + DIRECTION + r"(mean|median)_rank",
    DIRECTION + r"(hub_share|hub_skew|unreached|hard_negative)",
    r"negative_similarity",
)
HIGHER = (
    r"(group_)?(acc|top2|balanced_acc|macro_f1|weighted_f1|map|macro_auroc|kappa|quadratic_kappa|mcc)",
    r"acc_(lo|hi)|(probe|nearest)_(balanced_)?acc|text_to_radar_p(5|10)",
    SCORE + DIRECTION + r"(R|Rs|hits|Rs_hits)@\d+",
    SCORE + r"RSum",
    SCORE + DIRECTION + r"MRR",
    r"((sequence|pooled)_)?hard_(side|speed)",
    r"positive_similarity|similarity_gap|(radar|text)_effective_rank",
    r"average(_R@\d+)?|(arithmetic|harmonic|geometric)_mean",
)
NEITHER = (r"(positive|negative)_std", SCORE + DIRECTION + r"(queries|gallery)", r"(group_)?n_classes_used")  # nobody monitors these


def similarity(query, target):
    return torch.nn.functional.normalize(query.features + 0.1, dim=1) @ torch.nn.functional.normalize(target.features, dim=1).T


def of_retrieval():
    records = [ToyRecord(f"r{i:03d}", f"g{i // 2}") for i in range(24)]
    hard = {i: [(0, table(50 + i, 3)), (1, table(80 + i, 3))] for i in (2, 5, 11)}
    tables = {"range_time": table(0, 24, 3), "doppler_time": table(1, 24, 3), "text": table(2, 24, 3)}
    judge = RetrievalEvaluator([1, 5], "pessimistic", "auto", 8, 12, True, False)
    return judge(toy_objective(ToyModel(), similarity), ToyLoaders(records, tables, hard=hard), ACCELERATOR, "test").metrics


def of_classes():
    records = [ToyRecord(f"r{i:03d}", f"g{i // 2}", i // 2 % 3) for i in range(24)]
    loaders = ToyLoaders(records, {"range_time": table(0, 24, 3), "text": table(2, 24, 3)}, classes=classes_of("abc"), train=range(6))
    judge = ClassificationEvaluator(["test"], [], "as_trained", "auto", 0)
    return judge(toy_objective(ToyModel(table(7, 3, 3), head=True), classes=True), loaders, ACCELERATOR, "test").metrics


def of_composed():
    gallery, query = table(0, 30, 4), table(1, 8, 4)
    target, reference = torch.arange(8), torch.arange(8, 16)
    members = torch.cat([target[:, None], reference[:, None], torch.arange(16, 20).expand(8, 4)], 1)
    groups = group_ranks(query, gallery, target, reference, members)
    ranked = ComposedRanks(rank_targets(query, gallery, target, reference), 30, groups)
    return fashioniq_metrics({"dress": ranked, "shirt": ranked}) | cirr_metrics(ranked)


@pytest.mark.parametrize("evaluated", [of_retrieval, of_classes, of_composed])
def test_every_metric_of_an_evaluator_is_better_in_the_direction_of_the_table(evaluated):
    found = {"min": 0, "max": 0}
    for name in evaluated():
        modes = [
            mode for mode, patterns in (("min", LOWER), ("max", HIGHER), (None, NEITHER)) if any(re.fullmatch(p, name) for p in patterns)
        ]
        assert len(modes) == 1, f"{name} is not in the table once: {modes}"
        if modes[0] is not None:
            assert mode_of(name) == mode_of(f"valid/{name}") == modes[0], name
            found[modes[0]] += 1
    assert min(found.values()) >= 4, found


def test_a_groups_figure_has_the_direction_of_the_figure():
    for name in ("nll", "brier", "ece", "ece_adaptive"):
        assert mode_of(f"test/group_{name}") == "min", name
    for name in ("acc", "map", "kappa"):
        assert mode_of(f"group_{name}") == "max", name
