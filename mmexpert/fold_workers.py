"""cv.workers: folds in processes of their own, one a device, taken from a queue. Each is the same command with cv.fold=K."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from mmexpert.command_line import said_beside
from mmexpert.engine.cv_settings import CvSettings
from mmexpert.engine.lock import holder
from mmexpert.engine.status import child_error
from mmexpert.session import Session
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
Failures = dict[int, Exception]
"""Number of a failed fold -> its error, in the order of their ends."""
_OWN_KEYS = ("cv.workers", "cv.fold", "resume", "hydra.run.dir", "trust")
_POLL_S = 0.2
_FOLDER_CODE = 4  # exit code of a fold that another process took first


def check_workers(settings: CvSettings, processes: int) -> None:
    """Raises ConfigError where cv.workers meets another way to share out the folds."""
    if settings.workers != 1 and (processes > 1 or settings.fold is not None):
        raise ConfigError(f"cv.workers={settings.workers} starts processes of its own: leave out cv.fold, torchrun and accelerate launch")


def worker_count(wanted: int | str, device: str) -> int:
    """Processes that cv.workers asks for; auto is one a GPU, on the CPU one. More than there are devices (or cores) is warned of."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    devices = len(_devices()) if on_gpu else 1
    if wanted == "auto":
        return devices
    limit, what = (devices, "GPUs") if on_gpu else (os.cpu_count() or 1, "CPU cores")
    if int(wanted) > limit:
        log.warning("cv.workers=%s, but there are %d %s: the folds share them", wanted, limit, what)
    return int(wanted)


def run_workers(session: Session, numbers: Sequence[int], workers: int) -> Failures:
    """Trains the folds of these numbers, so many at a time; returns those that failed. A stop signal goes on to all and is SystemExit."""
    queue, places = list(numbers), list(range(min(workers, len(numbers))))
    running: dict[int, tuple[subprocess.Popen, int]] = {}
    failed: Failures = {}
    stops, told = session.stops, False
    try:
        while running or (queue and not stops.signal):
            while queue and places and not stops.signal:
                number = queue.pop(0)
                if owner := holder(session.folder / f"fold_{number}"):
                    log.info("fold %d is left to its holder, process %s on %s", number, owner.get("pid"), owner.get("host"))
                    continue
                place = places.pop(0)
                running[number] = (_start(session, number, place, workers), place)
                log.info("fold %d: process %d, log in fold_%d/log.txt", number, running[number][0].pid, number)
            if stops.signal and not told:
                told = True
                for process, _ in running.values():
                    process.send_signal(stops.signal)
            for number, (process, place) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[number]
                places.append(place)
                log.info("fold %d: ended with code %d", number, code)
                if code and not (code == _FOLDER_CODE and holder(session.folder / f"fold_{number}")) and not stops.signal:
                    folder = session.folder / f"fold_{number}"
                    failed[number] = child_error(folder, f"fold {number}", code, folder / "log.txt")
            time.sleep(_POLL_S if running else 0)
    finally:
        for process, _ in running.values():  # none, unless an error or a second Ctrl-C ends the queue
            process.terminate()
    stops.end()
    return failed


def worker_command(session: Session, number: int) -> list[str]:
    """The run's command for one fold alone, into the same folder."""
    kept = [override for override in session.overrides if override.partition("=")[0].lstrip("+~") not in _OWN_KEYS]
    folder = str(session.folder.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    beside = [one for one in said_beside(session.trust) if not one.startswith("hydra.run.dir=")]
    return [sys.executable, "-m", "mmexpert.train", *kept, f"cv.fold={number}", "cv.workers=1", f"hydra.run.dir='{folder}'", *beside]


def worker_environment(on_gpu: bool, place: int, workers: int) -> dict[str, str]:
    """The environment of the process at a place 0..: one entry of CUDA_VISIBLE_DEVICES, or its share of the cores."""
    environment = dict(os.environ)
    if on_gpu:
        devices = _devices()
        environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    return environment


def _start(session: Session, number: int, place: int, workers: int) -> subprocess.Popen:
    folder = session.folder / f"fold_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = session.cfg["trainer"]["device"] != "cpu" and torch.cuda.is_available()
    with open(folder / "log.txt", "ab") as output:
        return subprocess.Popen(
            worker_command(session, number),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=worker_environment(on_gpu, place, workers),
            start_new_session=True,  # Ctrl-C reaches them through run_workers alone, once: a second one would end them unsaved
        )


def _devices() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())] or ["0"]
