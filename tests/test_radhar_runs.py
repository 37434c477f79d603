"""RadHAR's two protocols through the command: folds grouped by session, and Train against a Test folder beside it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from warm_commands import warm_run

from mmexpert import cv

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("boxing", "walk")
SMALL = [
    "experiment=radhar", "dataset.window=20", "dataset.stride=20", "dataset.augmentation=null", "trainer.batch_size=8", "trainer.epochs=3",
    "trainer.num_workers=0", "encoder.radar.width=16", "model.projection_dim=32", "encoder.text.bert.width=32", "optimizer.lr=3e-3",
]  # fmt: skip
PROMPTS = "dataset.class_texts={boxing:[a person boxing,punching],walk:[a person walking]}"


def write_session(path: Path, label: int, seed: int, frames: int = 60) -> None:
    """Points of a class: boxing at 1 m, walking at 4 m, both moving."""
    rng = np.random.default_rng(seed)
    lines, stamp = [], 1561683369
    for frame in range(frames):
        for point in range(4):
            values = {
                "secs": stamp + frame // 30, "nsecs": frame * 1000, "point_id": point, "range": 1 + 3 * label + 0.1 * rng.random(), "velocity": 0.6,
                "doppler_bin": 9 + 3 * label, "bearing": rng.normal(0, 5), "intensity": 30 + rng.random(),
            }  # fmt: skip
            lines += [f"{key}: {value}" for key, value in values.items()] + ["---"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def radhar_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("radhar")
    for label, name in enumerate(CLASSES):
        for take in range(6):
            write_session(root / "Train" / name / f"{name}_{take}.txt", label, 100 * label + take)
    return root


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return warm_run("mmexpert.train", [*SMALL, PROMPTS, *overrides], folder)


def test_folds_by_session_end_in_a_summary_with_interval_and_every_row_predicted_once(radhar_root, tmp_path):
    ended = train(tmp_path, f"dataset.root={radhar_root}", "cv.n_splits=3", "cv.inner_val=0.3", "name=folds", "trainer.epochs=10")
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = next((tmp_path / "outputs/folds").iterdir())
    summary = json.loads((run / "cv_summary.json").read_text())
    assert summary["state"] == "done" and summary["folds_done"] == [1, 2, 3]
    assert summary["metrics"]["test/acc"]["mean"] > 0.9  # the classes lie 3 m apart
    assert summary["metrics"]["test/acc"]["ci95_bootstrap"][0] <= summary["metrics"]["test/acc"]["mean"]
    printed = [line for line in ended.stdout.splitlines() if line.startswith(("acc ", "probe_acc "))][-2:]
    assert printed == (run / "result.txt").read_text().splitlines()[3:10:5], printed
    assert f"{summary['metrics']['test/probe_acc']['mean']:.3f}" in printed[1] and " .. " in printed[0]
    rows = (run / "oof_predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == len({row.split(",")[0] for row in rows}) == 2 * 6 * 3
    info = json.loads((run / "folds_info.json").read_text())
    for fold in info["folds"]:
        sessions = {part: {sample.rsplit("/", 1)[0] for sample in fold[part]} for part in ("train", "valid", "test")}
        assert (
            not sessions["train"] & sessions["test"]
            and not sessions["train"] & sessions["valid"]
            and not sessions["valid"] & sessions["test"]
        )
    assert all((run / f"fold_{k}" / "metrics.json").exists() and (run / f"fold_{k}" / "confusion.csv").exists() for k in (1, 2, 3))


def test_with_a_similarity_prompts_are_compared_by_fused_scores_and_evaluate_takes_another_score(radhar_root, tmp_path):
    ended = train(
        tmp_path, f"dataset.root={radhar_root}", "cv.n_splits=2", "cv.fold=1", "similarity=local", "name=local", "trainer.epochs=1"
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (run,) = (tmp_path / "outputs/local").glob("*/fold_1")
    stored = json.loads((run / "metrics.json").read_text())
    assert stored["protocol"]["test"]["by"] == "text prompts, fused scores" and "by text prompts, fused scores" in ended.stdout
    again = warm_run("mmexpert.evaluate", [f"run={run}", "evaluator.rank_by=pooled"], tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    (file,) = run.glob("evaluate/*/metrics.json")
    pooled = json.loads(file.read_text())
    assert pooled["protocol"]["by"] == "text prompts" and pooled["acc"] == stored["test/pooled_acc"]
    assert pooled["fused_acc"] == stored["test/acc"] and pooled["sequence_acc"] == stored["test/sequence_acc"]


@pytest.mark.slow  # tests/test_cv_runs.py has folds in another order
def test_one_fold_alone_equals_that_fold_of_the_whole_and_finished_folds_are_not_run_again(radhar_root, tmp_path):
    command = [f"dataset.root={radhar_root}", "cv.n_splits=3", "cv.inner_val=0.3", "name=some", "trainer.epochs=1"]
    alone = train(tmp_path, *command, "cv.fold=2")
    assert alone.returncode == 0, alone.stderr[-3000:]
    run = next((tmp_path / "outputs/some").iterdir())
    assert json.loads((run / "cv_summary.json").read_text())["folds_missing"] == [1, 3]
    before = (run / "fold_2/predictions.csv").read_bytes()
    stamp = (run / "fold_2/predictions.csv").stat().st_mtime_ns
    whole = train(tmp_path, *command)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert (run / "fold_2/predictions.csv").stat().st_mtime_ns == stamp
    (tmp_path / "again").mkdir()
    other = train(tmp_path / "again", *command)
    assert other.returncode == 0
    again = next((tmp_path / "again/outputs/some").iterdir())
    assert (again / "fold_2/predictions.csv").read_bytes() == before


def test_a_test_folder_beside_train_is_reported_once_under_test(radhar_root, tmp_path):
    root = tmp_path / "root"
    (root).mkdir()
    (root / "Train").symlink_to(radhar_root / "Train")
    for label, name in enumerate(CLASSES):
        write_session(root / "Test" / name / f"{name}_9.txt", label, 900 + label)
    ended = train(tmp_path, f"dataset.root={root}", "cv=none", "dataset.allow_outside=true", "name=official", "trainer.epochs=10")
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = next((tmp_path / "outputs/official").iterdir())
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"]["test"]["rows"] == 6 and metrics["test/acc"] > 0.9
    parts = json.loads((run / "folds_info.json").read_text())["folds"][0]
    assert len(parts["test"]) == 6 and all("_9/" in sample for sample in parts["test"])
    assert parts["train"] and not parts["valid"] and not any("_9/" in sample for sample in parts["train"])


def test_split_writes_the_folds_and_two_workers_train_on_them_what_one_process_trains(radhar_root, tmp_path, monkeypatch):
    """cross-validation.md section 10, tests 2 and 3."""
    command = [f"dataset.root={radhar_root}", "cv.n_splits=2", "cv.inner_val=0.3", "trainer.epochs=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cv", "split", *SMALL, PROMPTS, *command, "name=many"])
    cv.main()
    run = next((tmp_path / "outputs/many").iterdir())
    assert sorted(path.name for path in run.iterdir()) == ["classes.json", "folds_info.json"]
    before = (run / "folds_info.json").read_bytes()
    many = train(tmp_path, *command, "name=many", "cv.workers=2")
    assert many.returncode == 0, many.stdout[-2000:] + many.stderr[-3000:]
    assert (run / "folds_info.json").read_bytes() == before and json.loads((run / "classes.json").read_text())["names"] == list(CLASSES)
    one = train(tmp_path, *command, "name=one")
    assert one.returncode == 0, one.stderr[-3000:]
    other = next((tmp_path / "outputs/one").iterdir())
    assert (run / "oof_predictions.csv").read_bytes() == (other / "oof_predictions.csv").read_bytes()
    summaries = [json.loads((folder / "cv_summary.json").read_text()) for folder in (run, other)]
    for summary in summaries:
        del summary["config"]["name"]
        for key in [key for key in summary["metrics"] if "time" in key]:
            del summary["metrics"][key]
    assert summaries[0] == summaries[1] and summaries[0]["state"] == "done"
    assert "Epoch 1" in (run / "fold_2/log.txt").read_text() and json.loads((run / "status.json").read_text())["state"] == "done"


def test_windows_of_a_merged_class_keep_prompts_of_that_class(radhar_root):
    from mmexpert.build import build_dataset
    from mmexpert.command_line import composed
    from mmexpert.config import check
    from mmexpert.engine.class_merge import merge_classes

    dataset = merge_classes(build_dataset(check(composed(*SMALL, PROMPTS, f"dataset.root={radhar_root}"))), ["boxing"])
    prompts = [(name, text) for name, texts in zip(dataset.classes.names, dataset.classes.texts, strict=True) for text in texts]
    assert prompts == [("walk", "a person walking"), ("other", "a person boxing"), ("other", "punching")]
    for epoch in (-1, 0, 1):
        for record in dataset.records[::5]:
            sample = dataset.sample(record, epoch, 0)
            assert prompts[sample["text_index"]][0] == ("other" if record.id.startswith("boxing") else "walk")
            assert sample["label"] == record.label


def test_fewer_groups_than_folds_is_told_before_training(radhar_root, tmp_path):
    ended = train(tmp_path, f"dataset.root={radhar_root}", "cv.n_splits=9", "name=few")
    assert ended.returncode in (2, 3) and "9" in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("checkpoints"))
