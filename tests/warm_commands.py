"""`python -m MODULE ARGUMENTS` forked from a process that has imported what takes seconds: a cold start costs 3 to 5 s, a fork nothing."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "matplotlib.backends.backend_agg", "sklearn.model_selection", "torch._inductor", "timm", "transformers.models.bert.modeling_bert",
    "transformers.models.clip.modeling_clip", "mmexpert.training", "mmexpert.loading", "mmexpert.data.radar_sim",
)  # fmt: skip


def start_server(package: Path) -> None:
    """Says what the process that is forked imports first. package: where mmexpert lies."""
    os.environ["PYTHONPATH"] = str(package)  # the server's own, and that of the processes which the commands start
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))


def call(module: str, arguments: Sequence[str], folder: Path, log: Path, seconds: float) -> int:
    """The exit code of the command, run below folder; what it prints goes to log. Minus a signal's number where the time is up."""
    child = multiprocessing.get_context("forkserver").Process(target=_as_main, args=(module, list(arguments), folder, log))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode


def _as_main(module: str, arguments: list[str], folder: Path, log: Path) -> None:
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # as in a fresh interpreter, where runpy is the first to load it
    runpy.run_module(module, run_name="__main__", alter_sys=True)
