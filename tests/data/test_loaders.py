"""Batches are a function of seed, epoch and step, whoever loads them; a worker that fails is told by the samples it had."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmexpert.data import workers
from mmexpert.data.balance import BalanceSettings
from mmexpert.data.collate import Collate
from mmexpert.data.findings import DataFault
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.data.records import Record, RecordDataset
from mmexpert.data.sampling import epoch_order, sample_rng
from mmexpert.types import ClassTable, DataError, ProcessError


class Noise(RecordDataset):
    """A label and one random number a sample; does to chosen ids what a test asks for."""

    def __init__(self, n, act=None, at=()):
        super().__init__("noise", [Record(id=f"c{i:03d}", split="train", group=str(i)) for i in range(n)], "instance")
        self.act, self.at = act, at

    def sample(self, record, epoch, repeat):
        if record.id in self.at:
            self.act(record)
        draw = 0.0 if epoch == -1 else sample_rng(0, epoch, record.id, repeat).random()
        return {"label": int(record.id[1:]), "weight": np.float64(draw)}


@pytest.fixture
def make():
    opened = []

    def make(dataset, workers=0, prefetch=2, timeout=60, valid=None, **plan):
        n = len(dataset)
        parts = {"train": list(range(n)), "valid": list(range(n)) if valid is None else valid, "test": []}
        settings = {"batch_size": 8, "eval_batch_size": 4, "accumulation": 1, "processes": 1, "rank": 0, "drop_last": True} | plan
        collate = Collate(None, 1, "batch", 1)
        workers_of = WorkerSettings(workers, prefetch, False, timeout)
        opened.append(Loaders(dataset, parts, collate, PlanSettings(**settings), workers_of, 5, torch.device("cpu")))
        return opened[-1]

    yield make
    for loaders in opened:
        loaders.close()


def seen(windows):
    return [[(batch["id"].tolist(), batch["weight"].tolist()) for batch in window] for window in windows]


def children():
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in own if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"}


@pytest.mark.parametrize("workers, prefetch", [(1, 1), (2, 1), (2, 4)])
def test_workers_and_prefetching_change_no_batch_of_any_epoch(make, workers, prefetch):
    plain, parallel = make(Noise(50)), make(Noise(50), workers, prefetch)
    for epoch in (0, 1, 2):
        assert seen(plain.train(epoch, 0)) == seen(parallel.train(epoch, 0))
    assert seen(plain.train(0, 0)) != seen(plain.train(1, 0))
    assert [batch["id"].tolist() for batch in plain.part("valid")] == [batch["id"].tolist() for batch in parallel.part("valid")]


def test_the_order_is_the_documented_function_of_seed_and_epoch(make):
    ids = [i for window in make(Noise(48)).train(3, 0) for i in window[0]["id"].tolist()]
    assert ids == epoch_order(48, 5, 3).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_and_an_abandoned_epoch_leave_the_rest_as_it_was(make, workers):
    loaders = make(Noise(50), workers)
    whole = seen(loaders.train(1, 0))
    next(loaders.train(0, 0))  # left after one window, with others under way
    assert seen(loaders.train(1, 4)) == whole[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_a_global_generator(make, workers):
    loaders = make(Noise(50), workers)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for epoch in (0, 1):
        list(loaders.train(epoch, 0))
        list(loaders.part("valid"))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("processes, accumulation", [(1, 4), (2, 2), (4, 1)])
def test_a_window_holds_the_micro_batches_of_one_step_on_one_rank(make, processes, accumulation):
    whole = [window[0]["id"].tolist() for window in make(Noise(50)).train(0, 0)]
    ranks = [list(make(Noise(50), processes=processes, accumulation=accumulation, rank=rank).train(0, 0)) for rank in range(processes)]
    assert {len(window) for windows in ranks for window in windows} == {accumulation}
    for step, ids in enumerate(whole):
        shared = [rank[step][a]["id"].tolist() for a in range(accumulation) for rank in ranks]
        assert [i for share in shared for i in share] == ids


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_17_samples_in_batches_of_4_are_all_scored_and_all_ranks_have_as_many(make, processes):
    ranks = [
        [batch["id"].tolist() for batch in make(Noise(17), processes=processes, rank=r, batch_size=12).part("valid")]
        for r in range(processes)
    ]
    flat = [i for rank in ranks for batch in rank for i in batch]
    assert set(flat) == set(range(17)) and len(flat) == -(-17 // processes) * processes
    assert len({tuple(map(len, rank)) for rank in ranks}) == 1


def test_evaluation_repeats_to_the_byte_and_an_empty_part_gives_nothing(make):
    loaders = make(Noise(17), 2)
    first, second = (torch.cat([batch["weight"] for batch in loaders.part("valid")]) for _ in range(2))
    assert torch.equal(first, second) and list(loaders.part("test")) == []


def test_what_belongs_together_is_in_one_micro_batch(make):
    dataset = Noise(40)
    dataset.together = [(f"c{2 * i:03d}", f"c{2 * i + 1:03d}") for i in range(12)] + [(f"c{i:03d}",) for i in range(24, 40)]
    batches = [set(batch["id"].tolist()) for window in make(dataset, accumulation=2).train(0, 0) for batch in window]
    assert all((2 * i in batch) == (2 * i + 1 in batch) for i in range(12) for batch in batches)
    again = [window[0]["id"].tolist() for window in make(dataset).train(1, 0)]
    assert again != [window[0]["id"].tolist() for window in make(dataset).train(0, 0)]


def test_stop_signals_do_not_end_workers(make):
    loaders, before = make(Noise(64), 2), children()
    windows = loaders.train(0, 0)
    workers = children() - before
    got = seen([next(windows), next(windows)])  # one from each: both have their handlers
    for pid in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert len(workers) == 2 and got + seen(windows) == seen(make(Noise(64)).train(0, 0))


def test_a_worker_computes_with_one_thread(make):
    def tell(record):
        raise DataError(f"{torch.get_num_threads()} threads, asked for 3 in the main process")

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    with pytest.raises(DataError, match="^1 threads"):
        list(make(Noise(32, tell, ("c013",)), 2).train(0, 0))
    torch.set_num_threads(threads)


def broken(record):
    raise ZeroDivisionError("made by the test")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_fails_is_named_with_its_fault(make, workers):
    with pytest.raises(ProcessError, match="(?s)loading sample c013 failed.*made by the test"):
        list(make(Noise(32, broken, ("c013",)), workers).train(0, 0))


def wrong(record):
    raise DataFault(f"{record.id}.npy: holds nan", "non_finite", f"{record.id}.npy", record.id)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_keeps_class_and_message_on_its_way_from_a_worker(make, workers):
    with pytest.raises(DataError, match="^c013.npy: holds nan$") as error:
        list(make(Noise(32, wrong, ("c013",)), workers).train(0, 0))
    assert type(error.value) is DataFault


def test_a_worker_killed_during_a_step_is_told_at_the_next_window_by_its_samples(make):
    loaders, before = make(Noise(64), 2, prefetch=1, timeout=3600), children()  # found by looking, not by waiting
    next(loaders.train(1, 0))  # an epoch that is left: its batches are none of those told below
    windows = loaders.train(0, 0)
    order = epoch_order(64, 5, 0).tolist()
    next(windows)
    pid = min(children() - before)  # the first one started
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)  # computing: torch's own handler would raise a RuntimeError here
    with pytest.raises(ProcessError, match=rf"loader worker 0 \(pid {pid}\) died") as error:
        list(windows)
    assert [name in str(error.value) for name in (f"c{order[16]:03d}", f"c{order[23]:03d}", f"c{order[8]:03d}")] == [True, True, False]
    loaders.close()
    assert not children() - before


def test_a_training_worker_that_dies_during_an_evaluation_spoils_only_the_next_epoch(make):
    dataset, before = Noise(32), children()
    loaders = make(dataset, 2, timeout=3600)
    list(loaders.train(0, 0))
    victim = min(children() - before)

    def kill_it(record):
        os.kill(victim, signal.SIGKILL)
        time.sleep(0.2)  # the main process awaits this very batch when it hears of the death

    dataset.act, dataset.at = kill_it, ("c013",)
    assert sum(len(batch["id"]) for batch in loaders.part("valid")) == 32
    with pytest.raises(ProcessError, match=rf"loader worker 0 \(pid {victim}\) died .* between two epochs"):
        loaders.train(1, 0)


def dies(record):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_of_a_sample_is_told_while_its_batch_is_awaited(make):
    with pytest.raises(ProcessError, match=r"loader worker \d \(pid \d+\) died .*c013.*trainer.num_workers=0"):
        list(make(Noise(32, dies, ("c013",)), 2).train(0, 0))


def hangs(record):
    signal.pause()


@pytest.mark.slow
def test_a_worker_that_hangs_is_told_by_its_samples_and_killed(make):
    before = children()
    loaders = make(Noise(32, hangs, ("c013",)), 1, timeout=1)
    with pytest.raises(ProcessError, match="nothing for trainer.loader_timeout_s=1 while it had to load one of the samples .*c013"):
        list(loaders.train(0, 0))
    assert len(children() - before) == 1
    loaders.close()
    assert not children() - before
    with pytest.raises(ProcessError, match="nothing for trainer.loader_timeout_s=1.*c013"):
        list(loaders.part("valid"))
    assert not children() - before


def test_a_worker_that_does_not_come_up_is_started_anew(make, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(workers, "_START_S", 0.5)
    before, start = children(), workers.start_worker

    def hangs_once(up, number):
        if number == 1 and len(list(tmp_path.iterdir())) < failures:
            (tmp_path / str(os.getpid())).touch()
            signal.pause()
        start(up, number)

    monkeypatch.setattr(workers, "start_worker", hangs_once)
    failures = 1
    loaders = make(Noise(32), 2)
    assert seen(loaders.train(0, 0)) == seen(make(Noise(32)).train(0, 0))
    [hung] = tmp_path.iterdir()
    assert f"loader workers [{hung.name}] have not come up in 0.5 s" in caplog.text and len(children() - before) == 2
    assert seen(loaders.train(1, 0)) == seen(make(Noise(32)).train(1, 0)) and len(caplog.records) == 1
    failures = 9
    with pytest.raises(ProcessError, match="some loader workers did not come up in 3 starts of 0.5 s; trainer.num_workers=0 needs none"):
        make(Noise(32), 2).train(0, 0)
    assert len(list(tmp_path.iterdir())) == 4 and len(children() - before) == 2


def test_leaving_an_evaluation_ends_its_workers(make):
    before = children()
    loaders = make(Noise(32), 2)
    batches = loaders.part("valid")
    next(batches)
    assert len(children() - before) == 2
    batches.close()
    assert not children() - before

    def stop():
        raise SystemExit(143)

    loaders.on_batch = stop
    with pytest.raises(SystemExit):
        list(loaders.part("valid"))
    assert not children() - before


def test_every_evaluation_batch_looks_for_a_stop_first(make):
    loaders, polls = make(Noise(17)), []
    loaders.on_batch = lambda: polls.append(1)
    assert len(list(loaders.part("valid"))) == len(polls) == 5


def test_a_closed_loader_has_no_workers_and_starts_new_ones(make):
    before = children()
    loaders = make(Noise(32), 2)
    first = seen(loaders.train(0, 0))
    assert len(children() - before) == 2
    loaders.close()
    loaders.close()
    assert not children() - before and seen(loaders.train(0, 0)) == first


ENDS_WITH_WORKERS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_loaders import Noise, Loaders, PlanSettings, WorkerSettings, Collate
plan = PlanSettings(8, 4, 1, 1, 0, True)
parts = {"train": list(range(32)), "valid": list(range(32))}
loaders = Loaders(Noise(32), parts, Collate(None, 1, "batch", 1), plan, WorkerSettings(2, 2, False, 60), 0, torch.device("cpu"))
training, evaluation = loaders.train(0, 0), loaders.part("valid")
next(training), next(evaluation)
sys.exit(7)
"""


def test_a_process_that_ends_in_the_midst_leaves_at_once_with_its_own_code():
    here = Path(__file__).resolve()
    command = [sys.executable, "-c", ENDS_WITH_WORKERS, str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(here.parents[2])})
    assert (done.returncode, done.stderr) == (7, "")


class Captioned(RecordDataset):
    """Films of two classes; row i has the text i % texts."""

    def __init__(self, texts, positives, apply="none"):
        records = [Record(id=f"c{i:03d}", split="train", group=str(i), label=int(i % 4 == 3)) for i in range(40)]
        super().__init__("captioned", records, positives, ClassTable(("fixed", "loose"), (("a",), ("b",)), (30, 10)))
        self.texts, self.balance_settings = texts, BalanceSettings(apply, "weighted", "inverse_freq", 1.0, 0.999, 20.0)

    def sample(self, record, epoch, repeat):
        return {"text_index": int(record.id[1:]) % self.texts, "label": record.label}


@pytest.mark.parametrize("texts, positives, told", [(18, "instance", 1), (19, "instance", 0), (2, "label", 0)])
def test_texts_that_repeat_in_a_batch_are_told_once_where_they_are_taken_for_negatives(texts, positives, told, make, caplog):
    loaders = make(Captioned(texts, positives), batch_size=20)
    loaders.parts["train"] = list(range(20))  # one batch an epoch; one repeat in 20 rows, 5 %, is borne
    for epoch in range(2):
        list(loaders.train(epoch, 0))
    assert caplog.text.count("dataset.positives=instance: 2 of 20 texts of a batch repeat") == told
    assert caplog.text.count("repeat") == told


@pytest.mark.parametrize("apply, rows", [("none", ["fixed     30  0.750   1.000  0.750", "loose     10  0.250   1.000  0.250"]),
                                         ("sampler", ["fixed     30  0.500   1.000  0.500", "loose     10  0.500   1.000  0.500"])])  # fmt: skip
def test_training_begins_with_the_table_of_classes_and_evaluation_does_not(apply, rows, make, caplog):
    loaders = make(Captioned(40, "label", apply))
    with caplog.at_level("INFO"):
        list(loaders.part("valid"))
        assert "count" not in caplog.text
        for epoch in range(2):
            list(loaders.train(epoch, 0))
    assert [message for message in caplog.messages if "share" in message] == ["\n".join(["class  count  drawn  weight  share", *rows])]
