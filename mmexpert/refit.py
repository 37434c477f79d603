"""cv.refit: after the folds one model on all their rows, for as many epochs as the folds needed. No part of it is held out."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from mmexpert.engine.folds import Fold
from mmexpert.engine.results import read_json
from mmexpert.session import Session

log = logging.getLogger(__name__)
PLACE = "final"


def final_fold(folds: Sequence[Fold]) -> Fold:
    """All rows of the folds as one training part; the data set's own test part stays outside. Its seed is the run's."""
    first = folds[0]
    return Fold(0, 1, sorted({*first.train, *first.valid, *first.test}), [], [], first.external, place=PLACE)


def final_session(session: Session, folds: Sequence[Fold]) -> Session:
    """The session with the median of the folds' best epochs as length (half an epoch is a whole one), and nothing that ends it earlier.

    Under cv.selection=last a fold's reported epoch is its last: the model on all rows is trained as long as the folds were.
    The schedule of the learning rate ends with it, as it does in the folds.
    """
    best = [read_json(fold.folder(session.folder) / "metrics.json")["best_epoch"] for fold in folds]
    epochs = math.floor(median(best) + 0.5)
    log.info("cv.refit: one model on all rows for %d epochs, the median of %s", epochs, ", ".join(map(str, best)))
    trainer = session.cfg["trainer"]
    trainer = trainer | {"epochs": epochs, "max_steps": None, "early_stopping": trainer["early_stopping"] | {"patience": None}}
    return replace(session, cfg=session.cfg | {"trainer": trainer})
