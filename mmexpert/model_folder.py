"""Where the model lies that a path names: the folder that a run writes at its end, and perhaps a checkpoint with other weights."""

import json
from pathlib import Path

from mmexpert.engine.step_folder import MODEL, verified
from mmexpert.run_place import CHECKPOINTS
from mmexpert.types import RunFolderError


def model_folder(path: Path) -> tuple[Path, Path | None]:
    """(model folder, checkpoint whose weights are meant instead of its own, or None) of a run, fold, checkpoint or model/ folder.

    Raises RunFolderError where there is no model, or a checkpoint is damaged.
    """
    if path.absolute().parent.name == CHECKPOINTS and path.is_dir():
        return _of_checkpoint(path)
    folder = next((folder for folder in (path / "model", path / "final" / "model", path) if _is_model(folder)), None)
    if folder is None:
        weights = [*path.glob("*/model/model.safetensors"), *path.glob("*/*/model/model.safetensors")]  # its folds; runs and theirs
        below = sorted(str(file.parents[1]) for file in weights)[:5]
        inside = f"; load one of those inside it: {', '.join(below)}" if below else ""
        raise RunFolderError(f"{path}: no model/ with model.safetensors and config.json; a run writes it at its end{inside}")
    return folder, None


def _is_model(folder: Path) -> bool:
    return (folder / MODEL).exists() and (folder / "config.json").exists()


def _of_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """Configuration, tokenizer and classes are those of the run's model/: they are the same in all of its checkpoints."""
    folder = path.absolute().parents[1] / "model"
    if not _is_model(folder):
        raise RunFolderError(
            f"{path}: the run has no model/ beside its checkpoints, whose configuration is needed: it writes one at its end, or when it "
            "is stopped after a validation; mmexpert.evaluate takes checkpoints without it"
        )
    try:
        verified(path.resolve())
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path}: {error}; choose another folder below {path.parent}") from error
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("checkpoint")
    return folder, None if path.resolve().name == stored else path
