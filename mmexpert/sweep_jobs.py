"""The jobs of a multirun: where each will lie, how it stands or has ended, and what is said of all of them at the end."""

import copy
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mmexpert.command_line import describe, register, trust_list
from mmexpert.config import NOT_HASHED, check
from mmexpert.engine.monitor_mode import mode_of
from mmexpert.engine.status import config_hash
from mmexpert.types import ConfigError, MmexpertError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobEnd:
    """state: done | failed; of a dry run absent | unfinished | done | refused. outcome: best monitored value, or the exception."""

    overrides: tuple[str, ...]
    state: str
    outcome: object
    folder: Path


@dataclass
class EndedJobs:
    """The jobs of this process's multirun by their number. outer: configurations that chose on the reported test parts."""

    rows: dict[int, JobEnd] = field(default_factory=dict)
    dry: bool = False
    outer: set[str] = field(default_factory=set)

    def note(self, job: JobReturn) -> None:
        """Takes up the end of a job; once more is no harm."""
        hydra = job.hydra_cfg.hydra
        folder = Path(hydra.runtime.output_dir)
        state = "done" if job.status is JobStatus.COMPLETED else "failed"
        self.dry = bool(job.cfg.dry_run)
        if state == "done" and self.dry:
            from mmexpert.train import planned_state

            state = planned_state(folder, check(job.cfg))
        if state != "failed" and job.cfg.cv.selection == "outer":
            plain = OmegaConf.to_container(job.cfg, resolve=True)
            self.outer.add(config_hash(plain, [*NOT_HASHED, "seed"]))  # another start of one configuration is no other one
        self.rows[hydra.job.num] = JobEnd(tuple(job.overrides or ()), state, job._return_value, folder)  # .return_value would raise

    def failed(self) -> list[JobEnd]:
        """The jobs that failed."""
        return [row for row in self.rows.values() if row.state == "failed"]

    def write_tables(self) -> None:
        """sweep.csv and sweep.html in the folders in which the jobs' folders lie; of a dry run nothing. A failure is a warning."""
        from mmexpert.sweep import write_table

        if self.dry:
            return
        remove_empty(row.folder for row in self.failed())  # Hydra makes them before a job is looked at
        for folder in sorted({row.folder.parent for row in self.rows.values() if (row.folder / "status.json").exists()}):
            try:
                write_table(folder)
            except MmexpertError as error:
                log.warning("no table in %s: %s", folder, error)

    def table(self) -> str:
        """A line a job, in their order: state, the overrides in which the jobs differ, best value or error, folder."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        shared = set(rows[0].overrides).intersection(*(row.overrides for row in rows)) if len(rows) > 1 else set()
        cells = [(row.state, " ".join(one for one in row.overrides if one not in shared) or "default", _told(row)) for row in rows]
        widths = [max(len(cell[column]) for cell in cells) for column in range(2)]
        lines = [
            f"  {state.ljust(widths[0])} | {overrides.ljust(widths[1])} | {told}{' | ' if told else ''}{_relative(row.folder)}"
            for (state, overrides, told), row in zip(cells, rows, strict=True)
        ]
        if len(self.outer) > 1:
            lines.append(
                f"WARNING: {len(self.outer)} configurations with cv.selection=outer: each chose on the test parts that it reports, and the "
                "best of them is chosen there once more. cv=nested compares configurations on inner parts alone"
            )
        return "\n".join(lines)


ended = EndedJobs()
"""Hydra makes the callback itself and turns its exceptions into warnings: the jobs are left here for command_line.launch."""


class SweepTable(Callback):
    """Collects the end of every job of a multirun; a failed one does not stop the others.

    Launchers that start processes pickle it with Hydra's context: there it makes the resolvers known and says whom the command trusts.
    """

    def __init__(self) -> None:
        self.before: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"trust": list(trust_list)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.before = None
        register()
        trust_list[:] = state["trust"]

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remembers the file that Hydra writes even for a dry run; a study has no list of jobs and ends here (Hydra's call)."""
        if config.dry_run and config.hydra.sweeper.get("direction") is not None:
            sys.stderr.write(
                "ConfigError: dry_run=true lists jobs that are known beforehand, but this sweeper chooses each trial by the results of "
                "those before it: leave dry_run out, or name the values (seed=1,2,3) without sweep=optuna\n"
            )
            raise SystemExit(ConfigError.exit_code)  # Hydra would make a warning of any other exception
        path = _hydras_file(config)
        self.before = path.read_bytes() if path.exists() else None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """A dry run leaves nothing behind (Hydra's call)."""
        if config.dry_run:
            path = _hydras_file(config)
            path.unlink(missing_ok=True) if self.before is None else path.write_bytes(self.before)
            remove_empty([path.parent])

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Notes the end of one job (Hydra's call)."""
        if config.hydra.mode is RunMode.MULTIRUN:
            ended.note(job_return)


def planned_job(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int) -> tuple[DictConfig, JobReturn]:
    """(configuration with hydra, JobReturn without an outcome) of a job: hydra_cfg's runtime.output_dir is its folder."""
    job_config = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(job_config):
        job_config.hydra.job.id = job_config.hydra.job.num = number
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job_config)  # ${hydra:...} of the folder's name
    try:
        folder = os.path.join(str(job_config.hydra.sweep.dir), str(job_config.hydra.sweep.subdir))
        with read_write(job_config.hydra.runtime), open_dict(job_config.hydra.runtime):
            job_config.hydra.runtime.output_dir = os.path.abspath(folder)
        job = JobReturn(overrides=OmegaConf.to_container(job_config.hydra.overrides.task), working_dir=os.getcwd(), task_name="train")
        job.cfg, job.hydra_cfg = copy.deepcopy(job_config), OmegaConf.masked_copy(job_config, ["hydra"])
        with read_write(job.cfg), open_dict(job.cfg):
            del job.cfg["hydra"]
    finally:
        HydraConfig.instance().cfg = before
    return job_config, job


def check_direction(sweeper: DictConfig, trainer: dict[str, Any]) -> None:
    """Raises ConfigError where a sweeper would look for the worst runs: its direction against trainer.mode, or the monitor's own way."""
    direction = sweeper.get("direction")
    name = str(getattr(direction, "name", direction))
    if name not in ("minimize", "maximize"):  # a sweeper without one, or of several objectives
        return
    monitor = trainer["monitor"] if isinstance(trainer["monitor"], str) else trainer["monitor"][0]
    mode = trainer["mode"] or mode_of(monitor)
    if not name.startswith(mode):
        raise ConfigError(
            f"hydra.sweeper.direction={name}, but {monitor} is better at its {mode}: write hydra.sweeper.direction={mode}imize"
        )


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, and those above them inside the working folder, as long as they are empty."""
    here = Path.cwd()
    for folder in folders:
        for path in (folder.resolve(), *folder.resolve().parents):
            if here not in path.parents:
                break
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break


def _told(row: JobEnd) -> str:
    if isinstance(row.outcome, Exception):
        return describe(row.outcome) or repr(row.outcome)
    return f"{row.outcome:.6g}" if isinstance(row.outcome, float) else ""


def _hydras_file(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)) / "multirun.yaml"


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
