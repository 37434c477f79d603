"""Jobs as processes of their own on a number of slots; a stop signal ends them all. Imports the standard library only."""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
PROGRAM = ("-m", "mmexpert.train")
_POLL_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_RETRIED = (7, 8)  # memory exhausted, a process lost: what another attempt may not meet again


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time. devices: entries of its CUDA_VISIBLE_DEVICES, none on the CPU; threads: its share of the cores."""

    number: int
    devices: tuple[str, ...]
    threads: int

    @property
    def name(self) -> str:
        """For lines of the log: `gpu 0,1` or `cpu slot 1`."""
        return f"gpu {','.join(self.devices)}" if self.devices else f"cpu slot {self.number}"

    def environment(self) -> dict[str, str]:
        """Of a job's process. OMP_NUM_THREADS that the user has set stays."""
        return {"OMP_NUM_THREADS": str(self.threads)} | os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)}


@dataclass
class Job:
    """command: of one attempt. log_file: gets the output of all. code: exit status of the last attempt, None before its end."""

    label: str
    command: list[str]
    log_file: Path
    attempts: int = 0
    code: int | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0


def find_slots(gpus: Sequence[object] | None, gpus_per_job: int, jobs_per_gpu: int, cpu_slots: int) -> list[Slot]:
    """The slots of this machine. gpus: as CUDA_VISIBLE_DEVICES names them; None: all that are visible. Without a GPU, cpu_slots slots.

    Raises ConfigError for numbers below 1 and for fewer GPUs than a job needs.
    """
    for key, value in (("gpus_per_job", gpus_per_job), ("jobs_per_gpu", jobs_per_gpu), ("cpu_slots", cpu_slots)):
        if value < 1:
            raise ConfigError(f"hydra.launcher.{key}={value}: 1 or more")
    names = visible_gpus() if gpus is None else [str(gpu) for gpu in gpus]
    cores = len(os.sched_getaffinity(0))
    if not names:
        if gpus_per_job > 1:
            raise ConfigError(f"hydra.launcher.gpus_per_job={gpus_per_job}, but there is no GPU: leave it out")
        return [Slot(number, (), max(1, cores // cpu_slots)) for number in range(cpu_slots)]
    if len(names) < gpus_per_job:
        raise ConfigError(f"hydra.launcher.gpus_per_job={gpus_per_job}, but there are {len(names)} GPUs: {', '.join(names)}")
    if left := len(names) % gpus_per_job:
        log.warning("%d of %d GPUs are not used: they do not fill a slot of %d", left, len(names), gpus_per_job)
    blocks = [tuple(names[i : i + gpus_per_job]) for i in range(0, len(names) - left, gpus_per_job)]
    places = blocks * jobs_per_gpu  # every device gets a job before any gets a second one
    return [Slot(number, devices, max(1, cores // (len(places) * gpus_per_job))) for number, devices in enumerate(places)]


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: its own entries where it is set, else what nvidia-smi lists; none without a GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        query = [program, "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi gives no list (%s): jobs run on the CPU; name devices by hydra.launcher.gpus=[0]", error)
        return []
    return [line.strip() for line in listed.splitlines() if line.strip()]


def run_queue(jobs: Sequence[Job], slots: Sequence[Slot], grace_s: float, retries: int, on_end: Callable[[Job], None]) -> None:
    """Runs every job, one a slot at a time, in their order; on_end is called at each last end.

    A stop signal: TERM to every job's process group, KILL to what is left after grace_s seconds or at a second signal, then SystemExit
    with 128 + the signal's number; nothing new starts. Exit codes 7 and 8 are tried again, so many times.
    """
    waiting, running = list(jobs), {}
    with _stop_signals() as received:
        try:
            while running or (waiting and not received):
                for slot in slots:
                    if waiting and slot not in running and not received:
                        running[slot] = _start(waiting.pop(0), slot)
                time.sleep(_POLL_S)
                for slot, job in list(running.items()):
                    if not _look(job, slot):
                        continue
                    del running[slot]
                    if job.code in _RETRIED and job.attempts <= retries and not received:
                        waiting.append(job)
                    else:
                        on_end(job)
                if received and running:
                    _stop(running, grace_s, received, on_end)
        finally:
            for job in running.values():  # none, unless an error ends the queue
                _signal(job, signal.SIGTERM)
    if received:
        left = f"{len(waiting)} jobs have not begun; the same command continues" if waiting else "the same command continues"
        log.info("stopped by signal %d: %s", received[0], left)
        raise SystemExit(128 + received[0])


def _start(job: Job, slot: Slot) -> Job:
    job.attempts, job.code, job.started = job.attempts + 1, None, time.monotonic()
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log_file, "ab") as output:
        output.write(f"=== {slot.name}, attempt {job.attempts}, {datetime.now().astimezone().isoformat(timespec='seconds')}\n".encode())
        output.flush()
        job.process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=slot.environment(),
            start_new_session=True,  # Ctrl-C reaches it through _stop alone: twice would cut its save short
        )
    again = f", attempt {job.attempts}" if job.attempts > 1 else ""
    log.info("%s: %s starts%s, process %d, %s", slot.name, job.label, again, job.process.pid, job.log_file)
    return job


def _look(job: Job, slot: Slot) -> bool:
    """Whether a job's process has ended; if so, takes its code and ends what it has left behind in its group."""
    if os.waitid(os.P_PID, job.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return False
    _signal(job, signal.SIGKILL)  # before it is reaped: until then its number can be nobody else's
    job.code = job.process.wait()
    seconds = time.monotonic() - job.started
    log.info("%s: %s %s after %.0f s", slot.name, job.label, "is done" if job.code == 0 else f"ended with code {job.code}", seconds)
    return True


def _stop(running: dict[Slot, Job], grace_s: float, received: list[int], on_end: Callable[[Job], None]) -> None:
    """Ends all running jobs: they save and leave, or are killed."""
    log.info("stopping %d jobs: they save and end, at most %g s; a second signal kills them", len(running), grace_s)
    for job in running.values():
        _signal(job, signal.SIGTERM)
    deadline, killed = time.monotonic() + grace_s, False
    while running:
        if not killed and (time.monotonic() > deadline or len(received) > 1):
            killed = True
            for job in running.values():
                _signal(job, signal.SIGKILL)
        for slot, job in list(running.items()):
            if _look(job, slot):
                del running[slot]
                on_end(job)
        time.sleep(_POLL_S if running else 0)


def _signal(job: Job, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it ended meanwhile
        os.killpg(job.process.pid, number)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The stop signals that have come, in their order."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
