"""Where numbers go: files always, a tracker through Accelerate on top. A tracker that fails never stops training."""

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mmexpert.engine.files import csv_text, strict_json, write_atomic
from mmexpert.engine.secrets import mask_text, masked
from mmexpert.engine.status import flat
from mmexpert.engine.tracker_base import Start
from mmexpert.engine.tracker_services import SERVICES
from mmexpert.types import ConfigError, StorageError

log = logging.getLogger(__name__)
NAMES = {name: service.module for name, service in SERVICES.items()}
IDS = "tracker.json"
"""Ids of the run at the services, by name: a resumed run goes on in the same one. Beside the checkpoints: a kill may come before one."""


@dataclass(frozen=True)
class TrackerSettings:
    """log_with: None, or one of NAMES. mode: offline | online. group, tags: of the run, where the service has them.

    private: leaves out host, command line, git state and machine where the service can. log_code: sends the sources of mmexpert.
    """

    log_with: str | None
    project: str
    mode: str
    group: str | None
    tags: list[str]
    private: bool
    log_code: bool

    def __post_init__(self) -> None:
        if self.log_with is not None and self.log_with not in NAMES:
            raise ConfigError(f"tracker.log_with={self.log_with}: choose one of {', '.join(NAMES)}, or null")
        if self.log_with is not None and importlib.util.find_spec(NAMES[self.log_with]) is None:
            raise ConfigError(f"tracker={self.log_with} is not installed: pip install 'mmexpert[{self.log_with}]', or tracker=csv")
        if self.mode not in ("offline", "online"):
            raise ConfigError(f"tracker.mode={self.mode}: choose offline or online")


class Tracker:
    """metrics.jsonl, the CSV files and history.json of one fold; rank 0's alone. accelerator: with its trackers not yet started.

    job: what the run is within its group, fold_2 or summary; empty without folds.
    """

    def __init__(
        self, folder: Path, settings: TrackerSettings, accelerator: Accelerator | None, run_name: str, config: dict[str, Any], job: str = ""
    ) -> None:
        self.folder, self.settings, self.accelerator, self.job = folder, settings, accelerator, job
        self.path = folder / "metrics.jsonl"
        self.working = settings.log_with is not None and accelerator is not None
        self.service = SERVICES.get(settings.log_with)
        if self.working:
            self._safely(lambda: self._start(run_name, config))

    def log_step(self, row: dict[str, Any]) -> None:
        """A row of an optimizer step: one flushed line."""
        self._append(row)
        self._send(row)

    def log_epoch(self, row: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """The row of an epoch; the files for readers are written again."""
        self._append({name: value for name, value in row.items() if name.startswith("valid/") or name in ("epoch", "step")})
        self._send(row)
        self.write_history(history)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """history.json and the three CSV files."""
        write_atomic(self.folder / "history.json", strict_json(history, indent=1))
        write_atomic(self.folder / "history.csv", csv_text(history))
        rows = self._rows()
        write_atomic(self.folder / "train_metrics.csv", csv_text([row for row in rows if any(key.startswith("train/") for key in row)]))
        write_atomic(
            self.folder / "validation_metrics.csv", csv_text([row for row in rows if any(key.startswith("valid/") for key in row)])
        )

    def truncate(self, step: int) -> None:
        """Cuts off lines of steps that a resume will take again, and the half line of a kill in mid-write."""
        if not self.path.exists():
            return
        kept = "".join(strict_json(row) for row in self._rows() if row["step"] <= step)
        if kept != self.path.read_text(encoding="utf-8"):
            write_atomic(self.path, kept)

    def log_images(self, folder: Path, step: int) -> None:
        """Sends the plots of a folder (*.png), named plots/<file>."""
        for path in sorted(folder.glob("*.png")) if self.working else []:
            self._safely(lambda path=path: [self.service.picture(t, f"plots/{path.stem}", path, step) for t in self.accelerator.trackers])

    def log_summary(self, values: dict[str, Any]) -> None:
        """The figures of a cross-validation, to the tracker alone: cv_summary.json has them."""
        self._send(values | {"step": 0})

    def finish(self) -> None:
        """Ends the tracker's run, or the jobs of a sweep would merge."""
        if self.working:
            self._safely(lambda: [tracker.finish() for tracker in self.accelerator.trackers])

    def _start(self, run_name: str, config: dict[str, Any]) -> None:
        chosen, name, service = self.settings, self.settings.log_with, self.service
        offline = chosen.mode == "offline"
        if not offline and not service.has_key():
            log.warning("tracker.mode=online: %s is not set in the environment, so this run is kept offline, to be sent later", service.key)
            offline = True
        path = self.folder / IDS
        ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        label = f"{name}/{self.job}" if self.job == "summary" else name  # of the folds' run folder, beside none of theirs
        start = Start(
            self.folder, run_name, self.job, ids.get(label) or uuid.uuid4().hex, label in ids, offline, chosen.group, list(chosen.tags),
            chosen.private, chosen.log_code,
        )  # fmt: skip
        service.prepare(start)
        values = {key: value if isinstance(value, (int, float, bool)) else str(value) for key, value in flat(masked(config)).items()}
        self.accelerator.init_trackers(
            str((self.folder / name).resolve()) if name == "tensorboard" else chosen.project,
            config=None if start.resumed and service.config_once else values,
            init_kwargs={service.module: service.options(start)},
        )
        found = [service.opened(tracker, start) for tracker in self.accelerator.trackers]
        write_atomic(path, strict_json(ids | dict.fromkeys([label], found[0] if found else start.run_id), indent=1))

    def _append(self, row: dict[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(strict_json(row))
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error

    def _rows(self) -> list[dict[str, Any]]:
        """Whole lines of metrics.jsonl; a kill may have cut the last one short."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def _send(self, row: dict[str, Any]) -> None:
        if self.working:
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
            values = self.service.row(numbers)
            self._safely(lambda: [tracker.log(values, step=row["step"]) for tracker in self.accelerator.trackers])

    def _safely(self, work: Callable[[], Any]) -> None:
        if not self.working:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001  trackers raise anything; the first error turns this one off with a warning
            self.working = False
            log.warning("tracker %s is off from here on: %s: %s", self.settings.log_with, type(error).__name__, mask_text(str(error)))
            for tracker in self.accelerator.trackers:  # left open, it would take up the next job of a sweep
                with suppress(Exception):
                    tracker.finish()
