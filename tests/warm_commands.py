"""`python -m MODULE ARGUMENTS` forked from a process that has imported what takes seconds: a cold start costs 3 to 5 s, a fork nothing."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = (
    "matplotlib.backends.backend_agg", "sklearn.model_selection", "torch._inductor", "timm", "transformers.models.bert.modeling_bert",
    "transformers.models.clip.modeling_clip", "mmexpert.training", "mmexpert.loading", "mmexpert.data.radar_sim",
)  # fmt: skip


ROOT = Path(__file__).resolve().parents[1]


def warm_run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, seconds: float = 300
) -> subprocess.CompletedProcess:
    """What subprocess.run would give of the command, run below folder; environment: os.environ where it is None."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        code = call(module, arguments, folder, out, seconds, err, environment)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    return subprocess.CompletedProcess([module, *arguments], code, *texts)


def call(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    out: Path,
    seconds: float,
    err: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """The exit code of the command; what it prints goes to out, and to err if that is given. Minus a signal's number where the time is up."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    environment = dict(os.environ if environment is None else environment) | {"PYTHONPATH": str(ROOT)}
    child = context.Process(target=_as_main, args=(module, list(arguments), folder, (out, err or out), environment))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode


def _as_main(module: str, arguments: list[str], folder: Path, streams: tuple[Path, Path], environment: dict[str, str]) -> None:
    for descriptor, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # as in a fresh interpreter, where runpy is the first to load it
    runpy.run_module(module, run_name="__main__", alter_sys=True)
