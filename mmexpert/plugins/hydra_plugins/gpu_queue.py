"""sweep=gpu_queue: each job of a multirun is a process of its own on the next free device. Hydra finds it by the folder's name."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import MISSING, DictConfig

from mmexpert.types import ConfigError, MmexpertError

log = logging.getLogger(__name__)
_OWN_KEYS = ("sweep", "hydra.launcher", "hydra.sweeper", "hydra.sweep", "hydra.mode", "hydra.run.dir", "trust")


@dataclass
class GpuQueueConf:
    """Keys of hydra.launcher; meanings and values in conf/sweep/gpu_queue.yaml."""

    _target_: str = "hydra_plugins.gpu_queue.GpuQueue"
    gpus: Any = MISSING
    gpus_per_job: int = MISSING
    jobs_per_gpu: int = MISSING
    cpu_slots: int = MISSING
    grace_s: float = MISSING
    retries: int = MISSING


ConfigStore.instance().store(group="hydra/launcher", name="gpu_queue", node=GpuQueueConf, provider="mmexpert")


@dataclass
class Planned:
    """A job before its process: overrides as the sweeper gave them, configuration with hydra, what Hydra gets back, where it lies."""

    overrides: list[str]
    config: DictConfig
    job: JobReturn
    folder: Path
    place: Path  # the run's folder, or that of its one fold (cv.fold=K): jobs of one folder run side by side


class GpuQueue(BasicLauncher):
    """Hydra's launcher on slots of gpus_per_job devices. A dry run needs no process and is the basic launcher's."""

    def __init__(self, gpus: Any, gpus_per_job: int, jobs_per_gpu: int, cpu_slots: int, grace_s: float, retries: int) -> None:
        super().__init__()
        self.gpus, self.gpus_per_job, self.jobs_per_gpu, self.cpu_slots = gpus, gpus_per_job, jobs_per_gpu, cpu_slots
        self.grace_s, self.retries = grace_s, retries

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A JobReturn a job, in their order: done with its best value, or failed with its error. A stop signal is SystemExit."""
        from mmexpert.job_queue import Job, find_slots, run_queue
        from mmexpert.sweep_jobs import planned_job

        if self.config.dry_run:
            return super().launch(job_overrides, initial_job_idx)
        setup_globals()
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("sweep=gpu_queue starts processes of its own: leave out torchrun, and set hydra.launcher.gpus_per_job")
        slots = find_slots(self.gpus, self.gpus_per_job, self.jobs_per_gpu, self.cpu_slots)
        first: dict[Path, Planned] = {}
        queue: dict[int, tuple[Job, Planned]] = {}
        twins: list[tuple[Planned, Planned]] = []
        returns = []
        shared = set(job_overrides[0]).intersection(*job_overrides) if len(job_overrides) > 1 else set()
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config, job = planned_job(self.hydra_context, self.config, overrides, number)
            folder = Path(config.hydra.runtime.output_dir)
            fold = config.cv.get("fold")
            planned = Planned(list(overrides), config, job, folder, folder / f"fold_{fold}" if isinstance(fold, int) else folder)
            returns.append(job)
            if planned.place in first:  # they differ in keys that change no number
                twins.append((planned, first[planned.place]))
                continue
            first[planned.place] = planned
            if self._to_be_run(planned):
                what = " ".join(one for one in overrides if one not in shared) or folder.name
                waiting = Job(f"job {number} ({what})", self._command(planned), planned.place / "console.log")
                queue[id(waiting)] = (waiting, planned)
        log.info("%d jobs, %d to be run, on %d slots: %s", len(returns), len(queue), len(slots), ", ".join(slot.name for slot in slots))
        run_queue([job for job, _ in queue.values()], slots, self.grace_s, self.retries, lambda job: self._take_end(job, queue[id(job)][1]))
        for planned, earlier in twins:
            self._end(planned, earlier.job.status, earlier.job._return_value)
        return returns

    def _to_be_run(self, planned: Planned) -> bool:
        """False for a job that is done, or that its configuration or folder forbids: its end is then noted."""
        from mmexpert.config import check
        from mmexpert.train import prepare_folder, refit_open, stored_value

        try:
            plain = check(planned.job.cfg)
            status = prepare_folder(planned.folder, plain)  # resume=never puts the old folder aside here, before the first attempt
        except MmexpertError as error:
            self._end(planned, JobStatus.FAILED, error)
            return False
        if status is None or status.state != "done" or refit_open(planned.folder, plain):
            return True
        log.info("finished before: %s", planned.folder)
        self._end(planned, JobStatus.COMPLETED, stored_value(planned.folder))
        return False

    def _take_end(self, job: Any, planned: Planned) -> None:
        from mmexpert.engine.status import child_error
        from mmexpert.train import stored_value

        if job.code == 0:
            self._end(planned, JobStatus.COMPLETED, stored_value(planned.place))
        else:
            self._end(planned, JobStatus.FAILED, child_error(planned.place, job.label, job.code, job.log_file))

    def _end(self, planned: Planned, status: JobStatus, outcome: object) -> None:
        planned.job.status, planned.job.return_value = status, outcome
        self.hydra_context.callbacks.on_job_end(config=planned.config, job_return=planned.job)

    def _command(self, planned: Planned) -> list[str]:
        """The job's own command: no multirun, its folder written out; each attempt continues what is there."""
        from mmexpert.command_line import trust_list
        from mmexpert.job_queue import PROGRAM

        start = [sys.executable]
        if self.gpus_per_job > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.gpus_per_job)]
        given = [*planned.config.hydra.overrides.hydra, *planned.overrides]
        kept = [one for one in given if not _is_own(one.partition("=")[0].lstrip("+~").replace("/", "."))]
        if planned.job.cfg.resume == "never":
            kept = [one for one in kept if not one.startswith("resume=")] + ["resume=auto"]
        folder = str(planned.folder).replace("\\", "\\\\").replace("'", "\\'")
        trust = [f"trust=[{','.join(trust_list)}]"] if trust_list else []
        return [*start, *PROGRAM, *kept, "hydra.mode=RUN", f"hydra.run.dir='{folder}'", *trust]


def _is_own(key: str) -> bool:
    return any(key == own or key.startswith(own + ".") for own in _OWN_KEYS)
