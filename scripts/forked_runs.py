"""Runs of mmexpert.train as forks of one process that has imported torch: a cold start costs 3 to 5 s, a fork nothing.

A fork is a process of its own with its own session, signals and exit code; it never returns into the caller's code.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl, Linux alone


class Child:
    """A forked process, with the calls of subprocess.Popen that the campaigns use."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit code (minus the signal's number), None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """The exit code; kills the process when the time is up, which reads as -9."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        """Sends a signal to the process and to its loader workers, as a terminal or a batch system does."""
        if self.poll() is None:
            os.killpg(self.pid, number)


def warm() -> None:
    """Imports what every child needs, and stays on one thread: an OpenMP team does not live on in a fork."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import torch
    import torch._inductor  # noqa: F401  use_deterministic_algorithms imports it
    from transformers import BertModel  # noqa: F401

    import mmexpert.data.composed_scenes
    import mmexpert.data.hip_phantom
    import mmexpert.data.radar_sim
    import mmexpert.train
    import mmexpert.training  # noqa: F401

    torch.set_num_threads(1)


def fork(folder: Path, log: Path, environment: dict[str, str], work: Callable[[], None]) -> Child:
    """Runs work in a child, below folder, with its output appended to log."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid)
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # a campaign that is stopped leaves no training behind
        os.setsid()
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.environ.update(environment)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  a child must not run on in the parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def nothing() -> None:
    """No fault."""


def train(
    folder: Path,
    overrides: Sequence[str],
    rank: int = 0,
    processes: int = 1,
    port: int = 0,
    before: Callable[[], None] = nothing,
    **environment: str,
) -> Child:
    """`python -m mmexpert.train OVERRIDES` below folder; its output goes to folder/rankN.log. before: called first, to plant a fault."""
    warm()
    given = {"MMEXPERT_KILL_AT": "", "HF_HUB_OFFLINE": "1"} | environment
    if processes > 1:
        given |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}

    def work() -> None:
        from mmexpert.train import main

        before()
        sys.argv = ["train", *overrides]
        main()

    return fork(folder, folder / f"rank{rank}.log", given, work)


def free_port() -> int:
    """A TCP port that nobody uses at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(
    folder: Path, overrides: Sequence[str], processes: int, spoilt: dict[int, Callable[[], None]] | None = None, **environment: str
) -> list[Child]:
    """All processes of a run. spoilt: rank -> fault to plant in it."""
    port = free_port()
    return [train(folder, overrides, rank, processes, port, (spoilt or {}).get(rank, nothing), **environment) for rank in range(processes)]
