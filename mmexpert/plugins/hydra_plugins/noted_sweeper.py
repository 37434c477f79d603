"""Hydra's basic sweeper, which also notes how the jobs of launchers with processes of their own have ended (joblib, submitit)."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class NotedSweeperConf:
    """Keys of hydra.sweeper, as the basic one's."""

    _target_: str = "hydra_plugins.noted_sweeper.NotedSweeper"
    max_batch_size: int | None = None
    params: Any = None


ConfigStore.instance().store(group="hydra/sweeper", name="noted", node=NotedSweeperConf, provider="mmexpert")


class NotedSweeper(BasicSweeper):
    """on_job_end is called where the job runs; in this process what the launcher brings back tells of it."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra's, with the launcher's ends noted."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.launcher = NotedLauncher(self.launcher, hydra_context, config)


class NotedLauncher:
    """A launcher and what its jobs came to. Beside the launcher, not inside it: submitit pickles that."""

    def __init__(self, launcher: Launcher, context: HydraContext, config: DictConfig) -> None:
        self.launcher, self.context, self.config = launcher, context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As the launcher's."""
        from mmexpert.sweep_jobs import ended

        folder = str(Path(__file__).parents[1])  # Hydra's state names the classes of this folder, and the jobs' processes unpickle it
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))
        try:
            returns = self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except Exception as error:  # noqa: BLE001  a job that was killed takes the others' results with it: their files tell
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                ended.note(self._from_files(overrides, number, error))
            raise
        for job in returns:
            ended.note(job)
        return returns

    def _from_files(self, overrides: Sequence[str], number: int, error: Exception) -> JobReturn:
        from mmexpert.engine.status import read_status
        from mmexpert.sweep_jobs import planned_job
        from mmexpert.train import stored_value
        from mmexpert.types import ProcessError

        config, job = planned_job(self.context, self.config, overrides, number)
        folder = Path(config.hydra.runtime.output_dir)
        status = read_status(folder)
        if status is not None and status.state == "done":
            job.status, job.return_value = JobStatus.COMPLETED, stored_value(folder)
            return job
        told = (status.error or {}).get("message") if status is not None and status.state == "failed" else None
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        reason = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)), lines[0])
        job.status, job.return_value = JobStatus.FAILED, ProcessError(told or f"no result came back: {reason}")
        return job
