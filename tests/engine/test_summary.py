"""The summary over folds holds each test row once, the mean of the folds, intervals as published, and says what is missing."""

import csv
import json
import shutil
import statistics

import numpy as np
import pytest
from fold_settings import group_settings
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from mmexpert.data.records import Record, RecordDataset
from mmexpert.engine import row_scores
from mmexpert.engine.files import csv_text
from mmexpert.engine.folds_file import settle_folds
from mmexpert.engine.status import Status, write_status
from mmexpert.engine.summary import aggregate, summary_table
from mmexpert.metrics.classification import classification_metrics, group_rows
from mmexpert.metrics.statistics import group_counts
from mmexpert.types import ClassTable, RunFolderError

ACC = [0.8, 0.9, 0.7, 0.85, 0.95]


def dataset(names, groups=20, own_test=0):
    classes = ClassTable(tuple(names), tuple((name,) for name in names), tuple(0 for _ in names)) if names else None
    records = [
        Record(f"g{g:02d}/{k}", "train", f"g{g:02d}", ("a",), g % len(names) if names else -1) for g in range(groups) for k in range(2)
    ]
    own = [Record(f"own/{k}", "test", f"own{k}", ("a",), 0 if names else -1) for k in range(own_test)]
    return RecordDataset("fake", records + own, "instance", classes)


def class_rows(fold, rows, names, draws):
    """predictions.csv of a fold: random probabilities that lean to the true class."""
    label_of = {record.id: record.label for record in rows.records}
    for sample in fold.test:
        label = label_of[sample]
        p = draws.dirichlet(np.ones(len(names)) + 2 * np.eye(len(names))[label])
        yield {
            "id": sample, "group": sample.split("/")[0], "label": names[label], "predicted": names[int(p.argmax())],
            **{f"p_{name}": float(value) for name, value in zip(names, p, strict=True)},
        }  # fmt: skip


def write_fold(folder, number, metrics, rows, hash="c0ffee", fingerprint="da7a", protocol=None):
    path = folder / f"fold_{number}"
    path.mkdir()
    write_status(path, Status("done", hash, fingerprint, epoch=3, best_epoch=2))
    metrics = {**metrics, "best_value": 0.5, "monitor": "valid/acc", "protocol": {"test": protocol or {"chance": {"acc": 0.5}}}}
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "predictions.csv").write_text(csv_text(rows))


def config(folder, **cv):
    cv = {"selection": "last", "headline": None, "fold": None} | cv
    content = {"config": {"cv": cv, "trainer": {"monitor": ["valid/RSum", "valid/loss_total"]}}}
    (folder / "config.json").write_text(json.dumps(content))


def finished(folder, names=("up", "down"), **changed):
    """A folder with five finished folds."""
    rows, draws = dataset(names), np.random.default_rng(0)
    folds = settle_folds(folder, rows, group_settings(**changed))
    config(folder, selection=changed.get("selection", "last"))
    (folder / "environment.json").write_text(json.dumps({"command": "x", "host": "h", "versions": {"torch": "2"}, "processes": 1}))
    for fold, acc in zip(folds, ACC * 2, strict=False):
        metrics = {"test/acc": acc, "test/balanced_acc": acc - 0.1, "test/group_acc": acc, "valid/acc": 0.6, "train/loss": 1.0}
        write_fold(folder, fold.number, metrics, list(class_rows(fold, rows, names, draws)))
    return folder


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_mean_over_folds_has_its_spread_and_chance_beside_it(tmp_path):
    summary = aggregate(finished(tmp_path))
    entry = summary["metrics"]["test/acc"]
    assert entry["folds"] == ACC and entry["n"] == 5 and entry["chance"] == 0.5
    assert entry["mean"] == pytest.approx(statistics.mean(ACC)) and entry["sd"] == pytest.approx(statistics.stdev(ACC))
    assert (entry["median"], entry["min"], entry["max"]) == (0.85, 0.7, 0.95)
    assert summary["headline"] == "test/balanced_acc" and summary["state"] == "done" and summary["folds_missing"] == []
    assert list(summary["group_metrics"]) == ["test/group_acc"] and "train/loss" not in summary["metrics"]
    assert summary["metrics"]["valid/acc"]["chance"] is None


def test_the_corrected_interval_of_five_folds_is_1_862_standard_deviations_wide_to_each_side(tmp_path):
    """cross-validation.md section 8: rho = 1 / (K - 1) without an inner part."""
    entry = aggregate(finished(tmp_path))["metrics"]["test/acc"]
    low, high = entry["ci95_corrected"]
    assert (high - low) / 2 / entry["sd"] == pytest.approx(1.862, abs=5e-4)
    assert (high + low) / 2 == pytest.approx(entry["mean"])


def test_rho_counts_training_rows_without_the_inner_part(tmp_path):
    entry = aggregate(finished(tmp_path, inner_val=0.25, selection="inner"))["metrics"]["test/acc"]
    low, high = entry["ci95_corrected"]
    assert (high - low) / 2 / entry["sd"] == pytest.approx(
        2.776445 * (1 / 5 + 4 / 12) ** 0.5, rel=1e-5
    )  # 20 groups: 4 test, 4 choose, 12 train


def test_out_of_fold_predictions_hold_every_row_once_from_the_fold_that_tested_it(tmp_path):
    aggregate(finished(tmp_path))
    rows = table(tmp_path / "oof_predictions.csv")
    tested_by = {
        sample: fold["fold"] for fold in json.loads((tmp_path / "folds_info.json").read_text())["folds"] for sample in fold["test"]
    }
    assert [row["id"] for row in rows] == sorted(tested_by)
    assert all(int(row["fold"]) == tested_by[row["id"]] and row["repeat"] == "1" for row in rows)
    assert list(rows[0]) == ["id", "group", "repeat", "fold", "label", "predicted", "p_up", "p_down"]
    for row in rows:
        original = next(other for other in table(tmp_path / f"fold_{row['fold']}" / "predictions.csv") if other["id"] == row["id"])
        assert float(row["p_up"]) == pytest.approx(float(original["p_up"]), rel=5e-7)
        assert len(row["p_up"].replace("0.", "", 1).lstrip("0").split("e")[0]) <= 7


def test_pooled_counts_are_scikit_learns_over_all_out_of_fold_rows(tmp_path):
    pooled = aggregate(finished(tmp_path, names=("up", "down", "left")))["pooled"]
    rows = table(tmp_path / "oof_predictions.csv")
    truth, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert pooled["acc"] == pytest.approx(accuracy_score(truth, predicted)) and pooled["rows"] == 40
    assert pooled["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert pooled["confusion"] == confusion_matrix(truth, predicted, labels=["up", "down", "left"]).tolist()
    assert [row["truth"] for row in table(tmp_path / "confusion.csv")] == ["up", "down", "left"]
    assert [int(row["n"]) for row in table(tmp_path / "per_class.csv")] == [14, 14, 12]


def test_the_pooled_table_averages_the_probabilities_of_repeats(tmp_path):
    summary = aggregate(finished(tmp_path, n_repeats=2))
    rows = table(tmp_path / "oof_predictions.csv")
    assert len(rows) == 80 and [row["repeat"] for row in rows] == ["1"] * 40 + ["2"] * 40
    means = {}
    for row in rows:
        means.setdefault(row["id"], []).append((float(row["p_up"]), row["label"]))
    right = [(sum(p for p, _ in both) / 2 > 0.5) == (both[0][1] == "up") for both in means.values()]
    assert summary["pooled"]["acc"] == pytest.approx(sum(right) / 40) and summary["pooled"]["rows"] == 40


def test_aggregating_twice_and_from_another_job_gives_the_same_bytes(tmp_path):
    finished(tmp_path)
    names = ("cv_summary.json", "cv_summary.md", "oof_predictions.csv", "per_class.csv", "confusion.csv")
    aggregate(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in names]
    config(tmp_path, fold=3)  # as -m cv.fold=1,2,3 leaves it
    aggregate(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_missing_folds_are_named_and_the_rest_is_summarised(tmp_path):
    finished(tmp_path)
    shutil.rmtree(tmp_path / "fold_2")
    write_status(tmp_path / "fold_4", Status("stopped", "c0ffee", "da7a"))
    summary = aggregate(tmp_path)
    assert (summary["state"], summary["folds_done"], summary["folds_missing"]) == ("partial", [1, 3, 5], [2, 4])
    assert summary["metrics"]["test/acc"]["folds"] == [ACC[0], ACC[2], ACC[4]]
    assert "partial: fold 2 not begun, fold 4 stopped" in summary["warnings"]
    assert {row["fold"] for row in table(tmp_path / "oof_predictions.csv")} == {"1", "3", "5"}


def test_no_finished_fold_is_a_summary_without_figures(tmp_path):
    settle_folds(tmp_path, dataset(("up", "down")), group_settings())
    config(tmp_path)
    summary = aggregate(tmp_path)
    assert summary["state"] == "partial" and summary["metrics"] == {} and not (tmp_path / "oof_predictions.csv").exists()


@pytest.mark.parametrize("key, what", [("config_hash", "configurations"), ("fingerprint", "data")])
def test_folds_of_different_configurations_or_data_are_refused_by_number(tmp_path, key, what):
    finished(tmp_path)
    status = json.loads((tmp_path / "fold_3" / "status.json").read_text())
    (tmp_path / "fold_3" / "status.json").write_text(json.dumps(status | {key: "0therwise"}))
    with pytest.raises(RunFolderError, match=rf"folds of different {what}.*fold 3: 0therwise"):
        aggregate(tmp_path)


def test_predictions_that_are_not_the_folds_test_part_are_refused_by_id(tmp_path):
    finished(tmp_path)
    path = tmp_path / "fold_1" / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    first = lines[1].split(",")[0]
    for damaged in (lines[:1] + lines[2:], lines + lines[1:2]):
        path.write_text("".join(damaged))
        with pytest.raises(RunFolderError, match=f"the fold's test part 8; the first that differs is '{first}'"):
            aggregate(tmp_path)


def test_a_finished_fold_without_its_files_is_told_by_file(tmp_path):
    finished(tmp_path)
    (tmp_path / "fold_5" / "metrics.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"fold_5/metrics.json is damaged"):
        aggregate(tmp_path)
    (tmp_path / "fold_5" / "predictions.csv").unlink()
    with pytest.raises(RunFolderError, match=r"fold_5/predictions.csv: No such file"):
        aggregate(tmp_path)


def test_class_names_that_a_spreadsheet_would_run_and_negative_numbers_survive(tmp_path):
    names = ("=cmd", "a, b")
    finished(tmp_path, names=names)
    path = tmp_path / "fold_1" / "predictions.csv"
    rows = [row | {"margin": "-0.25"} for row in table(path)]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert aggregate(tmp_path)["pooled"]["rows"] == 40
    found = [row for row in table(tmp_path / "oof_predictions.csv") if row["fold"] == "1"]
    assert {row["margin"] for row in found} == {"-0.25"} and {row["label"] for row in found} <= {"'=cmd", "a, b"}


def test_the_bootstrap_over_groups_is_seeded_and_holds_the_mean_of_the_folds(tmp_path):
    entry = aggregate(finished(tmp_path))["metrics"]["test/acc"]
    rows = table(tmp_path / "oof_predictions.csv")
    mean = np.mean([np.mean([row["label"] == row["predicted"] for row in rows if row["fold"] == str(k)]) for k in range(1, 6)])
    low, high = entry["ci95_bootstrap"]
    assert low < mean < high and high - low < 0.5
    assert aggregate(tmp_path)["metrics"]["test/acc"]["ci95_bootstrap"] == (low, high)


def scored(folder, names):
    """Five folds whose metrics are those of their rows and of their groups' votes, as the evaluator gives them."""
    rows, draws = dataset(names, groups=60), np.random.default_rng(0)
    config(folder)
    for fold in settle_folds(folder, rows, group_settings()):
        found = list(class_rows(fold, rows, names, draws))
        labels = np.array([names.index(row["label"]) for row in found])
        chances = np.array([[row[f"p_{name}"] for name in names] for row in found])
        means, truth, _ = group_rows(chances, labels, [row["group"] for row in found])
        metrics = {f"test/{name}": value for name, value in classification_metrics(chances, labels, ordered=True).items()}
        metrics |= {f"test/group_{name}": value for name, value in classification_metrics(means, truth, ordered=True).items()}
        chance = {name: 0.5 for name in ("acc", "group_acc", "group_map")}
        write_fold(folder, fold.number, metrics | {"test/text_to_image_p5": 0.5}, found, protocol={"chance": chance})
    return folder


def test_every_metric_that_rows_decide_has_an_interval_over_groups_and_votes_have_theirs(tmp_path):
    summary = aggregate(scored(tmp_path, ("up", "down", "left")))
    without = {"test/n_classes_used", "test/group_n_classes_used", "test/text_to_image_p5"}  # the last: of scores that no row holds
    everything = summary["metrics"] | summary["group_metrics"]
    assert without < everything.keys() and len(everything) == 31
    for name, entry in everything.items():
        if name in without:
            assert entry["ci95_bootstrap"] is None, name
            continue
        low, high = entry["ci95_bootstrap"]
        inside = low - 0.02 <= entry["mean"] <= high + 0.02 or "ece" in name  # fewer distinct rows are worse calibrated
        assert low < high and high - low < 1.5 and inside, (name, entry)
    assert summary["group_metrics"]["test/group_map"]["chance"] == summary["group_metrics"]["test/group_acc"]["chance"] == 0.5
    assert aggregate(tmp_path)["metrics"] == summary["metrics"]  # seeded


def test_more_rows_than_some_seconds_allow_have_fewer_draws_and_nearly_the_same_interval(tmp_path, monkeypatch):
    before = aggregate(scored(tmp_path, ("up", "down")))["metrics"]["test/map"]["ci95_bootstrap"]
    monkeypatch.setattr(row_scores, "_CELLS", 1)
    asked = []
    monkeypatch.setattr(row_scores, "group_counts", lambda *given: asked.append(given[-1]) or group_counts(*given))
    after = aggregate(tmp_path)["metrics"]["test/map"]["ci95_bootstrap"]
    assert set(asked) == {200} and after == pytest.approx(before, abs=0.03)


def test_a_model_that_is_always_right_has_bootstrap_bounds_of_one(tmp_path):
    finished(tmp_path)
    for number in range(1, 6):
        path = tmp_path / f"fold_{number}" / "predictions.csv"
        path.write_text(csv_text([row | {"predicted": row["label"]} for row in table(path)]))
    metrics = aggregate(tmp_path)["metrics"]
    assert metrics["test/acc"]["ci95_bootstrap"] == metrics["test/balanced_acc"]["ci95_bootstrap"] == (1.0, 1.0)


def test_a_metric_that_a_fold_lacks_is_a_mean_over_fewer_and_said_so(tmp_path):
    finished(tmp_path)
    path = tmp_path / "fold_2" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"test/acc": None}))
    summary = aggregate(tmp_path)
    entry = summary["metrics"]["test/acc"]
    assert entry["n"] == 4 and entry["folds"][1] is None and entry["mean"] == pytest.approx(np.mean([ACC[0], *ACC[2:]]))
    assert any("not known in every fold" in warning and "test/acc" in warning for warning in summary["warnings"])


def test_folds_that_predict_one_class_are_named_beside_the_interval_that_they_narrow(tmp_path):
    finished(tmp_path)
    assert not any("one class only" in warning for warning in aggregate(tmp_path)["warnings"])
    for number in (2, 4):
        path = tmp_path / f"fold_{number}/predictions.csv"
        path.write_text(csv_text([row | {"predicted": "down"} for row in table(path)]))
    warnings = aggregate(tmp_path)["warnings"]
    assert any(warning.startswith("folds 2, 4 predict one class only") for warning in warnings), warnings


def test_choosing_on_the_reported_folds_is_stamped_optimistic(tmp_path):
    summary = aggregate(finished(tmp_path, selection="outer"))
    assert summary["optimistic"] is True and "OPTIMISTIC" in summary_table(summary)
    assert any(warning.startswith("optimistic") for warning in summary["warnings"])


def test_retrieval_folds_have_intervals_of_their_recalls_and_the_monitors_metric_as_headline(tmp_path):
    rows = dataset(())
    folds = settle_folds(tmp_path, rows, group_settings())
    config(tmp_path)
    protocol = {"k": [1, 5], "chance": {"radar_to_text_R@1": 12.5}}
    for fold in folds:
        ranks = {sample: 1 if k % 4 < 2 else 3 for k, sample in enumerate(fold.test)}  # every second group
        predictions = [
            {
                "id": s,
                "group": s.split("/")[0],
                "rank_radar_to_text": ranks[s] if s.endswith("0") else None,
                "rank_text_to_radar": 1.0,
                "gallery": 8,
            }
            for s in fold.test
        ]
        write_fold(folder=tmp_path, number=fold.number, rows=predictions, protocol=protocol, metrics={
            "test/RSum": 300.0, "test/radar_to_text_R@1": 50.0, "test/radar_to_text_R@5": 100.0, "test/text_to_radar_R@1": 100.0,
        })  # fmt: skip
    summary = aggregate(tmp_path)
    metrics = summary["metrics"]
    assert summary["headline"] == "test/RSum" and metrics["test/radar_to_text_R@1"]["chance"] == 12.5
    assert metrics["test/radar_to_text_R@5"]["ci95_bootstrap"] == metrics["test/text_to_radar_R@1"]["ci95_bootstrap"] == (100.0, 100.0)
    low, high = metrics["test/radar_to_text_R@1"]["ci95_bootstrap"]
    assert low < high
    assert summary["pooled"] == {} and not (tmp_path / "confusion.csv").exists()


def test_the_named_headline_is_taken_and_an_unknown_one_is_warned_of(tmp_path):
    finished(tmp_path)
    config(tmp_path, headline="acc")
    summary = aggregate(tmp_path)
    assert summary["headline"] == "test/acc" and "test/acc: 0.840, 95 % " in summary_table(summary)
    config(tmp_path, headline="mapp")
    summary = aggregate(tmp_path)
    assert summary["headline"] == "test/balanced_acc"
    assert any("cv.headline=mapp is no metric of this run" in warning for warning in summary["warnings"])


def test_an_own_test_part_and_rows_left_out_are_told(tmp_path):
    settle_folds(tmp_path, dataset(("up", "down"), own_test=3), group_settings())
    config(tmp_path)
    stored = json.loads((tmp_path / "folds_info.json").read_text())
    (tmp_path / "folds_info.json").write_text(json.dumps(stored | {"left_out": ["x", "y"]}))
    summary = aggregate(tmp_path)
    assert summary["external"] == {"rows": 3}
    assert any("own test part (3 rows)" in warning for warning in summary["warnings"])
    assert any("2 rows of small classes" in warning for warning in summary["warnings"])


def test_the_table_has_a_line_per_metric_with_chance_and_then_the_warnings(tmp_path):
    finished(tmp_path)
    shutil.rmtree(tmp_path / "fold_2")
    aggregate(tmp_path)
    lines = (tmp_path / "cv_summary.md").read_text().splitlines()
    acc = next(line for line in lines if line.startswith("| test/acc |"))
    assert acc.split("|")[2].strip() == "0.825" and acc.rstrip("| ").endswith("0.500")
    assert lines[-1].startswith("WARNING: partial: fold 2")


def test_a_folder_without_folds_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="folds_info.json can not be read"):
        aggregate(tmp_path)
    none = group_settings(method="none", splitter=None, n_splits=1, fractions=[0.7, 0.15, 0.15], selection="last")
    settle_folds(tmp_path, dataset(("up", "down")), none)
    with pytest.raises(RunFolderError, match="a run without folds"):
        aggregate(tmp_path)
