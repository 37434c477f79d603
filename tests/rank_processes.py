"""A test file as several processes: `python FILE RANK PROCESSES OUT` once a rank, joined by gloo on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from torch import distributed as dist

TESTS = Path(__file__).resolve().parent


def run_ranks(file, processes, out):
    """Runs a file's ranks to their end; what one says where it fails is the error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, Path(file).parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    commands = [[sys.executable, file, str(rank), str(processes), str(out)] for rank in range(processes)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(errors)[-3000:]


def this_rank():
    """(rank, processes, place of its results) of a process that run_ranks has started."""
    return int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


def end_rank():
    """Ends this process when all have come so far."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort now and then when the interpreter takes itself apart
