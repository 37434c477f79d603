"""What tracking services share: how a run begins there, what a service is asked for, the sources and plots that go to it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[1]
"""The sources that log_code=true sends: this package's, never the folder of the user's shell."""


@dataclass(frozen=True)
class Start:
    """How a run of a service begins.

    folder: where offline files go. name: as shown. job: fold_2 or summary, empty without folds. run_id: 32 hex digits, the stored one
    when resumed. group, tags, private, log_code: as in TrackerSettings.
    """

    folder: Path
    name: str
    job: str
    run_id: str
    resumed: bool
    offline: bool
    group: str | None
    tags: list[str]
    private: bool
    log_code: bool


class Service:
    """What services share. module: to be installed. key: the environment variable that online mode needs, with how to get it.

    config_once: a resumed run must not state its configuration again. environment: set before the service is imported, unless the user
    has set it: offline means that no report of an error or of use leaves the machine either.
    """

    module = ""
    key = ""
    config_once = False
    environment: dict[str, str] = {}

    def has_key(self) -> bool:
        """Whether online mode can work without a question."""
        return not self.key or bool(os.environ.get(self.key))

    def prepare(self, start: Start) -> None:
        """Quietens the service; before its import."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)

    def options(self, start: Start) -> dict[str, Any]:
        """What Accelerate's tracker passes on to the service."""
        return {}

    def opened(self, tracker: Any, start: Start) -> str:
        """Sends what can be sent only to an open run; returns the run's id at the service."""
        if start.log_code:
            log.warning("tracker.log_code: %s takes no code, none is sent", self.module)
        return start.run_id

    def row(self, values: dict[str, float]) -> dict[str, float]:
        """Values with names that the service takes."""
        return values

    def picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Sends one plot."""
        tracker.log_images({name: pixels(path)}, step=step)


def sources() -> list[Path]:
    """The Python files of this package."""
    return sorted(PACKAGE.rglob("*.py"))


def pixels(path: Path) -> Any:
    """uint8 [1, H, W, 3]."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))[None]
