"""Training runs as processes of their own, one per device at a time; a failure does not stop the rest."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PROGRAM = (sys.executable, "-m", "mmexpert.train")
_POLL_S = 0.1


@dataclass(frozen=True)
class Job:
    """label: first part of the log's name. overrides: of mmexpert.train. device: the one that its configuration asks for, or None."""

    label: str
    overrides: list[str]
    device: str | None


@dataclass
class Run:
    """A job that was started. code: its exit status, None while it runs; seconds: of wall time."""

    job: Job
    device: str
    log: Path
    process: subprocess.Popen
    started: float
    code: int | None = None
    seconds: float = 0.0

    def state(self) -> str:
        """One word or two for the table."""
        return "stopped" if self.code is None else "done" if self.code == 0 else f"failed ({self.code})"


def run_jobs(jobs: list[Job], devices: list[str] | None, folder: Path) -> list[Run]:
    """Runs all jobs and returns them in the order of their starts. devices: who takes the next job; None: each job's own device.

    Logs go to folder/{label}_gpu{device}_{timestamp}.log. A stop signal (TERM, Ctrl-C) is handed on, so that the runs save, and
    nothing new starts: what has not ended by itself is then without a code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, runs = list(jobs), []
    places = devices or sorted({job.device or "0" for job in jobs})
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or any(run.code is None for run in runs):
            busy = {run.device for run in runs if run.code is None}
            for device in places:
                mine = [job for job in waiting if devices or (job.device or "0") == device]
                if mine and device not in busy:
                    waiting.remove(mine[0])
                    runs.append(_start(mine[0], device, folder))
            time.sleep(_POLL_S)
            for run in runs:
                _look(run)
    except KeyboardInterrupt:
        print("stopping: the runs save and end", flush=True)
        for run in runs:
            if run.code is None:
                run.process.terminate()
                run.process.wait()
                run.seconds = time.monotonic() - run.started
    finally:
        signal.signal(signal.SIGTERM, before)
    return runs


def table(jobs: list[Job], runs: list[Run]) -> str:
    """A row per job, in the order of the configurations; those that never started too."""
    rows = ["| configuration | device | state | seconds | log |", "|---|---|---|---|---|"]
    for job in jobs:
        run = next((run for run in runs if run.job is job), None)
        cells = [run.device, run.state(), f"{run.seconds:.0f}", str(run.log)] if run else ["", "not started", "", ""]
        rows.append(f"| {' | '.join([job.label, *cells])} |")
    return "\n".join(rows)


def _start(job: Job, device: str, folder: Path) -> Run:
    log = folder / f"{job.label}_gpu{device}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
    with log.open("ab") as out:  # the child keeps its own handle
        process = subprocess.Popen(
            [*PROGRAM, *job.overrides],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # else Ctrl-C reaches it twice, and the second one cuts its save short
        )
    print(f"gpu {device}: {job.label} starts, {log}", flush=True)
    return Run(job, device, log, process, time.monotonic())


def _look(run: Run) -> None:
    """Notes the end of a run, once."""
    if run.code is None and (code := run.process.poll()) is not None:
        run.code, run.seconds = code, time.monotonic() - run.started
        print(f"gpu {run.device}: {run.job.label} {run.state()}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
