"""A run from data set to result: what train.py does once there is something to train. One fold after the other, one loop."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmexpert import build
from mmexpert.config import NOT_HASHED, instantiate
from mmexpert.data.records import RecordDataset
from mmexpert.engine import folds as folding
from mmexpert.engine.checkpoint import Checkpoints, KeepSettings
from mmexpert.engine.console import Console, set_up_logging
from mmexpert.engine.finish import finish_fold
from mmexpert.engine.lock import RunLock
from mmexpert.engine.loop import FitSettings, fit
from mmexpert.engine.meter import Meter
from mmexpert.engine.results import write_run_files
from mmexpert.engine.runtime import LaunchSettings, Ranks, Run, adopt_slurm, launch, seed_all, seed_rank
from mmexpert.engine.status import config_hash, read_status, write_status
from mmexpert.engine.summary import aggregate
from mmexpert.engine.tracking import Tracker, TrackerSettings
from mmexpert.engine.watch import Watch, WatchSettings
from mmexpert.types import DataError, MmexpertError, RunFolderError

log = logging.getLogger(__name__)
Config = dict[str, Any]
T = TypeVar("T")


def on_first_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Result of work, done by rank 0 while the others wait; its error is raised on every rank, so that none is left waiting."""
    outcome: tuple[T | None, Exception | None] = (None, None)
    if ranks.rank == 0:
        try:
            outcome = (work(), None)
        except (MmexpertError, OSError) as error:
            outcome = (None, error)
    value, error = ranks.gather_objects(outcome)[0]
    if error is not None:
        raise error
    return value
