"""What `run=` names: the folder of a run, and perhaps a position below its checkpoints/. Standard library alone: for entry modules."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmexpert.types import ConfigError, RunFolderError

WEIGHTS, CHECKPOINTS = "model.safetensors", "checkpoints"


@dataclass(frozen=True)
class RunPlace:
    """folder: of a run or one of its folds. checkpoint: a name below its checkpoints/; None: what the run reports."""

    folder: Path
    checkpoint: str | None


def run_place(path: Path, checkpoint: str | None) -> RunPlace:
    """The run that a run folder, a fold, a folder below checkpoints/ or a model/ folder belongs to; checkpoint: as typed.

    Raises ConfigError where path and checkpoint name two positions, RunFolderError for a model/ folder without its run.
    """
    if len(path.parts) < 3:  # `best`, said inside checkpoints/
        path = path if (path / "config.json").exists() and not (path / WEIGHTS).exists() else path.absolute()
    if path.parent.name == CHECKPOINTS:
        if checkpoint not in (None, path.name):
            raise ConfigError(f"run={path} names a checkpoint, checkpoint={checkpoint} another: give one of them")
        return RunPlace(path.parents[1], path.name)
    if not (path / WEIGHTS).exists():
        return RunPlace(path, checkpoint)
    if not (path.parent / "config.json").exists():
        raise RunFolderError(f"{path} is a model without its run, whose data and folds are needed: name a run folder, or train one")
    return RunPlace(path.parent, checkpoint or _weights_of_model(path))


def _weights_of_model(model: Path) -> str | None:
    """The position that an unfinished run has written its model/ from; None for a finished one, where it is what the run reports."""
    status, stored = (model.parent / "status.json", model / "config.json")
    if status.exists() and json.loads(status.read_text(encoding="utf-8")).get("state") == "done":
        return None
    return json.loads(stored.read_text(encoding="utf-8")).get("checkpoint") if stored.exists() else None
