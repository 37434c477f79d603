"""What every fault of scripts/torture.py is tried on: a small radar run, what it ends with when nothing happens, and ways to watch it."""

import ctypes
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked_runs
from forked_runs import Child
from kill_campaign import RADAR, outcome

RUN = (*RADAR, "trainer.epochs=4", "trainer.save_every_steps=1", "trainer.save_top_k=2", "trainer.log_every=1")
STEPS, PER_EPOCH = 24, 6


@dataclass
class Bench:
    """folder: of one fault, with outputs/ below. clips: shared cache. expected: outcome of the run by number of processes."""

    folder: Path
    clips: Path
    expected: dict[int, dict[str, Any]]
    full: bool

    def overrides(self, name: str, *more: str) -> list[str]:
        """Of a run of this name; further ones that can not change a number."""
        return [*RUN, f"dataset.cache_dir={self.clips}", f"name={name}", *more]

    def start(self, name: str, *more: str, before: Callable[[], None] = forked_runs.nothing, **environment: str) -> Child:
        """A run in one process."""
        return forked_runs.train(self.folder, self.overrides(name, *more), before=before, **environment)

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return next(path for path in (self.folder / "outputs" / name).iterdir() if path.is_dir() and not path.suffix)

    def ends_equal(self, name: str, *more: str, processes: int = 1) -> bool:
        """Whether the run, continued without a fault, ends as the one that nothing happened to."""
        codes = finish(forked_runs.ranks(self.folder, self.overrides(name, *more), processes))
        if any(codes):
            print(f"{name}: ended with {codes}")
            return False
        found = outcome(self.run(name))
        differing = [key for key in self.expected[processes] if found[key] != self.expected[processes][key]]
        if differing:
            print(f"{name}: differs in {differing}")
        return not differing

    def status(self, name: str) -> dict[str, Any]:
        """Its status.json."""
        return json.loads((self.run(name) / "status.json").read_text())

    def log(self, rank: int = 0) -> str:
        """What the runs of this folder have said."""
        return (self.folder / f"rank{rank}.log").read_text(errors="replace")

    def await_step(self, name: str, step: int, child: Child, seconds: float = 120) -> bool:
        """Waits until the run has logged a step; False where it ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and child.poll() is None:
            lines = [line for path in self.folder.glob(f"outputs/{name}/*/metrics.jsonl") for line in path.read_text().splitlines()]
            if len(lines) >= step:
                return True
            time.sleep(0.02)
        return False


def finish(children: Sequence[Child], seconds: float = 300) -> list[int]:
    """Exit codes of all."""
    return [child.wait(seconds) for child in children]


def workers_of(pid: int) -> list[int]:
    """Ids of a process's children."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(word) for word in text.split()]


def whole(folder: Path, clips: Path, processes: int) -> dict[str, Any]:
    """Outcome of a run that nothing happens to. Raises RuntimeError where it fails by itself."""
    bench = Bench(folder, clips, {}, False)
    folder.mkdir(parents=True, exist_ok=True)
    codes = finish(forked_runs.ranks(folder, bench.overrides("whole"), processes))
    if any(codes):
        raise RuntimeError(f"the run without a fault ended with {codes}:\n{bench.log()[-3000:]}")
    return outcome(bench.run("whole"))


def finite(run: Path) -> bool:
    """Whether every kept checkpoint holds finite numbers alone."""
    import torch

    from mmexpert.engine.step_folder import read_weights

    folders = [path for path in (run / "checkpoints").glob("*_*") if path.is_dir() and not path.is_symlink()]
    return all(
        bool(torch.isfinite(tensor).all()) for folder in folders for tensor in read_weights(folder).values() if tensor.is_floating_point()
    )


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def obey_rights() -> None:
    """Root writes anywhere: without CAP_DAC_OVERRIDE (bit 1) this process obeys a folder's rights as any other user's."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0].effective &= ~2
    sets[0].permitted &= ~2
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")
