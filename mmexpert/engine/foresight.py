"""What a run would only find out after its first epoch: a monitored key that validation does not give."""

import copy
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmexpert.engine.progress import check_monitors
from mmexpert.engine.random_state import capture, restore
from mmexpert.types import NonFiniteError

_ROWS = 32  # of the validation part: enough for most names, a second's work


def foresee_monitors(monitors: Iterable[str | None], objective: nn.Module, loaders: Any, evaluator: Any, accelerator: Any) -> None:
    """Scores some rows of the validation part with the untrained weights; a key that is missing there is looked for in all of it.

    Keys of training (`train/...`) are known after the first epoch only. Raises ConfigError listing what validation gives. The generators
    are as they were: the run that follows is the one without this look.
    """
    wanted = [key for key in monitors if key is not None and not key.startswith("train/")]
    random, training = capture(), objective.training
    rows = loaders.parts["valid"]
    step = max(1, len(rows) // _ROWS)
    objective.eval()
    logging.disable(logging.WARNING)  # what the evaluator has to say, it says after the first epoch
    try:
        for part in (rows[::step], rows):  # spread out: neighbours are of one class or group
            known = _names(part, objective, loaders, evaluator, accelerator)
            if set(wanted) <= known:
                return
        if known:
            check_monitors(wanted, known)
    finally:
        logging.disable(logging.NOTSET)
        objective.train(training)
        restore(random)


def _names(rows: list[int], objective: nn.Module, loaders: Any, evaluator: Any, accelerator: Any) -> set[str]:
    """Keys of a validation over these rows; none where weights that know nothing, or so few rows, can not be scored."""
    shortened = copy.copy(loaders)
    shortened.parts = loaders.parts | {"valid": list(rows)}
    shortened.workers = replace(loaders.workers, num_workers=0)
    try:
        with torch.no_grad():
            metrics = copy.deepcopy(evaluator)(objective, shortened, accelerator, "valid").metrics
    except (NonFiniteError, ValueError):
        return set()
    return {f"valid/{name}" for name, value in metrics.items() if isinstance(value, (int, float))}
