"""Rows that no fold has trained on, scored once by the mean probability of the fold models."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from mmexpert.engine.external import FILE, external_summary, figures
from mmexpert.engine.files import csv_text
from mmexpert.engine.oof import text_rows

NAMES = ("mild", "worn", "loose")


def rows(seed, count=24):
    draws = np.random.default_rng(seed)
    for k in range(count):
        label = k // 2 % 3
        p = draws.dirichlet(np.ones(3) + np.eye(3)[label])
        yield {
            "id": f"r{k:02d}", "group": f"g{k // 2}", "label": NAMES[label], "predicted": NAMES[int(p.argmax())],
            **{f"p_{name}": float(value) for name, value in zip(NAMES, p, strict=True)},
        }  # fmt: skip


def kappa(found):
    truth, predicted = ([NAMES.index(row[column]) for row in found] for column in ("label", "predicted"))
    return cohen_kappa_score(truth, predicted, weights="quadratic")


@pytest.mark.parametrize("ordered", [False, True])
def test_classes_in_an_order_have_a_quadratic_kappa_of_rows_and_of_groups(ordered):
    mine = text_rows(list(rows(0)))
    found = figures(mine, NAMES, ordered)
    assert ("quadratic_kappa" in found["metrics"]) is ("quadratic_kappa" in found["group_metrics"]) is ordered
    assert ("quadratic_kappa" in found["chance"]) is ("group_quadratic_kappa" in found["chance"]) is ordered
    assert found["chance"]["acc"] == found["chance"]["group_acc"] == pytest.approx(1 / 3)
    if ordered:
        assert found["metrics"]["quadratic_kappa"] == pytest.approx(kappa(mine))


@pytest.mark.parametrize("ordered", [False, True])
def test_the_summary_of_folds_scores_the_own_test_part_as_the_folds_did(tmp_path, ordered):
    for number in (1, 2):
        (tmp_path / f"fold_{number}").mkdir()
        (tmp_path / f"fold_{number}" / FILE).write_text(csv_text(list(rows(number))))
    metrics = [{"external/acc": 0.5} | ({"external/quadratic_kappa": 0.4} if ordered else {})] * 2
    found = external_summary(tmp_path, {"external": [f"r{k:02d}" for k in range(24)]}, metrics, (1, 2), NAMES)
    assert found["models"] == 2 and ("quadratic_kappa" in found["metrics"]) is ordered
