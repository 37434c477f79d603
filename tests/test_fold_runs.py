"""Processes share the folds of a run: a held fold is left alone, workers give what one process gives, a failed fold stops no other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmexpert import fold_runs, fold_workers
from mmexpert.engine.folds import Fold
from mmexpert.engine.lock import RunLock
from mmexpert.engine.status import Status, read_status, write_status
from mmexpert.engine.stops import Stops
from mmexpert.train import put_aside
from mmexpert.types import ConfigError, DataError, NonFiniteError, RunFolderError

ROOT = Path(__file__).resolve().parents[1]
HOLD = "import sys; from pathlib import Path; from mmexpert.engine.lock import RunLock; RunLock(Path(sys.argv[1])).acquire(); print(1, flush=True); input()"


@pytest.fixture
def held(tmp_path):
    """fold_2, locked by another process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "fold_2")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert other.stdout.readline()
    yield other.pid
    other.communicate("\n", timeout=20)


def session(folder, fold=None, workers=1):
    cv = SimpleNamespace(fold=fold, workers=workers, refit=False)
    cfg, stops = {"trainer": {"device": "cpu"}}, Stops(SimpleNamespace(processes=1))
    return SimpleNamespace(folder=folder, hash="c0ffee", fingerprint="da7a", cv=cv, cfg=cfg, dataset=None, stops=stops)


@pytest.fixture
def folds(monkeypatch):
    """Three folds; the summary is left out."""
    ended = []
    monkeypatch.setattr(fold_runs, "finish_folds", lambda *_: ended.append(True))
    monkeypatch.setattr(fold_runs, "write_report", lambda _: None)
    monkeypatch.setattr(fold_runs, "write_class_table", lambda *_: None)
    return [Fold(number, 1, [], [], []) for number in (1, 2, 3)]


def run(folds, one, train):
    accelerator = SimpleNamespace(process_index=0, num_processes=1)
    return fold_runs.run_folds(one, folds, accelerator, train, lambda: accelerator)


def trained(session, fold, count, accelerator):
    """What train_fold leaves behind."""
    path = session.folder / f"fold_{fold.number}"
    write_status(path, Status("done", "c0ffee", "da7a"))
    (path / "metrics.json").write_text(json.dumps({"best_value": float(fold.number)}))


def test_a_fold_that_another_process_holds_is_left_to_it_and_the_others_are_trained(tmp_path, folds, held, caplog):
    caplog.set_level("INFO")
    assert run(folds, session(tmp_path), trained) == 2.0  # mean of folds 1 and 3
    assert read_status(tmp_path / "fold_2") is None and read_status(tmp_path / "fold_3").state == "done"
    assert f"fold 2 is left to its holder: {tmp_path / 'fold_2'} is in use by process {held} on" in caplog.text


def test_the_one_fold_that_was_asked_for_but_is_held_is_an_error_with_code_4(tmp_path, folds, held):
    with pytest.raises(RunFolderError, match=f"in use by process {held}") as raised:
        run(folds, session(tmp_path, fold=2), trained)
    assert raised.value.exit_code == 4
    assert run(folds, session(tmp_path, fold=3), trained) == 3.0


def test_a_held_fold_keeps_the_folder_from_being_put_aside(tmp_path, held):
    write_status(tmp_path, Status("running", "c0ffee"))
    with pytest.raises(RunFolderError, match=f"in use by process {held}"):
        put_aside(tmp_path)
    assert (tmp_path / "status.json").exists()


def test_a_fold_is_locked_while_it_trains_and_free_afterwards(tmp_path, folds):
    def train(session, fold, count, accelerator):
        with pytest.raises(RunFolderError, match="in use"):
            RunLock(session.folder / f"fold_{fold.number}").acquire()
        trained(session, fold, count, accelerator)

    run(folds, session(tmp_path), train)
    with RunLock(tmp_path / "fold_1"):
        pass


def test_finished_folds_are_not_trained_again_and_count_in_the_value(tmp_path, folds):
    run(folds, session(tmp_path), trained)
    assert run(folds, session(tmp_path), None) == 2.0


def test_a_failed_fold_does_not_stop_the_others_and_its_error_ends_the_command(tmp_path, folds, caplog):
    def train(session, fold, count, accelerator):
        if fold.number != 3:
            raise (DataError, NonFiniteError)[fold.number - 1](f"no {fold.number}")
        trained(session, fold, count, accelerator)

    with pytest.raises(DataError, match="no 1"):
        run(folds, session(tmp_path), train)
    assert read_status(tmp_path / "fold_3").state == "done"
    assert "failed: fold 1: DataError: no 1; fold 2: NonFiniteError: no 2" in caplog.text


def test_a_run_is_said_to_run_from_its_beginning(tmp_path, folds):
    run(folds[:1], session(tmp_path), lambda one, *_: None if read_status(one.folder).state == "running" else 1 / 0)


def test_a_fold_that_another_process_ends_during_the_summary_is_summed_up_too(tmp_path, monkeypatch):
    missing = [[2], []]

    def sum_up(one):
        (one.folder / "fold_2").mkdir(exist_ok=True)
        write_status(one.folder / "fold_2", Status("done", "c0ffee"))  # the other process is done just after these were read
        return {"folds_done": [1], "folds_missing": missing.pop(0), "metrics": {}, "group_metrics": {}, "external": {}}

    monkeypatch.setattr(fold_runs, "_sum_up", sum_up)
    monkeypatch.setattr(fold_runs, "fold_table", lambda _: [])
    monkeypatch.setattr(
        fold_runs, "open_tracker", lambda *_: SimpleNamespace(log_summary=lambda _: None, log_images=lambda *_: None, finish=lambda: None)
    )
    fold_runs.finish_folds(session(tmp_path), None)
    assert missing == []


def test_a_worker_is_the_same_command_for_one_fold_into_the_same_folder():
    one = SimpleNamespace(
        folder=Path("/runs/it's, a=1"), overrides=["cv=group", "cv.workers=3", "resume=never", "cv.fold=null", "seed=1"], trust=("mine",)
    )
    command = fold_workers.worker_command(one, 4)[3:]
    assert command == ["cv=group", "seed=1", "cv.fold=4", "cv.workers=1", "hydra.run.dir='/runs/it\\'s, a=1'", "trust=[mine]"]


def test_workers_share_cores_or_have_a_device_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert fold_workers.worker_environment(False, 0, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [fold_workers.worker_environment(True, place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["4", "6", "4"]
    assert fold_workers.worker_count("auto", "cpu") == 1


@pytest.mark.parametrize("fold, processes", [(1, 1), (None, 2)])
def test_workers_beside_another_way_to_share_the_folds_are_refused(fold, processes):
    with pytest.raises(ConfigError, match="cv.workers=2 starts processes of its own: leave out cv.fold, torchrun"):
        fold_workers.check_workers(session(Path(), fold=fold, workers=2).cv, processes)
    fold_workers.check_workers(session(Path(), fold=fold).cv, processes)


def script(monkeypatch, text):
    monkeypatch.setattr(fold_workers, "worker_command", lambda one, number: [sys.executable, "-c", text, str(number), str(one.folder)])


def test_the_queue_runs_so_many_at_a_time_and_returns_what_failed_with_its_code(tmp_path, monkeypatch):
    script(monkeypatch, "import sys, time; print('here', sys.argv[1]); time.sleep(0.3); sys.exit({'2': 3}.get(sys.argv[1], 0))")
    most = []
    start = fold_workers._start
    alive = []

    def counted(*given):
        alive[:] = [process for process in alive if process.poll() is None] + [start(*given)]
        most.append(len(alive))
        return alive[-1]

    monkeypatch.setattr(fold_workers, "_start", counted)
    failed = fold_workers.run_workers(session(tmp_path), [1, 2, 3, 4], 2)
    assert list(failed) == [2] and isinstance(failed[2], DataError) and "fold_2/log.txt" in str(failed[2])
    assert len(most) == 4 and max(most) == 2 and (tmp_path / "fold_4" / "log.txt").read_text() == "here 4\n"


def test_the_queue_leaves_a_held_fold_to_its_holder(tmp_path, monkeypatch, held):
    script(monkeypatch, "import sys; open(sys.argv[2] + '/ran' + sys.argv[1], 'w')")
    assert fold_workers.run_workers(session(tmp_path), [1, 2, 3], 2) == {}
    assert sorted(path.name for path in tmp_path.glob("ran*")) == ["ran1", "ran3"]


def test_a_stop_signal_reaches_every_worker_and_no_further_fold_begins(tmp_path, monkeypatch):
    text = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "open(sys.argv[2] + '/ran' + sys.argv[1], 'w')\nif sys.argv[1] == '1': os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)"
    )
    script(monkeypatch, text)
    one = session(tmp_path)
    with pytest.raises(SystemExit) as ended, one.stops:
        fold_workers.run_workers(one, [1, 2], 1)
    assert ended.value.code == 143 and [path.name for path in tmp_path.glob("ran*")] == ["ran1"]


@pytest.mark.parametrize(
    "states, hold, expected",
    [
        (["done", None], False, ("stopped", 0)),  # cv.fold=1 has ended, nobody works on the rest
        (["done", "failed"], False, ("failed", 3)),
        (["done", "running"], True, ("running", None)),
        (["done", "running"], False, ("stopped", 0)),  # the process that ran it was killed
    ],
)
def test_a_run_of_which_only_some_folds_are_done_says_where_it_stands(tmp_path, monkeypatch, states, hold, expected):
    for number, state in enumerate(states, 1):
        (tmp_path / f"fold_{number}").mkdir()
        if state:
            code = {"done": 0, "failed": 3}.get(state)
            write_status(tmp_path / f"fold_{number}", Status(state, "c0ffee", "da7a", exit_code=code, seconds=2.0))
    monkeypatch.setattr(fold_runs, "holder", lambda folder: {"pid": 1} if hold and folder.name == "fold_2" else None)
    fold_runs._write_state(session(tmp_path), "", 0)
    status = read_status(tmp_path)
    assert (status.state, status.exit_code) == expected and status.seconds == 2.0 * sum(state is not None for state in states)


def test_a_stop_signal_in_a_fold_stands_in_the_runs_status(tmp_path, folds):
    def train(*_):
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run(folds, session(tmp_path), train)
    status = read_status(tmp_path)
    assert (status.state, status.stopped, status.exit_code) == ("stopped", "signal", 143)
