"""Processes on slots: never more than there are, each sees its device, failures and stops as promised. The jobs here are one-liners."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmexpert.job_queue import Job, Slot, find_slots, run_queue, visible_gpus
from mmexpert.types import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def job(folder: Path, name: str, shell: str) -> Job:
    return Job(name, ["/bin/sh", "-c", shell], folder / name / "console.log")


def run(jobs: list[Job], slots: list[Slot], retries: int = 0) -> list[str]:
    ended: list[str] = []
    run_queue(jobs, slots, 5.0, retries, lambda one: ended.append(one.label))
    return ended


def test_six_jobs_on_two_slots_are_never_more_than_two_and_each_sees_its_device(tmp_path):
    spans = "date +%s.%N; echo device=$CUDA_VISIBLE_DEVICES; sleep 0.3; date +%s.%N"
    jobs = [job(tmp_path, f"job{i}", spans) for i in range(6)]
    ended = run(jobs, find_slots(["6", "7"], 1, 1, 1))
    assert sorted(ended) == [f"job{i}" for i in range(6)] and all(one.code == 0 for one in jobs)
    times, devices = [], []
    for one in jobs:
        head, began, device, left = one.log_file.read_text().splitlines()
        assert device.removeprefix("device=") == head.split(",")[0].removeprefix("=== gpu ") and head.split(", ")[1] == "attempt 1"
        devices.append(device)
        times += [(float(began), 1), (float(left), -1)]
    assert set(devices) == {"device=6", "device=7"}
    running, most = 0, 0
    for _, change in sorted(times):
        running += change
        most = max(most, running)
    assert most == 2


def test_a_failed_and_a_killed_job_do_not_stop_the_others(tmp_path):
    jobs = [job(tmp_path, "fails", "exit 3"), job(tmp_path, "killed", "kill -9 $$"), job(tmp_path, "works", "exit 0")]
    assert sorted(run(jobs, find_slots([], 1, 1, 1))) == ["fails", "killed", "works"]
    assert [one.code for one in jobs] == [3, -9, 0]


def test_memory_and_lost_processes_are_tried_again_and_nothing_else_is(tmp_path):
    once = "if [ -e {0} ]; then exit 0; fi; touch {0}; exit {1}"
    jobs = [job(tmp_path, f"code{code}", once.format(tmp_path / f"seen{code}", code)) for code in (7, 8, 3)]
    run(jobs, find_slots([], 1, 1, 3), retries=1)
    assert [(one.attempts, one.code) for one in jobs] == [(2, 0), (2, 0), (1, 3)]
    assert jobs[0].log_file.read_text().count("attempt") == 2
    stubborn = job(tmp_path, "stubborn", "exit 7")
    assert run([stubborn], find_slots([], 1, 1, 1), retries=2) == ["stubborn"] and (stubborn.attempts, stubborn.code) == (3, 7)


def test_what_a_dead_job_leaves_behind_in_its_group_is_ended(tmp_path):
    orphan = job(tmp_path, "orphan", f"sleep 60 & echo $! > {tmp_path / 'pid'}; exit 1")
    run([orphan], find_slots([], 1, 1, 1))
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the grandchild lives on"
        time.sleep(0.02)


STOPPED = """
    import json, logging, sys
    from pathlib import Path
    from mmexpert.job_queue import Job, find_slots, run_queue
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    obeys = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    jobs = [Job(f"job{i}", ["/bin/sh", "-c", text], Path(f"job{i}.log")) for i, text in enumerate([obeys, deaf, "echo ready"])]
    try:
        run_queue(jobs, find_slots([], 1, 1, 2), float(sys.argv[1]), 0, lambda job: None)
    finally:
        print(json.dumps([job.code for job in jobs]), flush=True)
"""


@pytest.mark.parametrize("signals, grace", [([signal.SIGTERM], 0.5), ([signal.SIGINT, signal.SIGINT], 60)])
def test_a_stop_signal_lets_the_jobs_save_kills_what_is_deaf_and_starts_nothing_new(tmp_path, signals, grace):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STOPPED), str(grace)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    logs = [tmp_path / "job0.log", tmp_path / "job1.log"]
    deadline = time.monotonic() + 20
    while not all(path.exists() and "ready" in path.read_text() for path in logs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signals[0]
    assert "[143, -9, null]" in out and "1 jobs have not begun; the same command continues" in out
    assert "saved" in logs[0].read_text() and not (tmp_path / "job2.log").exists()


def test_slots_are_blocks_of_devices_shared_by_as_many_jobs_as_asked():
    assert [slot.devices for slot in find_slots([0, 1, 2, 3], 2, 1, 1)] == [("0", "1"), ("2", "3")]
    assert [slot.devices for slot in find_slots(["GPU-a", "GPU-b"], 1, 2, 1)] == [("GPU-a",), ("GPU-b",), ("GPU-a",), ("GPU-b",)]
    assert [slot.name for slot in find_slots([], 1, 1, 2)] == ["cpu slot 0", "cpu slot 1"]


def test_without_a_list_the_visible_devices_are_taken(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus() == ["3", "5"] and [slot.devices for slot in find_slots(None, 1, 1, 1)] == [("3",), ("5",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_nvidia_smi_is_asked_where_nothing_is_set(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_the_cores_are_shared_out_and_a_users_own_number_of_threads_stays(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot.environment()["OMP_NUM_THREADS"] for slot in find_slots([], 1, 1, 4)] == ["4"] * 4
    assert find_slots([0, 1, 2, 3], 2, 1, 1)[0].environment()["OMP_NUM_THREADS"] == "4"  # two jobs of two processes
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert find_slots([], 1, 1, 4)[0].environment()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("numbers, said", [((2, 1, 1), "no GPU"), ((0, 1, 1), "gpus_per_job=0"), ((1, 1, 0), "cpu_slots=0")])
def test_slots_that_can_not_be_are_refused(numbers, said):
    with pytest.raises(ConfigError, match=said):
        find_slots([], *numbers)
    with pytest.raises(ConfigError, match="there are 1 GPUs: 4"):
        find_slots([4], 2, 1, 1)
