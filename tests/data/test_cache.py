"""A cache folder is there whole and verified, or not at all, whoever asks, waits, or is killed meanwhile."""

import json
import logging
import multiprocessing
import os
import signal
import time

import pytest

from mmexpert.data.cache import MANIFEST, cached_folder, content_name, damage
from mmexpert.types import StorageError

FORK = multiprocessing.get_context("fork")


def fill(folder):
    (folder / "a.bin").write_bytes(b"first")
    (folder / "b.bin").write_bytes(b"second")


def forbidden(folder):
    raise AssertionError("made again")


def test_a_whole_folder_is_taken_as_it_is(tmp_path):
    made = cached_folder(tmp_path / "deep" / "set-1", fill)
    assert damage(made) == "" and sorted(json.loads((made / MANIFEST).read_text())) == ["a.bin", "b.bin"]
    assert cached_folder(made, forbidden) == made


def cut(folder):
    (folder / "a.bin").write_bytes(b"firs")


def flip(folder):
    (folder / "b.bin").write_bytes(b"sec0nd")


@pytest.mark.parametrize("harm, told", [
    (cut, "a.bin has another sha256"),
    (flip, "b.bin has another sha256"),
    (lambda folder: (folder / "b.bin").unlink(), "b.bin is missing"),
    (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} can not be read"),
    (lambda folder: (folder / MANIFEST).write_text("{"), f"{MANIFEST} can not be read"),
    (lambda folder: (folder / MANIFEST).write_text("[1]"), f"{MANIFEST} can not be read"),
])  # fmt: skip
def test_what_is_damaged_is_named_and_made_again(tmp_path, caplog, harm, told):
    made = cached_folder(tmp_path / "set-1", fill)
    harm(made)
    cached_folder(made, fill)
    assert told in caplog.text and damage(made) == "" and (made / "a.bin").read_bytes() == b"first"


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 10 s")


def stuck(folder):
    fill(folder)
    (folder.parent / "begun").touch()
    signal.pause()


def test_a_writer_killed_with_all_files_written_leaves_nothing_that_is_read(tmp_path):
    writer = FORK.Process(target=cached_folder, args=(tmp_path / "set-1", stuck))
    writer.start()
    until((tmp_path / "begun").exists)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert not (tmp_path / "set-1").exists() and len(list(tmp_path.glob("set-1.tmp-*"))) == 1
    made = cached_folder(tmp_path / "set-1", lambda folder: (folder / "whole").write_text("y"))
    assert sorted(path.name for path in made.iterdir()) == [MANIFEST, "whole"] and not list(tmp_path.glob("*.tmp-*"))


def slow(folder):
    (folder.parent / "begun").touch()
    until((folder.parent / "waited_for").exists)
    with open(folder.parent / "count", "a") as count:
        count.write("x")
    fill(folder)


def test_who_comes_second_says_that_it_waits_and_makes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    writer = FORK.Process(target=cached_folder, args=(tmp_path / "set-1", slow))
    writer.start()
    until((tmp_path / "begun").exists)
    assert not (tmp_path / "set-1").exists()
    log = logging.getLogger("mmexpert.data.cache")
    answer = logging.Handler()
    answer.emit = lambda record: (tmp_path / "waited_for").touch()  # the writer goes on once the second has said that it waits
    log.addHandler(answer)
    cached_folder(tmp_path / "set-1", forbidden)
    log.removeHandler(answer)
    writer.join()
    assert "waiting for another process" in caplog.text and (tmp_path / "count").read_text() == "x"


def test_a_failure_while_making_is_passed_on_and_a_disk_error_says_what_to_do(tmp_path):
    with pytest.raises(AssertionError, match="made again"):
        cached_folder(tmp_path / "set-1", forbidden)
    assert not (tmp_path / "set-1").exists()

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="set-1.*No space left.*dataset.cache_dir"):
        cached_folder(tmp_path / "set-1", full)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        cached_folder(tmp_path / "file" / "set-1", fill)


def test_the_name_follows_every_parameter_and_no_order():
    name = content_name("radar_sim", {"seed": 1, "radar": {"noise": 0.1, "mti": False}})
    assert name == content_name("radar_sim", {"radar": {"mti": False, "noise": 0.1}, "seed": 1})
    assert name != content_name("radar_sim", {"seed": 2, "radar": {"noise": 0.1, "mti": False}})
    assert name != content_name("radar_sim", {"seed": 1, "radar": {"noise": 0.2, "mti": False}})
    prefix, digest = name.split("-")
    assert prefix == "radar_sim" and len(digest) == 16 and int(digest, 16) >= 0
