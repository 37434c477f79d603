"""Which weights of a run `checkpoint=` names: a position below its checkpoints/, verified."""

from pathlib import Path
from typing import Any

from mmexpert.config import suggest
from mmexpert.engine.status import read_status
from mmexpert.engine.step_folder import STATE, latest, read_state, verified
from mmexpert.run_place import CHECKPOINTS, WEIGHTS
from mmexpert.types import RunFolderError


def stored_weights(cfg: dict[str, Any], folder: Path, checkpoint: str | None) -> Path:
    """The position below checkpoints/ that is meant, its files verified. Raises RunFolderError listing what is there.

    checkpoint: best, last, or a folder's name; None: what the run has reported, of a finished run alone. A finished run without
    validation has no best: there its last stands for it.
    """
    home, status = folder / CHECKPOINTS, read_status(folder)
    there = positions(home)
    if not there:
        raise RunFolderError(f"{folder} holds no checkpoint yet: the same train command continues it")
    done = status is not None and status.state == "done"
    if checkpoint is None and not done:
        raise RunFolderError(f"{folder} is not finished: say which weights, checkpoint={'|'.join(there)}; the train command continues it")
    if checkpoint is None:
        checkpoint = "last" if cfg["cv"]["selection"] == "last" else "best"
    weights = home / checkpoint
    if checkpoint not in there:
        if checkpoint not in ("best", "last"):
            raise RunFolderError(f"checkpoint={checkpoint}: {home} holds no such folder{suggest(checkpoint, there)}")
        weights = _unlinked(home, checkpoint, done)
    try:
        verified(weights.resolve())
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{weights}: {error}; there are {', '.join(there)}") from error
    return weights


def positions(home: Path) -> list[str]:
    """Names below checkpoints/ in the order best, last, epochs, steps."""
    names = [name for pattern in ("best*", "last", "epoch_*", "step_*") for name in sorted(path.name for path in home.glob(pattern))]
    return [name for name in names if (home / name / WEIGHTS).exists()]


def _unlinked(home: Path, checkpoint: str, done: bool) -> Path:
    """best or last where no link says it: a run without validation, or a file system without links."""
    newest = latest(home)
    if newest is None:
        raise RunFolderError(f"{home} has no {checkpoint}; there are {', '.join(positions(home))}")
    best = read_state(newest / STATE)["progress"]["best"] if checkpoint == "best" else {}
    entries = next(iter(best.values()), [])
    if checkpoint == "best" and not entries and not done:
        raise RunFolderError(f"checkpoint=best: no epoch has been validated yet; {home} holds {', '.join(positions(home))}")
    return home / entries[0]["folder"] if entries else newest
