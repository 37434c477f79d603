"""A stop signal in any phase of a run: no further fold begins, status.json says how it ended, and the same command ends with the same bytes.

The films and their run are those of test_cv_runs.py: two folds of a few steps.
"""

import os
import signal

import pytest
from test_cv_runs import NESTED, run, stored, table, write_films

from mmexpert import build, training
from mmexpert.engine.status import read_status
from mmexpert.engine.watch import Watch

SHORT = ["trainer.epochs=1", "trainer.monitor=valid/acc"]
ALONE = ["cv=none", "cv.n_splits=1", "cv.fractions=[0.5,0.25,0.25]", *SHORT]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films") / "own", 14, 1)


@pytest.fixture(scope="module")
def undisturbed(films, tmp_path_factory):
    return run(tmp_path_factory.mktemp("outputs") / "hip" / "whole", f"dataset.root={films}", *SHORT)


def signals_once(monkeypatch, module, name, number=signal.SIGTERM, nth=1):
    """The nth call of module.name sends this process the signal when it is over."""
    original, calls = getattr(module, name), []

    def sending(*given, **named):
        result = original(*given, **named)
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(module, name, sending)


def stopped(monkeypatch, folder, *overrides, code=143):
    with pytest.raises(SystemExit) as ended:
        run(folder, *overrides)
    assert ended.value.code == code
    monkeypatch.undo()


def ends(folder):
    """(state, exit code) of the run and of its folds, None where a fold has not begun."""
    found = [read_status(folder / place) for place in ("", "fold_1", "fold_2")]
    return [(status.state, status.exit_code) if status else None for status in found]


def figures(folder):
    summary = stored(folder / "cv_summary.json")
    summary["metrics"] = {name: entry for name, entry in summary["metrics"].items() if "time" not in name}
    return {name: entry for name, entry in summary.items() if name != "config"}


PLACES = {
    "the final scoring": ("score_parts", 1, ("stopped", 143)),
    "the writing": ("write_results", 1, ("done", 0)),
    "between the folds": ("start_accelerator", 2, ("done", 0)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_after_a_folds_training_begins_no_further_fold_and_changes_no_byte(place, films, undisturbed, tmp_path, monkeypatch):
    name, nth, first = PLACES[place]
    folder, given = tmp_path / "hip" / "run", [f"dataset.root={films}", *SHORT]
    signals_once(monkeypatch, training, name, nth=nth)
    stopped(monkeypatch, folder, *given)
    assert ends(folder) == [("stopped", 143), first, None] and read_status(folder).stopped == "signal"
    run(folder, *given)
    assert ends(folder) == [("done", 0)] * 3
    for file in ("oof_predictions.csv", "fold_1/model/model.safetensors", "fold_2/checkpoints/last/model.safetensors"):
        assert (folder / file).read_bytes() == (undisturbed / file).read_bytes()
    assert figures(folder) == figures(undisturbed)


def test_a_signal_while_a_fold_is_built_ends_it_at_once_and_says_so(films, tmp_path, monkeypatch):
    folder = tmp_path / "hip" / "run"
    signals_once(monkeypatch, build, "build_model", signal.SIGUSR1)
    monkeypatch.setattr(build, "build_loaders", lambda *_: pytest.fail("built on"))
    stopped(monkeypatch, folder, f"dataset.root={films}", *SHORT, code=138)
    assert ends(folder) == [("stopped", 138), ("stopped", 138), None]


def test_a_signal_while_the_data_set_is_built_leaves_a_status_too(films, tmp_path, monkeypatch):
    folder, given = tmp_path / "hip" / "run", [f"dataset.root={films}", *ALONE]
    signals_once(monkeypatch, build, "build_dataset")
    stopped(monkeypatch, folder, *given)
    status = read_status(folder)
    assert (status.state, status.stopped, status.exit_code, status.step) == ("stopped", "signal", 143, 0)
    run(folder, *given)
    assert read_status(folder).state == "done"


def test_an_optimizer_that_is_not_fused_is_polled_at_every_step_whatever_is_asked(films, tmp_path, monkeypatch):
    folder, given = tmp_path / "hip" / "run", [f"dataset.root={films}", *ALONE, "optimizer.fused=false", "trainer.poll_every=50"]
    signals_once(monkeypatch, Watch, "see")
    stopped(monkeypatch, folder, *given)
    assert read_status(folder).step == 1
    run(folder, *given)
    assert read_status(folder).state == "done"


def test_a_run_without_folds_whose_results_are_being_written_is_done_and_its_command_ends_by_the_signal(films, tmp_path, monkeypatch):
    folder, given = tmp_path / "hip" / "run", [f"dataset.root={films}", *ALONE]
    signals_once(monkeypatch, training, "write_results")
    stopped(monkeypatch, folder, *given)
    status = read_status(folder)
    assert (status.state, status.exit_code) == ("done", 0) and (folder / "report.html").exists() and table(folder / "predictions.csv")


def test_a_signal_between_inner_trainings_of_nested_folds_begins_none_and_stands_in_the_outer_fold(films, tmp_path, monkeypatch):
    folder = tmp_path / "hip" / "run"
    signals_once(monkeypatch, training, "write_report")
    stopped(monkeypatch, folder, f"dataset.root={films}", *NESTED, "trainer.epochs=1")
    assert ends(folder) == [("stopped", 143), ("stopped", 143), None]
    inner = sorted(path.name for path in (folder / "fold_1" / "inner").iterdir())
    assert inner == ["c1_j1"] and read_status(folder / "fold_1" / "inner" / "c1_j1").state == "done"
