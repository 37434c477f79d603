"""cv=nested: every fold first trains each entry of cv.grid on folds within its training part, then the winner as any fold."""

import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmexpert.command_line import composed
from mmexpert.config import NOT_HASHED, check
from mmexpert.engine.folds import Fold
from mmexpert.engine.inner_folds import chosen_entry, inner_folds, read_selected, write_selected
from mmexpert.engine.progress import mode_of
from mmexpert.engine.results import read_json
from mmexpert.engine.runtime import Ranks, on_first_rank
from mmexpert.engine.status import Status, config_difference, config_hash, note_end, read_status, write_status
from mmexpert.session import Session
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
Train = Callable[[Session, Fold, int, Any], float | None]
_FIXED = ("dataset", "cv", "name")


@dataclass(frozen=True)
class Entry:
    """An entry of the grid: its words as given, its overrides, and the run's configuration with them."""

    text: str
    overrides: list[str]
    cfg: dict[str, Any]
    hash: str


def grid_entries(session: Session) -> list[Entry]:
    """The entries of cv.grid, each composed and checked. Raises ConfigError for a key that a grid may not change, before any training."""
    if config_hash(check(composed(*session.overrides)), NOT_HASHED) != session.hash:
        raise ConfigError(
            "cv=nested composes its entries from the overrides alone: leave out --config-name, --config-dir and hydra.searchpath"
        )
    entries = []
    for text in session.cv.grid:
        overrides = shlex.split(text)
        cfg = check(composed(*session.overrides, *overrides))
        for key, _, now in config_difference(session.cfg, cfg, NOT_HASHED):
            if key.split(".")[0] in _FIXED:
                raise ConfigError(f"cv.grid: {text!r} sets {key}={now}; a grid may change any key but dataset, cv and name")
        entries.append(Entry(text, overrides, cfg, config_hash(cfg, NOT_HASHED)))
    if len({entry.hash for entry in entries}) < len(entries):
        raise ConfigError(f"cv.grid={session.cv.grid}: two entries are the same configuration")
    return entries


def nested_train(session: Session, folds: Sequence[Fold], train: Train, restart: Callable[[], Any]) -> Train:
    """A train function for outer folds around that of one fold; says what it will cost. restart: makes the next Accelerator.

    Raises ConfigError or DataError, before any training, for an entry or an inner fold that could not be trained.
    """
    entries = grid_entries(session)
    for fold in folds:
        inner_folds(session.dataset, fold, session.cv, 1)
    inner = session.cv.inner_splits
    cost = f"{len(folds)} folds x ({inner} inner folds x {len(entries)} entries + 1) = {len(folds) * (inner * len(entries) + 1)} trainings"
    log.info("cv=nested: %s", cost)

    def train_outer(session: Session, fold: Fold, count: int, accelerator: Any) -> float | None:
        """Chooses the fold's entry, unless an earlier sitting has, and trains it."""
        folder, ranks = fold.folder(session.folder), Ranks(accelerator)
        chosen = on_first_rank(ranks, lambda: _begin(session, folder, entries))
        if chosen is None:
            with _failure_told(session, folder, ranks):
                chosen, accelerator = _choose(session, fold, entries, (count, train, restart), accelerator)
        entry = entries[chosen]
        winner = replace(session, cfg=entry.cfg, overrides=[*session.overrides, *entry.overrides])  # hash: of the run, as in every fold
        return train(winner, fold, count, accelerator)

    return train_outer


def _choose(
    session: Session, fold: Fold, entries: Sequence[Entry], tools: tuple[int, Train, Callable[[], Any]], accelerator: Any
) -> tuple[int, Any]:
    """(number of the best entry from 0, a fresh Accelerator): trains what is not finished of the inner folds."""
    (count, train, restart), folder = tools, fold.folder(session.folder)
    monitor = session.cfg["trainer"]["monitor"]
    monitor = monitor[0] if isinstance(monitor, list) else monitor
    scores: list[list[float | None]] = []
    for number, entry in enumerate(entries, 1):
        one = replace(session, cfg=entry.cfg, overrides=[*session.overrides, *entry.overrides], hash=entry.hash)
        scores.append([])
        for inner in inner_folds(session.dataset, fold, session.cv, number):
            place = inner.folder(session.folder)
            if not _done(place, entry.hash):
                session.stops.end()  # none begins after a stop signal
                train(one, inner, count, accelerator)
                accelerator = restart()
            metrics = read_json(place / "metrics.json")
            scores[-1].append(metrics.get(monitor, metrics["best_value"]))
            on_first_rank(Ranks(accelerator), lambda place=place: _tidy(place))
    chosen = chosen_entry(scores, session.cfg["trainer"]["mode"] or mode_of(monitor))
    on_first_rank(Ranks(accelerator), lambda: write_selected(folder, session.cv.grid, scores, chosen, monitor))
    log.info("fold %d: %s of the grid is the best, %s %s", fold.number, entries[chosen].text or "the run as it is", monitor, scores[chosen])
    return chosen, accelerator


def _begin(session: Session, folder: Path, entries: Sequence[Entry]) -> int | None:
    """The number of the entry that an earlier sitting chose; None where all is still to do, and the fold is said to run."""
    selected = read_selected(folder)
    if selected is not None and selected["overrides"] == [entry.text for entry in entries]:
        return selected["chosen"] - 1
    folder.mkdir(parents=True, exist_ok=True)
    write_status(folder, Status("running", session.hash, session.fingerprint))
    return None


@contextmanager
def _failure_told(session: Session, folder: Path, ranks: Ranks) -> Iterator[None]:
    """Leaves in the outer fold's status how an inner training ended that was stopped or failed."""
    try:
        yield
    except BaseException as error:  # of any kind, a stop too: status.json says how the fold ended, the error goes on
        if ranks.rank == 0:
            note_end(folder, session.hash, error)
        raise


def _done(folder: Path, digest: str) -> bool:
    status = read_status(folder)
    return status is not None and status.state == "done" and status.config_hash == digest


def _tidy(folder: Path) -> None:
    """Weights of an inner training serve nobody once its figure is known."""
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
