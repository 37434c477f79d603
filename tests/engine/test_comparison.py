"""Two runs are compared on the same folds only, by the published formulas, and are never called equal."""

import json
import math

import numpy as np
import pytest
from fold_settings import group_settings
from scipy.stats import t

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine.comparison import compare_runs, comparison_table
from mmexpert.engine.files import csv_text
from mmexpert.engine.folds_file import settle_folds
from mmexpert.engine.status import Status, write_status
from mmexpert.types import ClassTable, ConfigError, RunFolderError

NAMES = ("down", "up")


def dataset(groups=20, rows=2):
    classes = ClassTable(NAMES, (("down",), ("up",)), (0, 0))
    records = [Record(f"g{g:02d}/{k}", "train", f"g{g:02d}", ("a",), g % 2) for g in range(groups) for k in range(rows)]
    return RecordDataset("fake", records, "instance", classes)


def finished(folder, wrong=(), seed=0, rows=2, selection="last", classes=True, shuffled=False):
    """A run of five finished folds in which all rows but those of the groups in wrong are predicted rightly."""
    folder.mkdir()
    data = dataset(rows=rows)
    settings = group_settings(seed=seed, selection=selection)
    content = {"config": {"cv": {"selection": selection, "headline": None}, "trainer": {"monitor": "valid/acc"}}}
    (folder / "config.json").write_text(json.dumps(content))
    label_of = {record.id: record.label for record in data.records}
    for fold in settle_folds(folder, data, settings):
        path = folder / f"fold_{fold.number}"
        path.mkdir()
        write_status(path, Status("done", "c0ffee", "da7a", epoch=3, best_epoch=2))
        predictions, hits = [], []
        for sample in fold.test[::-1] if shuffled else fold.test:
            group, label = sample.split("/")[0], label_of[sample]
            guess = 1 - label if group in wrong else label
            hits.append(guess == label)
            predictions.append({"id": sample, "group": group, "label": NAMES[label], "predicted": NAMES[guess]})
            predictions[-1] |= {"p_down": 0.9 - 0.8 * guess, "p_up": 0.1 + 0.8 * guess} if classes else {}
        (path / "predictions.csv").write_text(csv_text(predictions))
        metrics = {"test/acc": float(np.mean(hits)), "test/nll": 1 - float(np.mean(hits)), "test/group_acc": float(np.mean(hits))}
        (path / "metrics.json").write_text(json.dumps(metrics))
    return folder


def fold_of(folder, group):
    info = json.loads((folder / "folds_info.json").read_text())
    return next(fold["fold"] for fold in info["folds"] if f"{group}/0" in fold["test"])


def test_identical_runs_have_difference_0_p_1_and_no_difference_shown(tmp_path):
    folders = [finished(tmp_path / "a", wrong=("g03",)), finished(tmp_path / "b", wrong=("g03",), shuffled=True)]
    row = compare_runs(folders, "acc", 0)["comparisons"][0]
    assert row["mean_difference"] == 0 and row["p"] == row["p_holm"] == {"corrected": 1, "bootstrap": 1, "mcnemar": 1}
    assert row["ci95_bootstrap"] == [0, 0] and row["folds_won"] == {"run": 0, "baseline": 0, "tied": 5}
    table = comparison_table(compare_runs(folders, "acc", 0))
    assert "no difference shown" in row["verdict"] and "equal" not in table


def test_a_difference_has_the_corrected_interval_and_p_of_the_formula_and_the_rows_of_mcnemar(tmp_path):
    wrong = ("g00", "g03", "g05", "g06", "g11")
    a, b = finished(tmp_path / "a", wrong=wrong, rows=1), finished(tmp_path / "b", wrong=("g01",), rows=1)
    comparison = compare_runs([a, b], "acc", 0)
    row = comparison["comparisons"][0]
    differences = np.zeros(5)
    for group in wrong:
        differences[fold_of(a, group) - 1] += 0.25
    differences[fold_of(a, "g01") - 1] -= 0.25
    assert row["differences"] == pytest.approx(differences)
    scale = differences.std(ddof=1) * math.sqrt(1 / 5 + 4 / 16)
    half = t.ppf(0.975, 4) * scale
    assert row["ci95_corrected"] == pytest.approx((0.2 - half, 0.2 + half))
    assert row["p"]["corrected"] == pytest.approx(2 * t.sf(0.2 / scale, 4))
    assert row["mcnemar"] == {"only_baseline": 1, "only_run": 5, "units": "rows", "p": pytest.approx(2 * 7 / 64)}
    low, high = row["ci95_bootstrap"]
    assert low < 0.2 < high
    wins = [int((differences > 0).sum()), int((differences < 0).sum())]
    assert [row["folds_won"]["run"], row["folds_won"]["baseline"]] == wins


def test_mcnemar_counts_groups_where_a_group_has_several_rows(tmp_path):
    a, b = finished(tmp_path / "a", wrong=("g00", "g01", "g02"), rows=3), finished(tmp_path / "b", rows=3)
    test = compare_runs([a, b], "acc", 0)["comparisons"][0]["mcnemar"]
    assert (test["only_baseline"], test["only_run"], test["units"]) == (0, 3, "groups")


def test_folds_are_won_by_the_lower_value_where_less_is_better(tmp_path):
    a, b = finished(tmp_path / "a", wrong=("g00",)), finished(tmp_path / "b")
    for metric in ("acc", "nll"):
        assert compare_runs([a, b], metric, 0)["comparisons"][0]["folds_won"] == {"run": 1, "baseline": 0, "tied": 4}


def test_holm_is_over_all_runs_but_the_baseline(tmp_path):
    folders = [finished(tmp_path / name, wrong=wrong) for name, wrong in (("a", ("g01", "g02")), ("b", ()), ("c", ("g07", "g08", "g09")))]
    comparison = compare_runs(folders, "acc", 1)
    rows = comparison["comparisons"]
    assert comparison["baseline"] == folders[1].as_posix() and [row["run"] for row in rows] == [
        folders[0].as_posix(),
        folders[2].as_posix(),
    ]
    small, large = sorted(row["p"]["corrected"] for row in rows)
    assert sorted(row["p_holm"]["corrected"] for row in rows) == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])


def test_group_metrics_are_drawn_over_groups_and_unknown_to_rows_have_no_bootstrap(tmp_path):
    a, b = finished(tmp_path / "a", wrong=("g00", "g03", "g08")), finished(tmp_path / "b")
    low, high = compare_runs([a, b], "group_acc", 0)["comparisons"][0]["ci95_bootstrap"]
    assert 0 <= low < high
    for folder in (a, b):
        for number in range(1, 6):
            path = folder / f"fold_{number}" / "metrics.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"test/ruler": number + (folder == b) * 0.5}))
    row = compare_runs([a, b], "ruler", 0)["comparisons"][0]
    assert row["ci95_bootstrap"] is None and row["p"]["bootstrap"] is None
    assert row["p"]["corrected"] is None and row["ci95_corrected"] is None and row["verdict"] == "no p: all differences equal"


def test_other_folds_are_refused_with_the_first_that_differs(tmp_path):
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", seed=1)
    with pytest.raises(
        RunFolderError, match=r"have other folds; fold 1 is the first that differs: 8 and 8 test rows, of them \d in common"
    ):
        compare_runs([a, b], "acc", 0)
    info = json.loads((a / "folds_info.json").read_text())
    c = finished(tmp_path / "c")
    info["folds"][2]["test"], info["folds"][3]["test"] = info["folds"][3]["test"], info["folds"][2]["test"]
    for number, other in ((3, 4), (4, 3)):
        (c / f"fold_{number}" / "predictions.csv").write_text((a / f"fold_{other}" / "predictions.csv").read_text())
    (c / "folds_info.json").write_text(json.dumps(info))
    with pytest.raises(RunFolderError, match="fold 3 is the first that differs"):
        compare_runs([a, c], "acc", 0)


def test_other_rows_are_refused_and_an_unknown_metric_lists_what_there_is(tmp_path):
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", rows=3)
    with pytest.raises(RunFolderError, match=r"have other rows, labels, groups or classes \(40 and 60 rows\); fold 1 is the first"):
        compare_runs([a, b], "acc", 0)
    with pytest.raises(ConfigError, match="--metric test/mapp: not every run has it. All have test/acc, test/group_acc, test/nll"):
        compare_runs([a, a], "mapp", 0)


def test_unfinished_folds_and_a_choice_on_the_test_parts_are_told(tmp_path):
    a, b = finished(tmp_path / "a", wrong=("g00",)), finished(tmp_path / "b", selection="outer")
    write_status(b / "fold_2", Status("stopped", "c0ffee", "da7a"))
    comparison = compare_runs([a, b], "acc", 0)
    assert comparison["folds"] == [1, 3, 4, 5] and comparison["optimistic"] is True
    assert any(f"partial: fold 2 of {b.as_posix()}" in warning for warning in comparison["warnings"])
    assert any("optimistic" in warning for warning in comparison["warnings"]) and "OPTIMISTIC" in comparison_table(comparison)


def test_a_small_difference_is_told_with_what_so_few_folds_can_not_show(tmp_path):
    a, b = finished(tmp_path / "a", wrong=("g00", "g05")), finished(tmp_path / "b", wrong=("g09",))
    row = compare_runs([a, b], "acc", 0)["comparisons"][0]
    half = (row["ci95_corrected"][1] - row["ci95_corrected"][0]) / 2
    assert f"with 5 folds of this spread a difference below {half:.3g} can not be shown" in row["verdict"]
