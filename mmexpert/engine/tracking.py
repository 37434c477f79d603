"""Where numbers go: files always, a tracker through Accelerate on top. A tracker that fails never stops training."""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mmexpert.engine.files import csv_text, strict_json, write_atomic
from mmexpert.engine.secrets import masked
from mmexpert.engine.status import flat
from mmexpert.types import ConfigError, StorageError

log = logging.getLogger(__name__)
NAMES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab", "comet": "comet_ml", "mlflow": "mlflow"}


@dataclass(frozen=True)
class TrackerSettings:
    """log_with: None, or one of NAMES. mode: offline | online. group, tags: of the run, where the service has them."""

    log_with: str | None
    project: str
    mode: str
    group: str | None
    tags: list[str]

    def __post_init__(self) -> None:
        if self.log_with is not None and self.log_with not in NAMES:
            raise ConfigError(f"tracker.log_with={self.log_with}: choose one of {', '.join(NAMES)}, or null")
        if self.log_with is not None and importlib.util.find_spec(NAMES[self.log_with]) is None:
            remedy = "pip install mlflow" if self.log_with == "mlflow" else f"pip install 'mmexpert[{self.log_with}]'"
            raise ConfigError(f"tracker={self.log_with} is not installed: {remedy}, or tracker=csv")
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

    def log_images(self, pictures: dict[str, Path]) -> None:
        """Sends plots to trackers that take pictures."""
        for tracker in self.accelerator.trackers if self.working else []:
            if hasattr(tracker, "log_images"):
                self._safely(lambda tracker=tracker: _send_images(tracker, pictures))

    def log_summary(self, values: dict[str, Any]) -> None:
        """The figures of a cross-validation, to the tracker alone: cv_summary.json has them."""
        self._send({name: value for name, value in values.items() if value is not None} | {"step": 0})

    def finish(self) -> None:
        """Ends the tracker's run, or the jobs of a sweep would merge."""
        if self.working:
            self._safely(lambda: [tracker.finish() for tracker in self.accelerator.trackers])

    def _start(self, run_name: str, config: dict[str, Any]) -> None:
        values = {name: value if isinstance(value, (int, float, bool)) else str(value) for name, value in flat(masked(config)).items()}
        offline = self.settings.mode == "offline"
        extra: dict[str, dict[str, Any]] = {
            "wandb": {
                "name": run_name,
                "mode": self.settings.mode,
                "dir": str(self.folder),
                "group": self.settings.group,
                "tags": self.settings.tags,
                **({"job_type": self.job} if self.job else {}),
            },
            "swanlab": {"experiment_name": run_name, "mode": "offline" if offline else "cloud", "logdir": str(self.folder / "swanlab")},
            "comet": {"online": not offline},
            "mlflow": {"logging_dir": str(self.folder / "mlflow"), "run_name": run_name},
        }
        name = self.settings.log_with
        self.accelerator.init_trackers(
            str(self.folder / "tensorboard") if name == "tensorboard" else self.settings.project,
            config=values,
            init_kwargs={NAMES[name]: extra[name]} if name in extra else {},
        )

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
            values = {name.replace("@", "_at_") if self.settings.log_with == "mlflow" else name: value for name, value in row.items()}
            step = values.pop("step")
            self._safely(lambda: [tracker.log(values, step=step) for tracker in self.accelerator.trackers])

    def _safely(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  trackers raise anything; the first error turns this one off with a warning
            self.working = False
            log.warning("tracker %s is off from here on: %s: %s", self.settings.log_with, type(error).__name__, error)


def _send_images(tracker: Any, pictures: dict[str, Path]) -> None:
    import numpy as np
    from PIL import Image

    for name, path in pictures.items():
        tracker.log_images({name: np.asarray(Image.open(path).convert("RGB"))[None]}, step=None)
