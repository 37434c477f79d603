"""Weights for use elsewhere than in the run: model/ of one that is stopped, and copies for programs that expect torch.save."""

import logging
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.engine.checkpoint import Checkpoints
from mmexpert.engine.export import save_model, save_pth
from mmexpert.engine.finish import load_best
from mmexpert.engine.parts import is_sharded
from mmexpert.engine.progress import Progress
from mmexpert.engine.step_folder import STATE, read_state
from mmexpert.session import Session
from mmexpert.types import ClassTable, MmexpertError

log = logging.getLogger(__name__)


def keep_best(session: Session, folder: Path, objective: Any, words: tuple[Any, Any], checkpoints: Checkpoints, cache: Any) -> None:
    """Writes model/ from the weights that the run would report, where an epoch has been validated. Called by every rank.

    words: tokenizer and class table, or None. cache: of frozen towers, or None. What goes wrong is a warning: the run ends anyway, and
    its checkpoints are whole. Parameters that are sharded over processes are left to the run's end.
    """
    if checkpoints.ranks.rank or is_sharded(objective):
        return
    try:
        newest = checkpoints.latest()
        progress = read_state(newest / STATE)["progress"] if newest else {"best": {}}
        best = next(iter(progress["best"].values()), [])
        if not best:
            return
        last = session.cv.selection == "last"
        weights = load_best(objective, checkpoints, last)
        if cache:
            cache.put_back()
        rows = progress["history"] if last else progress["history"][: best[0]["epoch"]]
        metrics = {name: value for name, value in rows[-1].items() if name.startswith("valid/")}
        preparation = build.stored_preparation(session.cfg, session.dataset)
        save_model(folder / "model", objective, session.cfg, *words, metrics, preparation, weights.parent.name)
        log.info("the weights of %s are in %s", weights.parent.name, folder / "model")
    except (MmexpertError, OSError, RuntimeError) as error:
        log.warning("%s is not written: %s", folder / "model", error)


def keep_pth(folder: Path, cfg: dict[str, Any], checkpoints: Checkpoints, progress: Progress, classes: ClassTable | None) -> None:
    """checkpoint_best.pth and checkpoint_latest.pth of a finished fold, where trainer.export_pth asks for them. Raises StorageError."""
    if not cfg["trainer"]["export_pth"]:
        return
    kept = {"best": checkpoints.best_folder(), "latest": checkpoints.latest()}
    epochs = {"best": progress.best_epoch or progress.epoch, "latest": progress.epoch}
    save_pth(folder, {name: (kept[name], progress.history[epochs[name] - 1]) for name in kept}, cfg, classes)
