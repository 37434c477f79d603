"""How a run begins: its files are written, its configuration rehearsed, its data set built and compared with what it was."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.command_line import said_beside
from mmexpert.config import NOT_HASHED, instantiate
from mmexpert.data.records import content_lines
from mmexpert.engine.class_merge import without_small
from mmexpert.engine.console import note_command
from mmexpert.engine.data_records import keep_records
from mmexpert.engine.lock import holder
from mmexpert.engine.results import write_run_files
from mmexpert.engine.runtime import check_shared, on_first_rank
from mmexpert.engine.status import config_hash, note_end
from mmexpert.engine.stops import Stops
from mmexpert.fold_workers import check_workers
from mmexpert.rehearsal import rehearse
from mmexpert.session import Session
from mmexpert.types import ConfigError, MmexpertError, StorageError

log = logging.getLogger(__name__)
Config = dict[str, Any]


def open_noted(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str], stops: Stops) -> Session:
    """open_session; how it fails or is stopped stands in status.json too, but where another process is at work in the folder."""
    try:
        with stops.at_once():
            return open_session(cfg, folder, overrides, trust, stops)
    except (MmexpertError, SystemExit, KeyboardInterrupt) as error:
        others = any(holder(path.parent) for path in folder.glob("fold_*/.lock"))
        if stops.ranks.rank == 0 and not others and not isinstance(error, StorageError):
            note_end(folder, config_hash(cfg, NOT_HASHED), error)
        raise


def open_session(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str], stops: Stops) -> Session:
    """Builds the data set (rank 0 first: it may have to be simulated), writes the run's files, compares fingerprints."""
    digest, ranks = config_hash(cfg, NOT_HASHED), stops.ranks
    check_shared(folder, ranks)
    if ranks.rank == 0:
        write_run_files(folder, cfg, overrides, digest, ranks.processes, said_beside(trust))
        note_command(folder)
    rehearse(cfg, trust, ranks.processes)
    dataset = on_first_rank(ranks, lambda: build.build_dataset(cfg, trust), share=False)
    if dataset is None:  # another rank: what had to be simulated is there by now
        dataset = build.build_dataset(cfg, trust)
    for warning in dataset.exclusions.warnings:
        log.warning("%s", warning)
    if cfg["data_check"] == "deep":
        from mmexpert.check_data import require_sound

        on_first_rank(ranks, lambda: require_sound(dataset))
    fingerprint = dataset.fingerprint()
    on_first_rank(ranks, lambda: keep_records(folder, fingerprint, [*dataset.fingerprint_lines(), *content_lines(dataset.content_roots)]))
    cv = instantiate(cfg["cv"], "cv", trust)
    check_workers(cv, ranks.processes)
    if cv.selection == "last" and cfg["trainer"]["early_stopping"]["patience"]:
        raise ConfigError("cv.selection=last takes the last epoch: set trainer.early_stopping.patience=null, or cv.selection=inner")
    return Session(cfg, folder, overrides, trust, without_small(dataset, cv), cv, digest, fingerprint, stops)
