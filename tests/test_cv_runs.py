"""Whole cross-validations on small films: external part, refit, other films, nested choice, .pth copies, trackers, memory.

The films are 32 px: bright on the left (`left`) or on the right (`right`), two of each patient, so that a few steps tell them apart.
"""

import csv
import gc
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmexpert.command_line import composed
from mmexpert.config import NOT_HASHED, check
from mmexpert.data.preparation import stored_constants
from mmexpert.engine.status import Status, config_hash, read_status, write_status
from mmexpert.loading import load
from mmexpert.nested import _failure_told
from mmexpert.types import ConfigError, DataError, RunFolderError

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("left", "right")
SMALL = [
    "experiment=hip", "dataset=image_folder", "encoder/image=conv", "encoder.image.side=32", "encoder.image.channels=[8,16]", "encoder.image.in_chans=1", "cv=stratified_group", "cv.n_splits=2", "cv.inner_val=0.3",
    "trainer.batch_size=8", "trainer.epochs=3", "trainer.num_workers=0", "trainer.device=cpu", "encoder.text.bert.width=32",
    "model.projection_dim=32", "encoder.text.bert.layers=1", "evaluator.linear_probe=[]",
]  # fmt: skip


def write_films(root: Path, patients: int, seed: int, own_test: int = 0, classes=CLASSES) -> Path:
    """metadata.csv with two further columns; the last own_test patients are the set's own test part."""
    root.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        label = patient % len(classes)
        for visit in range(2):
            film = rng.integers(0, 60, (32, 32), dtype=np.uint8)
            film[:, 16 * (classes[label] == "right") :][:, :16] += 150
            file = f"{seed}_{patient:02d}_{visit}.png"
            Image.fromarray(film).save(root / file)
            split = "test" if patient >= patients - own_test else "train"
            rows.append({"file": file, "label": classes[label], "group": f"P{patient}", "split": split, "ward": "1e5", "fold": f"w{visit}"})
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def run(folder: Path, *overrides: str) -> Path:
    """One call of the train command, in this process; without plots, which take longer than the training here."""
    from mmexpert.engine import finish
    from mmexpert.training import train_run

    given = [*SMALL, *overrides]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finish, "write_plots", lambda *_: None)
        train_run(check(composed(*given)), folder, given, ())
    return folder


def stored(path: Path):
    return json.loads(path.read_text())


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films") / "own", 26, 1, own_test=4)


@pytest.fixture(scope="module")
def refitted(films, tmp_path_factory):
    """Two folds, an own test part, a model on all rows, .pth copies."""
    folder = tmp_path_factory.mktemp("outputs") / "hip" / "refit"
    return run(folder, f"dataset.root={films}", "cv.refit=true", "trainer.export_pth=true")


def test_every_fold_has_its_own_log_and_classes_and_the_run_has_all_lines(refitted):
    everything = (refitted / "log.txt").read_text()
    for k in (1, 2):
        own = (refitted / f"fold_{k}" / "log.txt").read_text()
        command, _, lines = own.partition("\n")
        assert f"[fold {k}/2]" in lines and f"[fold {3 - k}/2]" not in lines and lines in everything
        assert command.endswith(stored(refitted / f"fold_{k}" / "environment.json")["command"])
        assert stored(refitted / f"fold_{k}" / "classes.json") == stored(refitted / "classes.json")


def test_what_is_wrong_in_every_fold_ends_the_run_in_the_first(films, tmp_path, monkeypatch):
    def refuse(*_):
        raise ConfigError("optimizer: not for this model")

    monkeypatch.setattr("mmexpert.build.build_optimizer", refuse)
    with pytest.raises(ConfigError, match="optimizer: not for this model"):
        run(tmp_path / "run", f"dataset.root={films}")
    assert (tmp_path / "run" / "fold_1").exists() and not (tmp_path / "run" / "fold_2").exists()


def test_the_own_test_part_is_predicted_by_the_mean_probability_of_the_fold_models(refitted):
    info, summary = stored(refitted / "folds_info.json"), stored(refitted / "cv_summary.json")
    assert len(info["external"]) == 8 and summary["external"]["rows"] == 8 and summary["external"]["models"] == 2
    one, two = (table(refitted / f"fold_{k}" / "external_predictions.csv") for k in (1, 2))
    for row, a, b in zip(table(refitted / "external_predictions.csv"), one, two, strict=True):
        assert row["id"] == a["id"] == b["id"]
        assert float(row["p_left"]) == pytest.approx((float(a["p_left"]) + float(b["p_left"])) / 2, rel=1e-12)
        assert row["predicted"] == ("left" if float(row["p_left"]) > 0.5 else "right")
    right = [row["label"] == row["predicted"] for row in table(refitted / "external_predictions.csv")]
    assert summary["external"]["metrics"]["acc"] == np.mean(right) and summary["external"]["chance"]["acc"] == 0.5
    assert "external: 8 rows, 2 models" in (refitted / "cv_summary.md").read_text()
    assert not any("not scored" in warning for warning in summary["warnings"])


def test_no_external_row_and_no_row_or_group_of_a_test_part_is_trained_on(refitted):
    """cross-validation.md section 10, test 4: from what the folds themselves stored."""
    info = stored(refitted / "folds_info.json")
    group_of = {
        row["file"]: row["group"] for row in table(Path(stored(refitted / "config.json")["config"]["dataset"]["root"]) / "metadata.csv")
    }
    for fold in info["folds"]:
        trained = {*fold["train"], *fold["valid"]}
        tested = {row["id"] for row in table(refitted / "oof_predictions.csv") if row["fold"] == str(fold["fold"])}
        assert tested == set(fold["test"]) and not trained & (tested | set(info["external"]))
        assert not {group_of[row] for row in trained} & {group_of[row] for row in tested | set(info["external"])}


def test_refit_trains_one_model_on_all_rows_of_the_folds_for_the_median_of_their_best_epochs(refitted):
    info, best = stored(refitted / "folds_info.json"), [stored(refitted / f"fold_{k}" / "metrics.json")["best_epoch"] for k in (1, 2)]
    history = stored(refitted / "final" / "history.json")
    assert len(history) == int(np.median(best) + 0.5)
    rows = info["dataset"]["rows"] - len(info["external"])
    assert history[0]["step"] == rows // 8 and sum(stored(refitted / "final" / "model" / "classes.json")["counts"]) == rows
    assert read_status(refitted / "final").state == read_status(refitted).state == "done"
    assert "external/acc" in stored(refitted / "final" / "metrics.json")

    import mmexpert

    assert mmexpert.load(refitted).fingerprint == mmexpert.load(refitted / "final").fingerprint  # the run's model


def test_a_finished_cross_validation_may_ask_for_its_model_on_all_rows_later(refitted, films):
    from mmexpert.train import refit_open

    plain = check(composed(*SMALL, f"dataset.root={films}"))
    later = check(composed(*SMALL, f"dataset.root={films}", "cv.refit=true"))
    assert config_hash(plain, NOT_HASHED) == config_hash(later, NOT_HASHED) == read_status(refitted).config_hash
    assert refit_open(refitted / "fold_1", later) and not refit_open(refitted, later) and not refit_open(refitted / "fold_1", plain)


def test_pth_copies_hold_the_models_weights_the_epoch_and_its_figures(refitted):
    for name, epoch in (("best", stored(refitted / "fold_1/metrics.json")["best_epoch"]), ("latest", 3)):
        content = torch.load(refitted / "fold_1" / f"checkpoint_{name}.pth", weights_only=True)
        assert set(content) == {"model", "epoch", "metrics", "classes", "config"}
        assert content["epoch"] == epoch and content["classes"] == list(CLASSES)
        assert content["metrics"] == stored(refitted / "fold_1/history.json")[epoch - 1]
    weights = load_file(refitted / "fold_1/model/model.safetensors")
    best = torch.load(refitted / "fold_1/checkpoint_best.pth", weights_only=True)["model"]
    assert {f"model.{name}" for name in best} == set(weights) and all(
        torch.equal(best[k.removeprefix("model.")], v) for k, v in weights.items()
    )


def test_further_columns_of_the_table_stand_in_the_predictions_as_they_were_written(refitted):
    rows = table(refitted / "oof_predictions.csv")
    assert {row["ward"] for row in rows} == {"1e5"} and {row["meta_fold"] for row in rows} == {"w0", "w1"}  # fold is the fold's
    assert {row["fold"] for row in rows} == {"1", "2"}


def evaluate(monkeypatch, *arguments):
    from mmexpert import evaluate as command

    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    command.application()


def test_the_tables_of_folds_say_which_fold_and_end_with_the_mean_and_the_place(refitted, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        evaluate(monkeypatch, f"run={refitted}", "split=valid")
    lines = [line for line in caplog.messages if line]
    assert [line for line in lines if line.startswith("fold ")] == ["fold 1", "fold 2"] and "training samples" not in caplog.text
    values = [stored(refitted / f"fold_{k}" / "evaluate" / "valid" / "metrics.json")["balanced_acc"] for k in (1, 2)]
    assert lines[-2].startswith(f"mean over 2 folds: balanced_acc {np.mean(values):.3f}, sd {np.std(values, ddof=1):.3f}")
    assert lines[-1] == f"in {refitted}/fold_*/evaluate/valid"


def test_other_films_are_predicted_by_the_mean_probability_of_the_fold_models(refitted, tmp_path, monkeypatch, caplog):
    other = write_films(tmp_path / "other", 7, 2)
    evaluate(monkeypatch, f"run={refitted}", f"dataset.root={other}")
    out = refitted / "evaluate" / "other_other"
    metrics, rows = stored(out / "metrics.json"), table(out / "predictions.csv")
    assert metrics["protocol"]["rows"] == len(rows) == 14 and metrics["protocol"]["models"] == ["fold_1", "fold_2"]
    alone = []
    for k in (1, 2):
        evaluate(monkeypatch, f"run={refitted / f'fold_{k}'}", f"dataset.root={other}")
        alone.append(table(refitted / f"fold_{k}" / "evaluate" / "other_other" / "predictions.csv"))
    for row, a, b in zip(rows, *alone, strict=True):
        assert float(row["p_left"]) == pytest.approx((float(a["p_left"]) + float(b["p_left"])) / 2, rel=1e-12)
    assert metrics["acc"] == np.mean([row["label"] == row["predicted"] for row in rows])
    assert (out / "confusion.csv").exists() and "ids of the run's own data" not in caplog.text
    another = write_films(tmp_path / "elsewhere" / "other", 9, 2)
    with pytest.raises(RunFolderError, match="holds the result of other rows under the same name"):
        evaluate(monkeypatch, f"run={refitted}", f"dataset.root={another}")
    assert table(out / "predictions.csv") == rows


def test_the_fold_models_alone_give_what_the_run_reported_and_known_films_are_warned_of(refitted, films, tmp_path, monkeypatch, caplog):
    """The path of other films against the evaluator's: the same rows, under a table that has one row less."""
    lines = (films / "metadata.csv").read_text().splitlines(keepends=True)
    (films / "less.csv").write_text("".join(lines[:1] + lines[2:]))
    evaluate(monkeypatch, f"run={refitted / 'fold_1'}", f"dataset.root={films}", "dataset.metadata=less.csv", "split=test")
    found = {row["id"]: row for row in table(refitted / "fold_1/evaluate/other_own,dataset.metadata=less.csv,split=test/predictions.csv")}
    for row in table(refitted / "fold_1" / "external_predictions.csv"):
        assert float(found[row["id"]]["p_left"]) == pytest.approx(float(row["p_left"]), abs=1e-6)
    evaluate(monkeypatch, f"run={refitted}", f"dataset.root={films}", "dataset.metadata=less.csv")
    assert "43 of 51 rows have ids of the run's own data" in caplog.text


def test_other_films_are_normalised_by_the_numbers_that_are_stored_with_the_model(films, tmp_path, monkeypatch):
    folder = run(tmp_path / "outputs/hip/fitted", f"dataset.root={films}", "dataset.normalize=dataset", "cv.fold=1", "trainer.epochs=1")
    other = write_films(tmp_path / "darker", 4, 2)
    for path in other.glob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)  # mean and sd of their own would be others
    evaluate(monkeypatch, f"run={folder / 'fold_1'}", f"dataset.root={other}")
    rows = table(folder / "fold_1/evaluate/other_darker/predictions.csv")
    expected = load(folder / "fold_1", "cpu").classify([other / row["file"] if "file" in row else other / row["id"] for row in rows])
    assert [float(row["p_left"]) for row in rows] == pytest.approx(expected[:, 0].tolist(), abs=1e-6)
    with pytest.raises(ConfigError, match="the model is stored with normalize=per_image, without mean and sd"):
        stored_constants({"normalize": "per_image"})


def test_a_class_that_the_run_does_not_know_is_an_error_and_a_missing_one_is_none(refitted, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="'up' is not in dataset.class_order"):
        evaluate(monkeypatch, f"run={refitted}", f"dataset.root={write_films(tmp_path / 'new', 3, 3, classes=('left', 'right', 'up'))}")
    mixed = write_films(tmp_path / "one", 4, 4)
    rows = [line for line in (mixed / "metadata.csv").read_text().splitlines() if ",left," not in line]
    (mixed / "metadata.csv").write_text("\n".join(rows) + "\n")
    evaluate(monkeypatch, f"run={refitted}", f"dataset.root={mixed}")
    metrics = stored(refitted / "evaluate/other_one/metrics.json")
    assert metrics["n_classes_used"] == 1 and {row["label"] for row in table(refitted / "evaluate/other_one/predictions.csv")} == {"right"}


def test_weights_that_act_twice_and_undeclared_groups_are_told_in_every_result(tmp_path, films):
    given = (f"dataset.root={films}", "dataset.balance.apply=both", "dataset.group_column=null", "trainer.epochs=1")
    folder = run(tmp_path / "hip" / "both", *given)
    summary = stored(folder / "cv_summary.json")
    assert summary["over_corrected"] is True and summary["groups"] == "none declared" and summary["optimistic"] is False
    for path in (folder / "fold_1/metrics.json", folder / "fold_2/metrics.json"):
        assert stored(path)["over_corrected"] is True and stored(path)["groups"] == "none declared"
    assert any("over-corrected" in warning for warning in summary["warnings"]) and any("no groups" in w for w in summary["warnings"])
    assert "groups none declared" in (folder / "cv_summary.md").read_text() and "OVER-CORRECTED" in (folder / "result.txt").read_text()
    last = (folder / "result.txt").read_text().splitlines()[-1]
    assert last.startswith(f"in {folder}: report.html, cv_summary.md, ") and last.endswith("confusion.csv; fold_1, fold_2")


NESTED = [
    "cv=nested",
    "cv.inner_splits=2",
    "cv.grid=['optimizer.lr=0','']",
    "trainer.monitor=valid/acc",
    "trainer.batch_size=4",
    "trainer.epochs=4",
]


def test_nested_selects_what_can_learn_in_every_fold_and_no_test_row_is_in_an_inner_part(films, tmp_path, caplog, monkeypatch):
    """cross-validation.md section 10, test 9."""
    import mmexpert.training as training

    seen = []

    def spy(session, fold, count, accelerator):
        seen.append((fold, session.cfg["optimizer"]["lr"]))
        return original(session, fold, count, accelerator)

    original = training.train_fold
    monkeypatch.setattr(training, "train_fold", spy)
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    folder = run(tmp_path / "hip" / "nested", f"dataset.root={films}", *NESTED)
    summary, info = stored(folder / "cv_summary.json"), stored(folder / "folds_info.json")
    assert summary["nested"] == {"grid": ["optimizer.lr=0", ""], "wins": [0, 2], "chosen": {"1": "", "2": ""}}
    assert "2 folds x (2 inner folds x 2 entries + 1) = 10 trainings" in (folder / "log.txt").read_text()
    assert len(seen) == 10
    for fold in info["folds"]:
        selected = stored(folder / f"fold_{fold['fold']}" / "selected.json")
        assert selected["chosen"] == 2 and selected["overrides"] == ["optimizer.lr=0", ""] and np.shape(selected["scores"]) == (2, 2)
        for c, row in enumerate(selected["scores"], 1):
            inner = [stored(folder / f"fold_{fold['fold']}/inner/c{c}_j{j}/metrics.json")["valid/acc"] for j in (1, 2)]
            assert inner == row
        assert stored(folder / f"fold_{fold['fold']}" / "config.json")["config"]["optimizer"]["lr"] == 3e-3
        inside = [one for one, _ in seen if one.number == fold["fold"] and one.inner]
        assert len(inside) == 4 and all(not {*one.train, *one.valid} & {*fold["test"], *info["external"]} for one in inside)
        held = [sample for one in inside[:2] for sample in one.valid]
        assert sorted(held) == sorted([*fold["train"], *fold["valid"]])  # each row of the training part held out once
        assert [(one.train, one.valid) for one in inside[:2]] == [(one.train, one.valid) for one in inside[2:]]
        assert np.mean(selected["scores"][1]) > np.mean(selected["scores"][0])


def test_a_nested_run_that_was_stopped_trains_only_what_is_missing_and_chooses_once(films, tmp_path, monkeypatch):
    import mmexpert.training as training

    calls, stop_at = [], 3

    def fake(session, fold, count, accelerator):
        calls.append((fold.place, session.cfg["optimizer"]["lr"]))
        if len(calls) == stop_at or not fold.inner:
            raise SystemExit(143)
        folder = fold.folder(session.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder, Status("done", session.hash))
        value = 0.9 if session.cfg["optimizer"]["lr"] else 0.5
        (folder / "metrics.json").write_text(json.dumps({"best_value": 1.0, "valid/acc": value}))

    monkeypatch.setattr(training, "train_fold", fake)
    sittings = []
    for _ in range(3):
        with pytest.raises(SystemExit):
            run(tmp_path / "hip" / "run", f"dataset.root={films}", *NESTED, "cv.fold=1")
        sittings.append(calls.copy())
        calls.clear()
        stop_at = 0
        if len(sittings) == 1:
            assert read_status(tmp_path / "hip/run/fold_1").state == "stopped"
    one, two, three, four = ((f"fold_1/inner/c{c}_j{j}", 3e-3 * (c - 1)) for c in (1, 2) for j in (1, 2))
    assert sittings == [[one, two, three], [three, four, ("", 3e-3)], [("", 3e-3)]]
    assert stored(tmp_path / "hip/run/fold_1/selected.json")["scores"] == [[0.5, 0.5], [0.9, 0.9]]


@pytest.mark.parametrize(
    "error, state, code", [(RuntimeError("no answer from https://me:s3cr3t@host/x"), "failed", 1), (SystemExit(143), "stopped", 143)]
)
def test_an_outer_fold_says_how_its_inner_training_ended_without_secrets(tmp_path, error, state, code):
    session = SimpleNamespace(hash="h", fingerprint="f")
    with pytest.raises(type(error)), _failure_told(session, tmp_path, SimpleNamespace(rank=0)):
        raise error
    status = read_status(tmp_path)
    assert (status.state, status.exit_code, status.config_hash) == (state, code, "h")
    assert "s3cr3t" not in (tmp_path / "status.json").read_text()
    assert (status.error or {}).get("type") == (type(error).__name__ if state == "failed" else None)


def test_a_fold_killed_in_mid_save_and_folds_in_another_order_end_with_the_same_bytes(refitted, films, tmp_path):
    """cross-validation.md section 10, tests 2 and 3: the folds file is there before the first step, kill -9 changes no byte."""
    folder, epoch = tmp_path / "hip" / "killed", stored(refitted / "fold_2" / "history.json")[1]
    given = [*SMALL, f"dataset.root={films}", f"hydra.run.dir={folder}", "cv.fold=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MMEXPERT_KILL_AT": f"rename:{epoch['step']}"}
    ended = subprocess.run(
        [sys.executable, "-m", "mmexpert.train", *given], env=environment, cwd=tmp_path, capture_output=True, timeout=200
    )
    assert ended.returncode == -signal.SIGKILL and read_status(folder / "fold_2").state == "running"
    assert (folder / "folds_info.json").read_bytes() == (refitted / "folds_info.json").read_bytes()
    (folder / "fold_2" / ".metrics.json.tmp-1").write_text('{"test/acc": 0.')  # half of a file
    run(folder, f"dataset.root={films}", "cv.fold=2")
    assert read_status(folder / "fold_2").resumes[0]["exact"]
    assert stored(folder / "cv_summary.json")["folds_missing"] == [1]
    run(folder, f"dataset.root={films}", "cv.fold=1")
    assert (folder / "oof_predictions.csv").read_bytes() == (refitted / "oof_predictions.csv").read_bytes()
    found = [stored(one / "cv_summary.json") for one in (folder, refitted)]
    for summary in found:
        summary["metrics"] = {name: entry for name, entry in summary["metrics"].items() if "time" not in name}
        del summary["config"]
    assert found[0] == found[1]


@pytest.mark.parametrize("grid, message", [
    ("['cv.seed=1','']", "sets cv.seed=1; a grid may change any key but dataset, cv and name"),
    ("['dataset.seed=1','']", "sets dataset.seed=1"),
    ("['optimizer.lr=1e-3','optimizer.lr=1.0e-3']", "two entries are the same configuration"),
    ("[]", "a list of different override strings"),
])  # fmt: skip
def test_a_grid_that_is_none_is_refused_before_anything_is_trained(films, tmp_path, grid, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "hip" / "grid", f"dataset.root={films}", "cv=nested", f"cv.grid={grid}")
    assert not list(tmp_path.rglob("checkpoints"))


def test_folds_of_one_init_begin_with_equal_weights_and_others_do_not(films, tmp_path, monkeypatch):
    import mmexpert.training as training

    first = {}

    def stops(objective, loaders, evaluator, optimizer, schedule, settings, run):
        first.setdefault(same, []).append({name: value.clone() for name, value in objective.state_dict().items()})
        raise DataError("far enough")

    monkeypatch.setattr(training, "fit", stops)
    for same in (True, False):
        with pytest.raises(DataError, match="far enough"):
            run(tmp_path / "hip" / str(same), f"dataset.root={films}", f"cv.same_init={str(same).lower()}")
    one, two = first[True]
    learned = [name for name in one if one[name].is_floating_point() and one[name].numel() > 50]
    assert learned and all(torch.equal(one[name], two[name]) for name in learned)
    one, two = first[False]
    assert not any(torch.equal(one[name], two[name]) for name in learned if one[name].std() > 0)


def test_a_tracker_has_a_run_for_every_fold_in_the_runs_group_and_one_for_the_summary(films, tmp_path, monkeypatch):
    import mmexpert.session as session

    opened = []

    class Fake(session.Tracker):
        def __init__(self, folder, settings, accelerator, run_name, config, job=""):
            opened.append((run_name, settings.group, job))
            super().__init__(folder, replace(settings, log_with=None), accelerator, run_name, config, job)

        def log_summary(self, values):
            opened.append(values)

    monkeypatch.setattr(session, "Tracker", Fake)
    folder = run(tmp_path / "hip" / "track", f"dataset.root={films}", "trainer.epochs=1")
    group = "hip/track"
    assert opened[:2] == [(f"{group}/fold_{k}", group, f"fold_{k}") for k in (1, 2)]
    assert opened[2] == (f"{group}/summary", group, "summary") and len(opened) == 4
    assert opened[3]["cv/test/acc_mean"] == stored(folder / "cv_summary.json")["metrics"]["test/acc"]["mean"]


@pytest.mark.slow  # five trainings for one figure
def test_memory_does_not_grow_with_the_folds(films, tmp_path, monkeypatch):
    """cross-validation.md section 5: after fold 3 what is held is what was held after fold 1, within 5 percent."""
    import mmexpert.training as training

    held = []
    start = training.start_accelerator

    def counted(cfg, folder):
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        held.append((len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return start(cfg, folder)

    monkeypatch.setattr(training, "start_accelerator", counted)
    run(tmp_path / "hip" / "memory", f"dataset.root={films}", "cv.n_splits=3", "trainer.epochs=1")
    (_, _), (number_1, bytes_1), (_, _), (number_3, bytes_3) = held
    assert number_3 == number_1 and bytes_3 <= 1.05 * bytes_1
