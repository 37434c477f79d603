import errno
import fcntl
import json
import os
import signal
import socket

import pytest

from mmexpert.engine import lock
from mmexpert.engine.lock import RunLock, holder
from mmexpert.types import RunFolderError, StorageError


class Child:
    """A forked process that does work and then waits for release(); answer is what work returned, as text."""

    def __init__(self, work):
        answer, self.hold = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.write(answer[1], str(work()).encode())
            except RunFolderError as error:
                os.write(answer[1], f"refused: {error}".encode())
            os.read(self.hold[0], 1)
            os._exit(0)
        os.close(answer[1])
        os.close(self.hold[0])
        self._answer = answer[0]

    def answer(self):
        return os.read(self._answer, 10_000).decode()

    def end(self, kill=False):
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        else:
            os.write(self.hold[1], b".")  # closing would not do: children forked later hold this end too
        os.close(self.hold[1])
        os.waitpid(self.pid, 0)
        os.close(self._answer)


def test_a_second_process_is_refused_with_pid_host_and_start(tmp_path):
    with RunLock(tmp_path) as held:
        child = Child(lambda: RunLock(tmp_path).acquire())
        answer = child.answer()
        child.end()
        assert answer.startswith("refused")
        for part in (str(os.getpid()), socket.gethostname(), held._owner["start"]):
            assert part in answer


def test_of_two_runs_that_start_together_exactly_one_gets_the_folder(tmp_path):
    races = 0
    for race in range(20):
        folder = tmp_path / str(race)
        both = [Child(lambda folder=folder: RunLock(folder).acquire() and "got it") for _ in range(2)]
        answers = sorted(child.answer() for child in both)
        for child in both:
            child.end()
        races += answers[0] == "got it" and answers[1].startswith("refused")
    assert races == 20


def test_the_lock_of_a_killed_owner_is_free_though_its_worker_lives_on(tmp_path):
    def owner_with_worker():
        RunLock(tmp_path).acquire()
        worker = os.fork()
        if worker == 0:
            signal.pause()
        return worker

    child = Child(owner_with_worker)
    worker = int(child.answer())
    with pytest.raises(RunFolderError, match=str(child.pid)):
        RunLock(tmp_path).acquire()
    child.end(kill=True)
    os.kill(worker, 0)  # it is still there
    with RunLock(tmp_path):
        pass
    os.kill(worker, signal.SIGKILL)


def test_the_lock_is_free_after_release_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path):
            pass
    child = Child(lambda: RunLock(tmp_path).acquire() and "got it")
    assert child.answer() == "got it"
    child.end()


def test_one_process_can_not_take_a_folder_twice(tmp_path):
    with RunLock(tmp_path):
        # lockf alone would let it, and drop the first lock at the second's close
        with pytest.raises(RunFolderError, match=str(os.getpid())):
            RunLock(tmp_path / ".").acquire()
        child = Child(lambda: RunLock(tmp_path).acquire())
        assert child.answer().startswith("refused")
        child.end()


def test_a_folder_renamed_while_locked_frees_its_old_name(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder):
        folder.rename(tmp_path / "run.1")
    with RunLock(folder):
        assert holder(folder)["pid"] == os.getpid()


def test_the_holder_is_told_without_taking_or_dropping_the_lock(tmp_path):
    assert holder(tmp_path) is None
    child = Child(lambda: RunLock(tmp_path).acquire() and "got it")
    assert child.answer() == "got it"
    for _ in range(2):
        assert holder(tmp_path)["pid"] == child.pid
    with pytest.raises(RunFolderError):
        RunLock(tmp_path).acquire()
    child.end(kill=True)
    assert holder(tmp_path) is None
    with RunLock(tmp_path):
        assert holder(tmp_path)["pid"] == os.getpid()
        child = Child(lambda: RunLock(tmp_path).acquire())
        assert child.answer().startswith("refused")  # the owner's own look did not drop it
        child.end()


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_where_the_file_system_has_no_locks_an_exclusive_file_stands_for_them(tmp_path, without_locks):
    with RunLock(tmp_path):
        child = Child(lambda: RunLock(tmp_path).acquire())
        assert child.answer().startswith("refused") and holder(tmp_path)["pid"] == os.getpid()
        child.end()
    child = Child(lambda: RunLock(tmp_path).acquire() and "got it")
    assert child.answer() == "got it"
    child.end(kill=True)
    with RunLock(tmp_path):  # taken over from the dead
        pass
    assert holder(tmp_path) is None


@pytest.mark.parametrize("content", [{"pid": 1, "host": "another-machine", "start": "then"}, {"pid": 1, "host": None}, "no JSON"])
def test_an_exclusive_file_of_a_living_or_unknown_owner_is_left_alone(tmp_path, without_locks, content):
    (tmp_path / ".lock-exclusive").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RunFolderError, match="in use"):
        RunLock(tmp_path).acquire()
    assert not lock._held


def test_a_folder_that_can_not_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match="run"):
        RunLock(tmp_path / "run").acquire()
