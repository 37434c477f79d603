import errno
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmexpert.engine import best as best_module
from mmexpert.engine import random_state
from mmexpert.engine import step_folder as disk
from mmexpert.engine.checkpoint import Checkpoints
from mmexpert.engine.keep_settings import KeepSettings
from mmexpert.engine.progress import Choice, Progress
from mmexpert.types import ConfigError, NonFiniteError, RunFolderError, StorageError

EPOCHS, STEPS = 3, 4  # a run of 12 steps
METRICS = [0.5, 0.75, 0.25]  # the best epoch is the second: losing the best list then shows
IDENTITY = {"config_hash": "c0ffee", "seed": 3}


class OneRank:
    rank, processes = 0, 1

    def gather_objects(self, thing):
        return [thing]


class Killed(Exception):
    pass


def parts(width=24):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    return module, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)


def checkpoints(folder, ranks=None, keep_last=2, every=3, top_k=2, identity=IDENTITY, patience=3, **more):
    keep = KeepSettings(keep_last=keep_last, save_every_minutes=None, save_every_steps=every)
    return Checkpoints(folder, identity, keep, Choice(None, top_k, None, patience, 0.0), ranks or OneRank(), **more)


def train(folder, stop_after=None, forget=lambda module, optimizer, schedule, progress: None, **settings):
    """The loop in small: dropout, and draws from Python and NumPy as a user's part may make. Returns what must be the same."""
    module, optimizer, schedule = parts()
    store = checkpoints(folder, **settings)
    progress = store.restore(module, optimizer, schedule)
    forget(module, optimizer, schedule, progress)
    while progress.epoch < EPOCHS and progress.patience_left:
        store.restore_random()
        while progress.step_in_epoch < STEPS:
            scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
            loss = (module(torch.full((8, 4), scale)) - progress.step).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.add({"loss_total": loss}, 8)
            progress.advance(8)
            if store.due(progress) or progress.step == stop_after:
                store.save(module, optimizer, schedule, progress)
            if progress.step == stop_after:
                return None
        progress.pending = "evaluate"
        row = {f"train/{name}": value for name, value in progress.epoch_means(lambda tensor: tensor).items()}
        progress.close_epoch(row | {"valid/acc": METRICS[progress.epoch], "valid/nll": METRICS[progress.epoch]}, ["valid/acc", "valid/nll"])
        store.save(module, optimizer, schedule, progress)
    return digest(module, optimizer, progress)


def digest(module, optimizer, progress):
    total = hashlib.sha256()
    for tensor in module.state_dict().values():
        total.update(tensor.numpy().tobytes())
    for state in optimizer.state_dict()["state"].values():
        for tensor in state.values():
            total.update(tensor.numpy().tobytes())
    total.update(json.dumps([progress.history, progress.best, progress.early_stopping, progress.samples]).encode())
    return total.hexdigest()


def in_child(work):
    """Exit status of work in a forked child (minus the signal that killed it): one import of torch serves all of them."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the parent's OpenMP team does not live on in a fork: the child would wait for it for ever
            work()
            os._exit(0)
        except StorageError:
            os._exit(5)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    return train(folder), folder


@pytest.fixture
def finished(never_stopped, tmp_path):
    return Path(shutil.copytree(never_stopped[1], tmp_path / "checkpoints", symlinks=True))


def test_a_run_keeps_the_newest_the_best_and_links_to_both(never_stopped):
    folder = never_stopped[1]
    epochs = ["epoch_01_val_0.5000", "epoch_02_val_0.7500", "epoch_03_val_0.2500"]
    assert names(folder) == ["best", "best_nll", *epochs, "last", "step_00000009", "step_00000012"]
    assert os.readlink(folder / "best") == "epoch_02_val_0.7500"
    assert os.readlink(folder / "best_nll") == "epoch_03_val_0.2500"  # the least: modes go by name
    assert os.readlink(folder / "last") == "step_00000012"
    assert names(folder / "last") == ["manifest.json", "model.safetensors", "rng_0.pt", "state.pt"]


def test_an_epochs_checkpoint_is_its_steps_files_by_hard_links(tmp_path):
    train(tmp_path, keep_last=9)
    for name in disk.MODEL, disk.STATE, disk.MANIFEST, "rng_0.pt":
        assert (tmp_path / "step_00000008" / name).samefile(tmp_path / "epoch_02_val_0.7500" / name)


def test_where_links_are_refused_files_are_copied_and_the_run_goes_on(tmp_path, monkeypatch, never_stopped):
    def refuse(*_):
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "symlink", refuse)
    assert train(tmp_path) == never_stopped[0]
    assert disk.verified(tmp_path / "epoch_02_val_0.7500")["step"] == 8
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("step", [3, 8, 12])  # within an epoch, at its end, both
@pytest.mark.parametrize("phase", ["rng", "model", "state", "manifest", "swap", "rename", "links", "prune"])
def test_a_kill_in_any_phase_of_a_save_loses_nothing(tmp_path, never_stopped, phase, step):
    if phase == "swap" and step != 12:
        pytest.skip("only a position that replaces another of its step swaps")

    def doomed():
        os.environ["MMEXPERT_KILL_AT"] = f"{phase}:{step}"
        train(tmp_path)

    assert in_child(doomed) == -9
    before = {3: None, 8: "step_00000006", 12: "step_00000009"}[step]
    unnamed = phase in ("rng", "model", "state", "manifest")
    if phase == "swap":
        assert disk.recover(tmp_path).name == "step_00000012"
    else:
        found = disk.latest(tmp_path)
        assert (found and found.name) == (before if unnamed else disk.step_name(step))
    assert train(tmp_path) == never_stopped[0]
    assert names(tmp_path) == names(never_stopped[1])


def test_a_run_stopped_after_every_step_is_the_run_never_stopped(tmp_path, never_stopped):
    same = 0
    for step in range(1, EPOCHS * STEPS + 1):
        assert train(tmp_path / str(step), stop_after=step) is None
        same += train(tmp_path / str(step)) == never_stopped[0]
    assert same == 12
    for step in range(1, EPOCHS * STEPS + 1):  # and stopped at all of them in one run
        train(tmp_path / "all", stop_after=step)
    assert train(tmp_path / "all") == never_stopped[0]


def forget_generator(name):
    def forget(*_):
        {"python": lambda: random.seed(99), "numpy": lambda: np.random.seed(99), "torch": lambda: torch.manual_seed(99)}[name]()

    return forget


FORGOTTEN = {
    "optimizer": lambda module, optimizer, schedule, progress: optimizer.load_state_dict(
        torch.optim.AdamW(module.parameters()).state_dict()
    ),
    "schedule": lambda module, optimizer, schedule, progress: schedule.__dict__.update(last_epoch=0),
    "position": lambda module, optimizer, schedule, progress: progress.__dict__.update(step_in_epoch=0),
    "history": lambda module, optimizer, schedule, progress: progress.history.clear(),
    "best": lambda module, optimizer, schedule, progress: progress.best.clear(),
    "early_stopping": lambda module, optimizer, schedule, progress: progress.early_stopping.update(bad_epochs=7, best=0.0),
    "sums": lambda module, optimizer, schedule, progress: progress.sums.clear(),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_resume_without_one_of_its_parts_is_seen_to_differ(tmp_path, never_stopped, what):
    train(tmp_path, stop_after=10)
    assert train(tmp_path, forget=FORGOTTEN[what]) != never_stopped[0]


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_a_resume_without_one_of_the_generators_is_seen_to_differ(tmp_path, never_stopped, monkeypatch, name):
    train(tmp_path, stop_after=7)
    restore = random_state.restore
    monkeypatch.setattr(random_state, "restore", lambda state: (restore(state), forget_generator(name)()))
    assert train(tmp_path) != never_stopped[0]


def test_a_stop_between_resume_and_first_step_keeps_the_generators(tmp_path, never_stopped):
    train(tmp_path, stop_after=7)
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    progress = store.restore(module, optimizer, schedule)
    (tmp_path / "step_00000007" / disk.MODEL).unlink()  # so that the save is not skipped
    store.save(module, optimizer, schedule, progress)
    assert train(tmp_path) == never_stopped[0]


def test_every_flipped_bit_is_found_and_the_file_named(never_stopped, tmp_path):
    folder = Path(shutil.copytree(never_stopped[1] / "step_00000012", tmp_path / "step_00000012"))
    rng = np.random.default_rng(0)
    found = 0
    for trial in range(100):
        path = sorted(folder.iterdir())[trial % 4]
        whole = path.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << rng.integers(8)
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=path.name):
            disk.verified(folder)
        path.write_bytes(whole)
        found += 1
    assert found == 100 and disk.verified(folder)["step"] == 12


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "rng_0.pt", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_the_file(finished, never_stopped, caplog, file, harm):
    path = finished / "step_00000012" / file
    content = path.read_bytes()
    path.unlink()  # its hard links and the original's copy stay whole
    if harm != "delete":
        path.write_bytes({"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-7], "empty": b""}[harm])
    with caplog.at_level(logging.WARNING):
        assert disk.latest(finished).name == "step_00000009"
    assert file in caplog.text
    assert train(finished) == never_stopped[0]
    assert (finished / ".bad-step_00000012").is_dir()


def test_a_stray_file_makes_a_checkpoint_unread(finished):
    (finished / "step_00000012" / "more.pt").write_bytes(b"x")
    assert disk.latest(finished).name == "step_00000009"


def test_a_checkpoint_under_another_steps_name_is_not_trusted(finished):
    (finished / "step_00000009").rename(finished / "step_00000099")
    assert disk.latest(finished).name == "step_00000012"


def test_a_damaged_newest_checkpoint_does_not_push_out_the_good_ones(finished):
    (finished / "step_00000012" / disk.STATE).unlink()
    train(finished, keep_last=1, stop_after=10)
    assert disk.latest(finished).name == "step_00000010"


def test_where_all_checkpoints_are_damaged_nothing_is_started_and_nothing_removed(finished):
    for step in "step_00000009", "step_00000012":
        (finished / step / disk.MODEL).unlink()
    before = names(finished)
    with pytest.raises(RunFolderError, match=r"model.safetensors is missing.*resume=never"):
        train(finished)
    assert names(finished) == before


def test_best_epochs_without_any_step_are_not_swept_away_by_a_fresh_start(finished):
    for step in "step_00000009", "step_00000012":
        shutil.rmtree(finished / step)
    with pytest.raises(RunFolderError, match="epoch_"):
        train(finished)
    assert (finished / "epoch_02_val_0.7500").is_dir()


def test_the_best_folder_is_the_first_monitors_and_a_damaged_one_is_refused(finished):
    assert checkpoints(finished).best_folder().name == "epoch_02_val_0.7500"
    (finished / "epoch_02_val_0.7500" / disk.MODEL).unlink()
    with pytest.raises(RunFolderError, match="model.safetensors is missing"):
        checkpoints(finished).best_folder()


def test_without_validation_the_best_is_the_latest_and_without_anything_there_is_none(tmp_path):
    assert checkpoints(tmp_path / "checkpoints").best_folder() is None
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path / "checkpoints")
    progress = store.restore(module, optimizer, schedule)
    progress.advance(8)
    store.save(module, optimizer, schedule, progress)
    assert store.best_folder().name == "step_00000001"


@pytest.mark.parametrize("file", ["rng_0.pt", "model.safetensors", "state.pt"])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_of_a_new_one(tmp_path, file):
    def save(limit=None, step=1):
        module, optimizer, schedule = parts(width={"rng_0.pt": 8, "model.safetensors": 4000, "state.pt": 4000}[file])
        module(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        store = checkpoints(tmp_path)
        progress = store.restore(module, optimizer, schedule)
        progress.step = step
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores SIGXFSZ: a write fails with EFBIG
        store.save(module, optimizer, schedule, progress)

    save()
    limit = (tmp_path / "step_00000001" / file).stat().st_size - 1
    assert in_child(lambda: save(limit, 2)) == StorageError.exit_code
    assert names(tmp_path) == ["last", "step_00000001"]
    assert disk.verified(tmp_path / "step_00000001")["step"] == 1


def test_a_checkpoint_that_would_not_fit_is_not_begun(tmp_path, monkeypatch):
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(StorageError, match=r"needs \d+ bytes, 1000 are free"):
        store.save(module, optimizer, schedule, Progress(store.choice, step=1))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("writer", "error"),
    [("save_file", "SafetensorError"), ("torch.save", "RuntimeError"), ("fsync_path", "OSError")],
)
def test_every_kind_of_write_error_becomes_a_storage_error(tmp_path, monkeypatch, writer, error):
    kinds = {
        "SafetensorError": disk.SafetensorError("I/O error"),
        "RuntimeError": RuntimeError("unexpected pos 64 vs 0"),
        "OSError": OSError(errno.EROFS, "Read-only file system"),
    }

    def fail(*_, **__):
        raise kinds[error]

    monkeypatch.setattr(torch if writer == "torch.save" else disk, writer.split(".")[-1], fail)
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    with pytest.raises(StorageError, match="still stands"):
        store.save(module, optimizer, schedule, Progress(store.choice, step=1))
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder belongs")
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path / "checkpoints")
    with pytest.raises(StorageError):
        store.save(module, optimizer, schedule, Progress(store.choice, step=1))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    with torch.no_grad():
        module[2].weight[0, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 1.*2.weight"):
        store.save(module, optimizer, schedule, Progress(store.choice, step=1))
    assert names(tmp_path) == []


def test_a_second_save_at_one_position_is_skipped_and_one_after_the_epochs_end_is_not(tmp_path):
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    progress = Progress(store.choice)
    progress.advance(8)
    store.save(module, optimizer, schedule, progress)
    first = (tmp_path / "step_00000001" / disk.MANIFEST).stat()
    store.save(module, optimizer, schedule, progress)
    assert (tmp_path / "step_00000001" / disk.MANIFEST).stat() == first
    progress.close_epoch({"valid/acc": 0.5}, ["valid/acc"])
    store.save(module, optimizer, schedule, progress)
    assert checkpoints(tmp_path).restore(*parts()).epoch == 1
    assert names(tmp_path) == ["best", "epoch_01_val_0.5000", "last", "step_00000001"]


def test_damage_at_the_step_of_a_save_is_put_aside_and_written_again(tmp_path):
    module, optimizer, schedule = parts()
    store = checkpoints(tmp_path)
    progress = Progress(store.choice, step=1)
    store.save(module, optimizer, schedule, progress)
    (tmp_path / "step_00000001" / disk.STATE).write_bytes(b"")
    store.save(module, optimizer, schedule, progress)
    assert disk.verified(tmp_path / "step_00000001")["step"] == 1
    assert (tmp_path / ".bad-step_00000001").is_dir()


def test_another_runs_checkpoint_is_refused_by_the_key_that_differs(finished):
    with pytest.raises(RunFolderError, match="config_hash was 'c0ffee', now it is 'decaf'"):
        train(finished, identity=IDENTITY | {"config_hash": "decaf"})
    with pytest.raises(RunFolderError, match="batch_size was None, now it is 64"):
        train(finished, identity=IDENTITY | {"batch_size": 64})


def test_other_library_versions_are_only_a_warning(tmp_path, never_stopped, caplog):
    train(tmp_path, stop_after=7, identity=IDENTITY | {"versions": {"torch": "1.0"}})
    assert train(tmp_path, identity=IDENTITY | {"versions": {"torch": "2.0"}}) == never_stopped[0]
    assert "'1.0'" in caplog.text and "'2.0'" in caplog.text


def test_an_optimizer_over_other_parameters_is_refused_by_name(tmp_path):
    train(tmp_path, stop_after=2)
    module, _, _ = parts()
    swapped = torch.optim.AdamW(list(module.parameters())[::-1], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(swapped, 12)
    with pytest.raises(RunFolderError, match="order or groups"):
        checkpoints(tmp_path).restore(module, swapped, schedule)
    fewer = torch.optim.AdamW(list(module.parameters())[1:], lr=0.01)
    with pytest.raises(RunFolderError, match="0.weight"):
        checkpoints(tmp_path).restore(module, fewer, torch.optim.lr_scheduler.CosineAnnealingLR(fewer, 12))


def test_a_model_of_another_shape_is_refused_by_name_and_shapes(tmp_path):
    train(tmp_path, stop_after=2)
    with pytest.raises(RunFolderError, match=r"0.weight: stored \[24, 4\], expected \[5, 4\]"):
        checkpoints(tmp_path).restore(*parts(width=5))


def test_tied_weights_are_stored_once_and_load_into_both_names(tmp_path):
    def tied():
        module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        module["b"].weight = module["a"].weight
        return module

    module, other = tied(), tied()
    weights = disk.weights_of(module)
    assert sorted(weights) == ["a.bias", "a.weight", "b.bias"]
    disk.write_weights(tmp_path / disk.MODEL, weights)
    assert disk.load_weights(other, load_file(tmp_path / disk.MODEL)) == ([], [])
    assert torch.equal(other["b"].weight, module["a"].weight)
    assert disk.load_weights(nn.Linear(3, 3), {"weight": torch.zeros(3, 3), "more": torch.zeros(1)}) == (["bias"], ["more"])


def test_a_state_that_needs_unpickling_is_refused(tmp_path):
    torch.save({"path": Path("/etc")}, tmp_path / "foreign.pt")
    with pytest.raises(RunFolderError, match="more than plain containers"):
        disk.read_state(tmp_path / "foreign.pt")


def test_numpy_scalars_and_paths_in_a_state_load_again(tmp_path):
    disk.write_state(tmp_path / "state.pt", {"a": np.float64(0.5), "b": [np.int32(3)], "c": Path("x"), "d": torch.ones(2)})
    state = disk.read_state(tmp_path / "state.pt")
    assert (state["a"], state["b"], state["c"]) == (0.5, [3], "x") and state["d"].tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"deep\[1\] is a set"):
        disk.write_state(tmp_path / "state.pt", {"deep": [1, {2}]})


def test_top_k_keeps_the_best_and_minus_one_keeps_all(tmp_path):
    train(tmp_path / "one", top_k=1)
    assert [n for n in names(tmp_path / "one") if n.startswith("epoch")] == ["epoch_02_val_0.7500", "epoch_03_val_0.2500"]  # acc, nll
    train(tmp_path / "all", top_k=-1, keep_last=1)
    assert len([n for n in names(tmp_path / "all") if n.startswith("epoch")]) == 3
    assert len([n for n in names(tmp_path / "all") if n.startswith("step")]) == 1


def test_what_a_kill_left_behind_is_swept_up_at_the_next_start(finished, never_stopped):
    (finished / ".tmp-step_00000013").mkdir()
    (finished / ".tmp-best").symlink_to("nowhere")
    shutil.rmtree(finished / "epoch_03_val_0.2500")  # killed between rename and links
    (finished / "best").unlink()
    (finished / "epoch_07_val_0.9999").mkdir()  # in no list
    assert train(finished) == never_stopped[0]
    assert names(finished) == names(never_stopped[1])


def test_links_of_further_monitors_have_plain_names():
    assert best_module.link_names(["valid/R@1", "valid/a/b c", "valid/arithmetic_mean"]) == {
        "valid/R@1": "best",
        "valid/a/b c": "best_a_b_c",
        "valid/arithmetic_mean": "best_arithmetic_mean",
    }


def test_settings_that_keep_nothing_are_refused():
    with pytest.raises(ConfigError, match="keep_last=0"):
        KeepSettings(0, None, None)
    with pytest.raises(ConfigError, match="save_every_minutes=0"):
        KeepSettings(1, 0, None)


def test_minutes_are_due_once_the_clock_says_so_and_steps_at_their_multiples(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: -1e9)  # a clock set back
    store = Checkpoints(tmp_path, {}, KeepSettings(1, 15, 5), Choice(None, 1, None, None, 0.0), OneRank())
    assert not store.minutes_due()
    now[0] += 15 * 60
    assert store.minutes_due()
    store.save(*parts(), Progress(store.choice, step=1))
    assert not store.minutes_due()
    assert [step for step in range(1, 12) if store.due(Progress(store.choice, step=step))] == [5, 10]


class Group:
    """Ranks as threads."""

    def __init__(self, processes):
        self.processes, self.barrier, self.board = processes, threading.Barrier(processes, timeout=20), [None] * processes

    def seen_by(self, rank):
        group = self

        class Member:
            processes = group.processes

            def gather_objects(self, thing):
                group.board[self.rank] = thing
                group.barrier.wait()
                gathered = list(group.board)
                group.barrier.wait()
                return gathered

        member = Member()
        member.rank = rank
        return member

    def run(self, work):
        outcomes = [None] * self.processes

        def one(rank):
            try:
                outcomes[rank] = work(self.seen_by(rank))
            except (StorageError, RunFolderError) as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.processes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


def step_on(folder, ranks, step=1, **more):
    module, optimizer, schedule = parts()
    store = checkpoints(folder, ranks, **more)
    progress = store.restore(module, optimizer, schedule)
    progress.add({"loss_total": torch.tensor(float(ranks.rank))}, 4)
    progress.step = step
    store.save(module, optimizer, schedule, progress)
    return store, progress


def test_two_ranks_write_one_checkpoint_with_a_file_each(tmp_path):
    Group(2).run(lambda ranks: step_on(tmp_path, ranks))
    assert names(tmp_path / "last") == ["manifest.json", "model.safetensors", "rng_0.pt", "rng_1.pt", "state.pt"]
    assert disk.verified(tmp_path / "last")["processes"] == 2
    outcomes = Group(2).run(lambda ranks: checkpoints(tmp_path, ranks).restore(*parts()))
    assert [progress.epoch_means(lambda tensor: tensor)["loss_total"] for progress in outcomes] == [0.0, 1.0]


def test_a_write_error_on_one_rank_is_raised_on_all_and_the_old_checkpoint_stands(tmp_path, monkeypatch):
    Group(2).run(lambda ranks: step_on(tmp_path, ranks))
    write = disk.write_state

    def fail(path, state):
        if path.name == "rng_1.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, state)

    monkeypatch.setattr(disk, "write_state", fail)
    outcomes = Group(2).run(lambda ranks: step_on(tmp_path, ranks, step=2))
    assert [type(outcome) for outcome in outcomes] == [StorageError, StorageError]
    assert all("No space left" in str(outcome) for outcome in outcomes)
    assert names(tmp_path) == ["last", "step_00000001"]


def test_damage_seen_by_the_first_rank_is_raised_on_all(tmp_path):
    Group(2).run(lambda ranks: step_on(tmp_path, ranks))
    (tmp_path / "step_00000001" / "rng_1.pt").unlink()
    outcomes = Group(2).run(lambda ranks: step_on(tmp_path, ranks))
    assert all(isinstance(outcome, RunFolderError) and "rng_1.pt is missing" in str(outcome) for outcome in outcomes)


def test_another_number_of_processes_needs_leave_and_is_marked_inexact(tmp_path, caplog):
    Group(2).run(lambda ranks: step_on(tmp_path, ranks))
    with pytest.raises(RunFolderError, match=r"2 process\(es\), now there are 1.*allow_world_change"):
        step_on(tmp_path, OneRank())
    store = checkpoints(tmp_path, allow_world_change=True)
    progress = store.restore(*parts())
    assert (store.exact, store.resumed_step) == (False, 1)
    assert progress.epoch_means(lambda tensor: tensor) == {"loss_total": 0.5}  # the sums of both ranks
    first = torch.rand(3)
    checkpoints(tmp_path, allow_world_change=True).restore(*parts())
    assert torch.equal(torch.rand(3), first)  # the new streams are a function of seed, step and rank


def test_generators_come_back_exactly_with_a_gaussian_held_back():
    random.gauss(0, 1)
    np.random.randn()
    state = random_state.capture()
    draws = [random.gauss(0, 1), np.random.randn(), float(torch.rand(1))]
    random_state.restore(state)
    assert [random.gauss(0, 1), np.random.randn(), float(torch.rand(1))] == draws
