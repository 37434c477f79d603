"""The classification evaluator: where probabilities come from, votes, probe, prior, rows of files."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluator_toys import ACCELERATOR, ToyLoaders, ToyModel, ToyRecord, classes_of, plain_records, table, toy_objective
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.preprocessing import StandardScaler

from mmexpert.engine.objective import Objective
from mmexpert.evaluators.classification import ClassificationEvaluator
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.models.heads import BothHead, LinearHead, TextHead
from mmexpert.types import ClassTable, ConfigError, NonFiniteError

NAMES = ["walk", "jump", "box"]


def loaders(query, labels, groups=None, train=(), **given):
    groups = groups or [f"g{i:02d}" for i in range(len(labels))]
    records = [ToyRecord(f"r{i:02d}", group, label) for i, (group, label) in enumerate(zip(groups, labels, strict=True))]
    keys = list(labels)
    return ToyLoaders(
        records, {"range_time": query, "text": table(9, len(labels), 3)}, keys, classes=classes_of(NAMES), train=train, **given
    )


def evaluated(query, labels, head=True, probe=(), prior="as_trained", prompts=None, rank_by="auto", **given):
    prompts = torch.eye(3) if prompts is None else prompts
    objective = toy_objective(ToyModel(prompts, head), classes=head)
    return ClassificationEvaluator(list(probe), [], prior, rank_by, 0)(objective, loaders(query, labels, **given), ACCELERATOR, "test")


def clear(labels, wrong=()):
    """Features at the class's own axis, of the next class where wrong."""
    return torch.stack([torch.eye(3)[(label + (i in wrong)) % 3] + 0.1 for i, label in enumerate(labels)])


def test_accuracy_recall_and_confusion_are_counted_over_every_row():
    labels = [0] * 6 + [1] * 3 + [2] * 3
    got = evaluated(clear(labels, wrong=(0, 7)), labels)
    assert got.metrics["acc"] == pytest.approx(10 / 12) and got.metrics["balanced_acc"] == pytest.approx((5 / 6 + 2 / 3 + 1) / 3)
    assert got.tables["confusion"] == [
        {"truth": "walk", "walk": 5, "jump": 1, "box": 0},
        {"truth": "jump", "walk": 0, "jump": 2, "box": 1},
        {"truth": "box", "walk": 0, "jump": 0, "box": 3},
    ]
    assert got.protocol["chance"]["acc"] == 0.5 and got.protocol["rows"] == 12 and got.protocol["by"] == "text prompts"


def test_rows_of_the_predictions_hold_names_and_probabilities_that_add_to_one():
    labels = [0, 1, 2, 0]
    rows = evaluated(clear(labels, wrong=(3,)), labels).predictions
    assert [row["id"] for row in rows] == ["r00", "r01", "r02", "r03"]
    assert rows[3]["label"] == "walk" and rows[3]["predicted"] == "jump" and rows[3]["group"] == "g03"
    assert all(sum(row[f"p_{name}"] for name in NAMES) == pytest.approx(1) for row in rows)


def test_head_and_texts_alone_predict_alike_and_say_which_they_are_and_that_texts_are_not_calibrated():
    labels = [0, 1, 2, 0]
    by_head, by_text = (evaluated(clear(labels, wrong=(3,)), labels, head=head) for head in (True, False))
    assert by_head.metrics["acc"] == by_text.metrics["acc"] == 0.75
    assert by_text.protocol["by"] == "text prompts" and by_text.protocol["uncalibrated"] and not by_head.protocol["uncalibrated"]
    query = torch.nn.functional.normalize(clear(labels), dim=1)
    expected = torch.softmax(query[0].double() / 0.07, 0)
    assert evaluated(clear(labels), labels, head=False).predictions[0]["p_walk"] == pytest.approx(float(expected[0]), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_class_term_of_weight_nought_is_none_for_heads_and_for_what_is_said_of_probabilities(weight):
    model, labels = ToyModel(torch.eye(3), True), [0, 1, 2, 0]
    objective = Objective(model, SuperClipLoss(0.07, True, "out", "both", 1.0, weight, 0.0, 0.0), None, None, 0.0, 0).eval()
    told = ClassificationEvaluator([], [], "as_trained", "auto", 0)(objective, loaders(clear(labels), labels), ACCELERATOR, "test").protocol
    assert told["uncalibrated"] is (weight == 0)
    classes = ClassTable(tuple(NAMES), ((), (), ()), (1, 1, 1))
    for head in (LinearHead(3, 0.0, classes), BothHead(3, 0.07, 0.0, classes)):
        model.head = head
        loss = SuperClipLoss(0.07, True, "out", "both", 1.0, weight, 0.0, 0.0)
        if weight:
            assert Objective(model, loss, None, None, 0.0, 0).model.head is head
            continue
        with pytest.raises(ConfigError, match="learns from a class term alone: choose loss=superclip with loss.class_loss_weight above 0"):
            Objective(model, loss, None, None, 0.0, 0)
    if not weight:
        model.head = TextHead(0.07, 0.0, classes)
        assert not Objective(model, loss, None, None, 0.0, 0).model.head.logit_scale.requires_grad


@pytest.mark.parametrize("ordered", [False, True])
def test_classes_in_an_order_have_a_quadratic_kappa_and_others_have_none(ordered):
    labels = [0, 0, 1, 1, 2, 2, 2, 0]
    groups = [f"g{i // 2}" for i in range(6)] + ["g7", "g8"]
    mine = loaders(clear(labels, wrong=(0, 2, 5)), labels, groups)
    mine.dataset.classes = replace(mine.dataset.classes, ordered=ordered)
    judge = ClassificationEvaluator([], [], "as_trained", "auto", 0)
    got = judge(toy_objective(ToyModel(torch.eye(3), True), classes=True), mine, ACCELERATOR, "test")
    assert ("quadratic_kappa" in got.metrics) is ("group_quadratic_kappa" in got.metrics) is ordered
    if ordered:
        predicted = [NAMES.index(row["predicted"]) for row in got.predictions]
        assert got.metrics["quadratic_kappa"] == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
        assert got.protocol["chance"]["quadratic_kappa"] == got.protocol["chance"]["group_quadratic_kappa"] == 0


def test_a_session_votes_by_mean_probability():
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    got = evaluated(clear(labels, wrong=(0, 3)), labels, groups=groups).metrics
    assert got["acc"] == pytest.approx(7 / 9) and got["group_acc"] == 1.0 and got["group_balanced_acc"] == 1.0


def test_chance_of_votes_is_that_of_the_groups_not_of_the_rows():
    labels, groups = [0, 0, 0, 0, 1, 2], ["a"] * 4 + ["b", "c"]
    chance = evaluated(clear(labels), labels, groups=groups).protocol["chance"]
    assert chance["acc"] == pytest.approx(4 / 6) and chance["group_acc"] == pytest.approx(1 / 3)
    assert chance["group_balanced_acc"] == pytest.approx(1 / 3) and chance["group_kappa"] == 0 and chance["group_map"] > 1 / 3


def test_a_session_of_two_labels_is_left_out_counted_and_warned_of_once(caplog):
    labels = [0, 1, 2, 2]
    judge = ClassificationEvaluator([], [], "as_trained", "auto", 0)
    objective = toy_objective(ToyModel(torch.eye(3), True), classes=True)
    with caplog.at_level(logging.WARNING, logger="mmexpert"):
        for _ in range(2):
            got = judge(objective, loaders(clear(labels), labels, groups=["a", "a", "b", "b"]), ACCELERATOR, "test")
    assert got.protocol["groups_with_two_labels"] == 1 and got.metrics["group_n_classes_used"] == 1
    assert caplog.text.count("1 groups hold two labels") == 1


def test_the_interval_of_accuracy_is_drawn_over_groups_and_absent_where_nothing_can_be_drawn():
    labels = [i % 3 for i in range(60)]
    wrong = tuple(range(0, 60, 4))
    got = evaluated(clear(labels, wrong), labels).metrics
    assert got["acc_lo"] < got["acc"] < got["acc_hi"] and got["acc_hi"] - got["acc_lo"] > 0.1
    one_group_a_class = evaluated(clear(labels, wrong), labels, groups=[f"g{label}" for label in labels]).metrics
    assert "acc_lo" not in one_group_a_class and "acc_hi" not in one_group_a_class


def test_the_probe_is_scikit_learns_on_standardised_features_of_the_training_part():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator).tolist()
    query = torch.randn(60, 3, generator=generator) * torch.tensor([1.0, 10, 100]) + torch.nn.functional.one_hot(torch.tensor(labels)) * 5
    train = range(40)
    got = evaluated(query, labels, probe=("test",), train=train).metrics
    scaler = StandardScaler().fit(query[:40])
    expected = LogisticRegression(max_iter=2000).fit(scaler.transform(query[:40]), labels[:40]).predict(scaler.transform(query[40:]))
    truth = np.array(labels[40:])
    assert got["probe_acc"] == pytest.approx((expected == truth).mean())
    assert got["probe_balanced_acc"] == pytest.approx(np.mean([(expected[truth == k] == k).mean() for k in np.unique(truth)]))
    assert "probe_acc" not in evaluated(query, labels, probe=("valid",), train=train).metrics


def test_the_prior_of_the_training_part_shifts_probabilities_of_a_balanced_model():
    labels = [0] * 9 + [1, 2] + [0, 1, 2]
    query = clear(labels)
    plain, shifted = (evaluated(query, labels, prior=prior, train=range(11)) for prior in ("as_trained", "train"))
    odds = [row["p_walk"] / row["p_jump"] for row in (plain.predictions[1], shifted.predictions[1])]
    assert odds[1] / odds[0] == pytest.approx(9) and shifted.protocol["prior"] == "train"


def test_precision_of_class_texts_is_named_by_the_roles():
    labels = [i % 3 for i in range(30)]
    got = evaluated(clear(labels), labels).metrics
    assert got["text_to_radar_p5"] == got["text_to_radar_p10"] == 1.0


def test_losses_of_the_part_stand_beside_the_metrics():
    labels = [0, 1, 2, 0]
    got = evaluated(clear(labels), labels).metrics
    assert {"loss_clip", "loss_class", "loss_total", "loss_radar_to_text"} <= got.keys()


def test_what_cannot_be_said_is_absent_and_never_zero():
    got = evaluated(clear([1, 1, 1]), [1, 1, 1]).metrics
    assert "macro_auroc" not in got and "kappa" not in got and got["acc"] == 1.0


def test_scores_that_are_not_finite_name_the_samples():
    query = clear([0, 1, 2])
    query[1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 rows have class scores that are not finite, the first: r01"):
        evaluated(query, [0, 1, 2])


def test_a_set_without_classes_and_a_model_without_scores_are_told_what_to_choose():
    judge = ClassificationEvaluator([], [], "as_trained", "auto", 0)
    plain = ToyLoaders(plain_records(4), {"range_time": torch.eye(4), "text": torch.eye(4)})
    with pytest.raises(ConfigError, match="toy has no classes; choose evaluator=retrieval"):
        judge(toy_objective(ToyModel()), plain, ACCELERATOR, "test")
    with pytest.raises(ConfigError, match="choose model/head=text"):
        judge(toy_objective(ToyModel()), loaders(clear([0, 1, 2]), [0, 1, 2]), ACCELERATOR, "test")
    with pytest.raises(ConfigError, match="evaluator.prior=flat: choose as_trained or train"):
        ClassificationEvaluator([], [], "flat", "auto", 0)
    with pytest.raises(ConfigError, match="evaluator.nearest_neighbour: there is no part 'tests'"):
        ClassificationEvaluator([], ["tests"], "as_trained", "auto", 0)
