"""What a multirun says at its end: a line per job, and exit code 10 when one has failed."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


@dataclass
class EndedJobs:
    """The jobs of this process's multirun, in the order of their ends."""

    rows: list[tuple[str, str, object]] = field(default_factory=list)  # (overrides, done | failed, result or exception)

    def failed(self) -> list[tuple[str, str, object]]:
        """The rows that failed."""
        return [row for row in self.rows if row[1] == "failed"]


ended = EndedJobs()
"""Hydra makes the callback itself and turns its exceptions into warnings: the rows are left here for command_line.launch."""


class SweepTable(Callback):
    """Collects the end of every job; a failed one does not stop the others."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Notes overrides, state and result or exception of one job (Hydra's call)."""
        overrides = " ".join(job_return.overrides or []) or "default"
        state = "done" if job_return.status is JobStatus.COMPLETED else "failed"
        ended.rows.append((overrides, state, job_return._return_value))  # .return_value would raise a failed job's exception
