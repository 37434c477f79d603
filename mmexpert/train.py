"""`python -m mmexpert.train [overrides]`: trains, evaluates and stores a model; the same command again resumes.

Imports Hydra and the standard library only; torch comes with mmexpert.training, once there is something to train.
"""

import json
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mmexpert.command_line import help_text, launch, trust_list
from mmexpert.config import CONF_DIR, NOT_HASHED, check
from mmexpert.engine.lock import RunLock
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.engine.status import Status, config_difference, config_hash, read_status, trained
from mmexpert.sweep_jobs import check_direction, remove_empty
from mmexpert.types import RunFolderError

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="train")
def application(cfg: DictConfig) -> float | None:
    """One job: returns the best value of the first monitored key, for sweepers."""
    level = logging.DEBUG if logging.getLogger().level == logging.DEBUG else logging.INFO  # Hydra sets it for hydra.verbose=true
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout, force=True)  # without Hydra's time stamps
    hydra_config = HydraConfig.get()
    folder, overrides = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
    try:
        plain = check(cfg)
        if hydra_config.mode is RunMode.MULTIRUN:
            check_direction(hydra_config.sweeper, plain["trainer"])
        return run_job(plain, folder, overrides, hydra_config.mode is RunMode.RUN)
    finally:
        remove_empty([folder])  # Hydra has made it, whether or not anything comes


def run_job(plain: dict[str, Any], folder: Path, overrides: list[str], alone: bool) -> float | None:
    """A checked configuration from the state of its folder to its result. alone: no job of a multirun."""
    if plain["dry_run"]:
        if alone:  # of a multirun's jobs there is a table at the end
            log.info("folder %s | state %s | %s", folder, planned_state(folder, plain), " ".join(overrides) or "defaults")
        return None
    status = prepare_folder(folder, plain)
    if status is not None and status.state == "done" and not refit_open(folder, plain):
        log.info("finished before: %s", folder)
        return print_finished(folder)
    from mmexpert.training import train_run

    return train_run(plain, folder, overrides, tuple(trust_list))


def prepare_folder(folder: Path, plain: dict[str, Any]) -> Status | None:
    """The status of an earlier run in the folder, None where there is none. Obeys resume=never|must.

    Raises RunFolderError where the folder holds a run of another config, naming the keys that differ.
    """
    status = read_status(folder)
    if plain["resume"] == "must" and status is None:
        raise RunFolderError(f"resume=must, but {folder} holds no run; leave resume out to start one")
    if status is None:
        return None
    if plain["resume"] == "never":
        if os.environ.get("RANK", "0") == "0":  # the other ranks wait in the first collective
            put_aside(folder)
        return None
    if status.config_hash != config_hash(plain, NOT_HASHED):
        if status.state == "failed" and not trained(folder):
            return None  # it failed before its first checkpoint: there is nothing to mix up with
        rows = config_difference(stored_config(folder), plain, NOT_HASHED)
        table = "\n".join(f"  {key}: stored {stored!r}, now {now!r}" for key, stored, now in rows)
        raise RunFolderError(
            f"{folder} holds a run of another configuration:\n{table}\nChoose another name=, or resume=never to start afresh here"
        )
    return status


def planned_state(folder: Path, plain: dict[str, Any]) -> str:
    """What the command would find: absent | unfinished | done | refused, where the folder holds a run of another configuration."""
    status = read_status(folder)
    if status is None or plain["resume"] == "never":
        return "refused" if status is None and plain["resume"] == "must" else "absent"
    if status.config_hash != config_hash(plain, NOT_HASHED):
        return "absent" if status.state == "failed" and not trained(folder) else "refused"
    return "done" if status.state == "done" and not refit_open(folder, plain) else "unfinished"


def refit_open(folder: Path, plain: dict[str, Any]) -> bool:
    """Whether cv.refit asks for a model that the finished folds of a run do not have yet."""
    status = read_status(folder / "final")
    return plain["cv"]["refit"] and (status is None or status.state != "done")


def put_aside(folder: Path) -> None:
    """Renames the folder of an earlier run to the first free of .1, .2, ... Raises RunFolderError where it still runs."""
    number = next(n for n in range(1, 10**6) if not Path(f"{folder}.{n}").exists())
    with ExitStack() as locks:
        for path in (folder, *sorted(folder.glob("fold_*")), *folder.glob("final")):
            locks.enter_context(RunLock(path))
        folder.rename(f"{folder}.{number}")
    log.info("resume=never: the earlier run is now %s.%d", folder, number)


def stored_config(folder: Path) -> dict[str, Any]:
    """The resolved config that a run folder holds."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]


def print_finished(folder: Path) -> float | None:
    """Prints the result of a finished run from its files; returns the value that the run returned."""
    text = folder / "result.txt"
    if text.exists():
        for line in text.read_text(encoding="utf-8").splitlines():
            log.info("%s", line)
    return stored_value(folder)


def stored_value(folder: Path) -> float | None:
    """The best monitored value of a finished run, with folds the mean over those that are done: what train_run returned."""
    files = [folder / "metrics.json"] if (folder / "metrics.json").exists() else sorted(folder.glob("fold_*/metrics.json"))
    values = [value for path in files if (value := json.loads(path.read_text(encoding="utf-8")).get("best_value")) is not None]
    return sum(values) / len(values) if values else None


def main() -> None:
    """Entry point of `python -m mmexpert.train` and mmexpert-train."""
    adopt_slurm()
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(help_text())
        return
    code = 1  # of a defect
    try:
        launch(application)
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        if "torch" in sys.modules:
            leave_group(code)


def leave_group(code: int) -> None:
    """Ends the process group, after all jobs of a multirun: rank 0 leaving early would abort the others.

    A process of a group then ends at once: a thread of the group that wakes while the interpreter is being torn down ends the
    process with "terminate called without an active exception" (seen in 1 of 60 runs, all of whose files were written).
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    distributed.destroy_process_group()
    if code == 1:
        return  # Python has a traceback to print
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
