"""Which weights and words a stored run is scored with, and on which rows."""

import json
import shutil
import sys

import pytest
from clip_files import views_of, write_split, write_views

from mmexpert import evaluate
from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.types import ConfigError, RunFolderError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.application()


def figures(folder, name):
    return json.loads((folder / "evaluate" / name / "metrics.json").read_text())


@pytest.fixture
def own_copy(tiny_run, tmp_path):
    """The finished run, to be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)


def as_stopped(folder):
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "stopped", "stopped": "signal"}))
    return folder


@pytest.mark.parametrize("wrong", ["epoch_99_val_7", "bets", "../checkpoints/last"])
def test_a_checkpoint_that_is_not_there_is_refused_with_a_list_of_those_that_are(tiny_run, monkeypatch, wrong):
    with pytest.raises(RunFolderError, match=f"checkpoint={wrong}: .*There are best, epoch_01_val_.*, last, step_") as told:
        run(monkeypatch, f"run={tiny_run}", f"checkpoint={wrong}")
    assert "did you mean 'best'" in str(told.value) or wrong != "bets"
    assert not [path for path in tiny_run.glob("evaluate/*") if wrong in path.name]


def test_a_run_without_a_best_link_is_scored_by_the_epoch_that_its_state_names_best(own_copy, tiny_run, monkeypatch):
    (own_copy / "checkpoints" / "best").unlink()  # as a file system without links has it
    run(monkeypatch, f"run={own_copy}")
    best = json.loads((tiny_run / "metrics.json").read_text())
    found = figures(own_copy, "test")
    assert found["checkpoint"].startswith(f"epoch_{best['best_epoch']:02d}_val_")
    assert found["protocol"]["fingerprint_checkpoint"] == best["protocol"]["test"]["fingerprint_checkpoint"]


def test_an_unfinished_run_is_scored_by_the_weights_that_are_named_and_by_no_others(own_copy, monkeypatch):
    as_stopped(own_copy)
    with pytest.raises(RunFolderError, match=r"is not finished: say which weights, checkpoint=best\|last\|epoch_01_val_"):
        run(monkeypatch, f"run={own_copy}")
    shutil.rmtree(own_copy / "model")
    run(monkeypatch, f"run={own_copy}", "checkpoint=best")
    assert figures(own_copy, "test,checkpoint=best")["checkpoint"] == "best"


@pytest.mark.parametrize("place", ["checkpoints/best", "checkpoints/last", "model", "model/"])
def test_a_run_may_be_named_by_one_of_its_checkpoints_or_its_model_folder(own_copy, monkeypatch, place):
    run(monkeypatch, f"run={own_copy}/{place}", "split=valid")
    position = place.partition("/")[2] or "best"
    name = "valid" if place.startswith("model") else f"valid,checkpoint={position}"
    assert figures(own_copy, name)["checkpoint"] == position


def test_two_positions_at_once_and_a_model_without_its_run_are_refused(tiny_run, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="names a checkpoint, checkpoint=last another: give one of them"):
        run(monkeypatch, f"run={tiny_run}/checkpoints/best", "checkpoint=last")
    alone = shutil.copytree(tiny_run / "model", tmp_path / "given")
    with pytest.raises(RunFolderError, match="given is a model without its run"):
        run(monkeypatch, f"run={alone}")


def test_the_vocabulary_is_the_stored_one_whatever_data_is_scored(tiny_run, monkeypatch):
    seen = []
    load = TextTokenizer.load.__func__
    monkeypatch.setattr(TextTokenizer, "load", classmethod(lambda cls, folder: seen.append(load(cls, folder)) or seen[-1]))
    monkeypatch.setattr("mmexpert.encoders.text.scratch_tokenizer", lambda *_: pytest.fail("a vocabulary is built again"))
    run(monkeypatch, f"run={tiny_run}", "dataset.seed=21")
    (used,) = seen
    stored = load(TextTokenizer, tiny_run / "model" / "tokenizer")
    assert used.tokenizer.get_vocab() == stored.tokenizer.get_vocab()
    other = figures(tiny_run, "test,dataset.seed=21")["protocol"]
    assert other["fingerprint_data"] != json.loads((tiny_run / "metrics.json").read_text())["protocol"]["test"]["fingerprint_data"]


def test_words_are_stored_before_the_first_step_and_a_resume_reads_them(tiny, tmp_path, monkeypatch):
    from mmexpert.command_line import composed
    from mmexpert.config import check
    from mmexpert.encoders.tokenizer import scratch_tokenizer
    from mmexpert.engine.step_folder import read_weights
    from mmexpert.training import train_run

    folder, begun = tmp_path / "run", []

    def stop(*_):
        begun.append((folder / "checkpoints" / "tokenizer" / "length.json").exists())
        raise SystemExit(143)

    overrides = [*tiny, "trainer.epochs=1", "loss=superclip_token"]
    with monkeypatch.context() as patch:
        patch.setattr("mmexpert.training.fit", stop)
        with pytest.raises(SystemExit):
            train_run(check(composed(*overrides)), folder, overrides, ())
    assert begun == [True]
    train_run(check(composed(*overrides)), folder, overrides, ())
    as_stopped(folder)
    weights = read_weights(folder / "checkpoints" / "last")
    rehearsed = scratch_tokenizer(["a"], 2000, 48)  # a configuration is tried with one word

    def refuse(texts, *_):
        return rehearsed if list(texts) == ["a"] else pytest.fail("a vocabulary is built again")

    monkeypatch.setattr("mmexpert.encoders.text.scratch_tokenizer", refuse)
    train_run(check(composed(*overrides)), folder, overrides, ())
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    again = read_weights(folder / "checkpoints" / "last")
    assert all(bool((weights[name] == again[name]).all()) for name in weights)
    run(monkeypatch, f"run={folder}", "dataset.train=48")  # fewer captions: the counts of tokens are the run's too
    assert figures(folder, "test,dataset.train=48")["protocol"]["queries"] == 32


def test_a_retrieval_run_is_scored_on_the_own_test_part_of_other_data(tiny_run, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        run(monkeypatch, f"run={tiny_run}", "dataset.test=24")
        run(monkeypatch, f"run={tiny_run}", "dataset.test=40", "dataset.train=8")
    assert "other data than the run's own: 24 rows, its test part" in caplog.text
    assert "trained or chosen on" not in caplog.text
    assert figures(tiny_run, "test,dataset.test=24")["protocol"]["queries"] == 24
    assert figures(tiny_run, "test,dataset.test=40,dataset.train=8")["protocol"]["gallery"] == 40


def test_another_data_set_takes_the_place_of_the_runs(tiny_run, clip_cache, monkeypatch, caplog):
    given = ["dataset=radar_twins", f"dataset.cache_dir={clip_cache}", "dataset.train=16", "dataset.valid=8", "dataset.test=12"]
    with caplog.at_level("INFO"):
        run(monkeypatch, f"run={tiny_run}", *given)
    (path,) = (path for path in tiny_run.glob("evaluate/*/metrics.json") if json.loads(path.read_text())["protocol"]["queries"] == 12)
    assert any(key.startswith("hard_") for key in json.loads(path.read_text()))  # which twins have
    with pytest.raises(ConfigError, match="split=valid: the other data has no such part; it has train, test"):
        run(monkeypatch, f"run={tiny_run}", *given, "dataset.valid=0", "split=valid")


def test_a_stopped_run_leaves_a_model_of_its_best_epoch_and_the_end_replaces_it(tiny, tmp_path, monkeypatch):
    from mmexpert import load
    from mmexpert.command_line import composed
    from mmexpert.config import check
    from mmexpert.engine.watch import Verdict, Watch
    from mmexpert.training import train_run

    folder, overrides, agree = tmp_path / "run", [*tiny, "trainer.epochs=2"], Watch.agree

    def stopping(self, *given):
        verdict = agree(self, *given)
        return Verdict(verdict.finite, 143, verdict.save) if given[-1].step >= last_step[0] else verdict

    last_step = [1]  # counted before the step: of 4 an epoch, before anything is validated
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "agree", stopping)
        with pytest.raises(SystemExit):
            train_run(check(composed(*overrides)), folder, overrides, ())
        assert not (folder / "model").exists() and (folder / "checkpoints" / "last").exists()
        with pytest.raises(RunFolderError, match="checkpoint=best: no epoch has been validated yet; .* holds last, step_00000002"):
            run(monkeypatch, f"run={folder}", "checkpoint=best")
        last_step[0] = 5  # of the second epoch
        with pytest.raises(SystemExit):
            train_run(check(composed(*overrides)), folder, overrides, ())
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    (epoch,) = (folder / "checkpoints").glob("epoch_01_val_*")
    assert load(folder, "cpu").config["checkpoint"] == epoch.name
    card = (folder / "model" / "README.md").read_text()
    assert "| valid/RSum |" in card and "Made by `python -m mmexpert.train dataset.train=64" in card
    run(monkeypatch, f"run={folder}/model")
    assert figures(folder, f"test,checkpoint={epoch.name}")["checkpoint"] == epoch.name
    train_run(check(composed(*overrides)), folder, overrides, ())
    card = (folder / "model" / "README.md").read_text()
    assert "| test | " in card and "ties pessimistic" in card and "| test/radar_to_text_R@1 |" in card


def test_a_checkpoint_is_loaded_with_its_own_weights_and_the_models_words(tiny_run, own_copy):
    import torch

    from mmexpert import load
    from mmexpert.engine.step_folder import read_weights

    epochs = sorted((own_copy / "checkpoints").glob("epoch_*"))
    kept = load(tiny_run, "cpu").config["checkpoint"]
    other = next(path for path in epochs if path.name != kept)
    model, best = load(other, "cpu"), load(own_copy / "checkpoints" / "best", "cpu")
    stored = read_weights(other)
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in model.model.state_dict().items())
    assert best.fingerprint == load(tiny_run, "cpu").fingerprint != model.fingerprint
    assert not torch.equal(model.encode_text("a person walks"), best.encode_text("a person walks"))
    with pytest.raises(RunFolderError, match="the figures of the model card are those of"):
        model.save(own_copy / "given")
    shutil.rmtree(own_copy / "model")
    with pytest.raises(RunFolderError, match="has no model/ beside its checkpoints"):
        load(other, "cpu")


def test_the_command_stands_first_in_the_log_and_at_each_start(tiny_run):
    command = json.loads((tiny_run / "environment.json").read_text())["command"]
    first = (tiny_run / "log.txt").read_text().splitlines()[0]
    assert first.endswith(f"mmexpert.engine.console: {command}")


def test_a_run_on_files_is_scored_on_another_split_file_and_on_another_folder(tiny_run, tmp_path, monkeypatch):
    """The run is that on simulated clips; what is written here has its views and lengths."""

    def write(root, **files):
        root.mkdir()
        for name, numbers in files.items():
            write_split(root, f"{name}.json", [{"filefolder": ".", "fileindex": n, "captions": [f"clip {n} waves"]} for n in numbers])
            for n in numbers:
                write_views(root, str(n), views_of(n, 64), "npz")
        return root

    one, two = write(tmp_path / "one", train=range(4), val=range(4, 6), test=range(6, 9), later=range(9, 14)), tmp_path / "two"
    write(two, train=range(20, 22), val=range(22, 24), test=range(24, 28))
    given = ["dataset=radar_text", f"dataset.root={one}"]
    for extra, queries in (([], 3), (["dataset.splits.test=[later.json]"], 5), ([f"dataset.root={two}"], 4)):
        before = set(tiny_run.glob("evaluate/*"))
        run(monkeypatch, f"run={tiny_run}", *given, *extra)
        (new,) = set(tiny_run.glob("evaluate/*")) - before
        assert json.loads((new / "metrics.json").read_text())["protocol"]["queries"] == queries
