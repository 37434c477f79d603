"""The folds of a run in turn, or in processes of their own: each locked while it trains, summed up when none is left."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mmexpert.engine.console import fold_table
from mmexpert.engine.files import write_atomic
from mmexpert.engine.folds import Fold, chosen_folds
from mmexpert.engine.folds_file import write_class_table
from mmexpert.engine.lock import RunLock, holder
from mmexpert.engine.results import read_json
from mmexpert.engine.runtime import Ranks, on_first_rank
from mmexpert.engine.status import Status, read_status, write_status
from mmexpert.engine.summary import aggregate
from mmexpert.fold_workers import Failures, run_workers, worker_count
from mmexpert.refit import PLACE, final_fold, final_session
from mmexpert.report import write_report
from mmexpert.session import Session, open_tracker
from mmexpert.types import ConfigError, RunFolderError, SourceError

log = logging.getLogger(__name__)
Train = Callable[[Session, Fold, int, Any], float | None]
"""train(session, fold, number of folds, accelerator) -> best monitored value"""


def run_folds(session: Session, folds: Sequence[Fold], accelerator: Any, train: Train, restart: Callable[[], Any]) -> float | None:
    """Trains the chosen folds that are neither finished nor held by another process; returns the mean of their best monitored values.

    restart: makes the Accelerator of the next fold. A failed fold does not stop the others (with one process): its error is raised at
    the end. Raises RunFolderError where cv.fold is one number and that fold is held.
    """
    ranks = Ranks(accelerator)
    try:
        return _run_folds(session, folds, accelerator, train, restart)
    except (SystemExit, KeyboardInterrupt) as stop:
        if ranks.rank == 0:
            _write_state(session, "stopped", getattr(stop, "code", 130))
        raise


def _run_folds(session: Session, folds: Sequence[Fold], accelerator: Any, train: Train, restart: Callable[[], Any]) -> float | None:
    ranks = Ranks(accelerator)
    on_first_rank(ranks, lambda: _begin(session))
    wanted = chosen_folds(list(folds), session.cv)
    workers = worker_count(session.cv.workers, session.cfg["trainer"]["device"])
    failed: Failures = {}
    if workers > 1:
        failed = run_workers(session, [fold.number for fold in wanted if _best_value(session, fold) is None], workers)
    else:
        for fold in wanted:
            if _done(session, fold):
                log.info("fold %d is finished", fold.number)
                continue
            error = _locked_fold(session, fold, len(folds), accelerator, train)
            if error is not None:
                failed[fold.number] = error
            accelerator = restart()  # one a fold: prepared models of a finished one would stay registered
    missing = on_first_rank(ranks, lambda: finish_folds(session, accelerator))
    if session.cv.refit and not missing and not failed:
        _refit(session, folds, accelerator, train)
    on_first_rank(ranks, lambda: write_report(session.folder))
    if failed:
        log.error("failed: %s", "; ".join(f"fold {number}: {type(error).__name__}: {error}" for number, error in failed.items()))
        raise next(iter(failed.values()))
    values = [value for fold in wanted if (value := _best_value(session, fold)) is not None]
    return sum(values) / len(values) if values else None


def _refit(session: Session, folds: Sequence[Fold], accelerator: Any, train: Train) -> None:
    """The model on all rows, unless it is there or another process makes it; then the run is done."""
    ranks, fold = Ranks(accelerator), final_fold(folds)
    if not _done(session, fold):
        error = _locked_fold(final_session(session, folds), fold, len(folds), accelerator, train)
        if error is not None:
            raise error
    on_first_rank(ranks, lambda: _write_state(session, "done", 0))


def _locked_fold(session: Session, fold: Fold, count: int, accelerator: Any, train: Train) -> Exception | None:
    """Trains a fold under its lock; skips it where another process holds that. Returns the error of a failed fold.

    SystemExit where a stop signal has come since the last look: then no fold begins.
    """
    session.stops.end()
    ranks, folder = Ranks(accelerator), fold.folder(session.folder)
    lock, name = RunLock(folder), folder.name.replace("_", " ")
    taken = on_first_rank(ranks, lambda: _taken(lock))
    if taken and isinstance(session.cv.fold, int) and fold.number:
        raise RunFolderError(taken)
    if taken:
        log.info("%s is left to its holder: %s", name, taken)
        return None
    try:
        train(session, fold, count, accelerator)
    except (ConfigError, SourceError):  # so it would be in every fold
        raise
    except Exception as error:  # whatever ended this fold must not end the others: raised when they are done
        if ranks.processes > 1:
            raise  # the other ranks may be elsewhere in the fold
        log.error("%s failed", name, exc_info=error)
        return error
    finally:
        lock.release()
    return None


def _taken(lock: RunLock) -> str:
    """Empty where the lock is ours now, else who holds it."""
    try:
        lock.acquire()
    except RunFolderError as error:
        return str(error)
    return ""


def _begin(session: Session) -> None:
    write_class_table(session.folder, session.dataset)
    if read_status(session.folder) is None:  # a killed run must be found by resume=must
        write_status(session.folder, Status("running", session.hash, session.fingerprint))


def _done(session: Session, fold: Fold) -> bool:
    status = read_status(fold.folder(session.folder))
    return status is not None and status.state == "done" and status.config_hash == session.hash


def _best_value(session: Session, fold: Fold) -> float | None:
    return read_json(fold.folder(session.folder) / "metrics.json").get("best_value") if _done(session, fold) else None


def finish_folds(session: Session, accelerator: Any) -> list[int]:
    """The summary over the folds that are done, and the run's status; once more where another process ended a fold meanwhile.

    Returns the numbers of the folds that are missing. The first to find none tells the tracker.
    """
    before = read_status(session.folder)
    summary = _sum_up(session)
    while summary["folds_missing"] and any(_ended(session, f"fold_{number}") for number in summary["folds_missing"]):
        summary = _sum_up(session)
    for line in ["", *fold_table(summary), *where(session, summary)]:
        log.info("%s", line)
    if not summary["folds_missing"] and (before is None or before.state != "done"):
        tracker = open_tracker(session, session.folder, accelerator, "summary")
        entries = summary["metrics"] | summary["group_metrics"]
        means = {f"cv/{name}_{key}": entry[key] for name, entry in entries.items() for key in ("mean", "sd")}
        tracker.log_summary(means | {f"external/{name}": value for name, value in summary["external"].get("metrics", {}).items()})
        tracker.log_images(session.folder / "plots", 0)
        tracker.finish()
    return summary["folds_missing"]


def where(session: Session, summary: dict[str, Any]) -> list[str]:
    """The last lines of a run with folds: what to open."""
    folds = ", ".join(f"fold_{number}" for number in summary["folds_done"])
    files = "report.html, cv_summary.md, cv_summary.json, oof_predictions.csv, per_class.csv, confusion.csv"
    there = [name for name in files.split(", ") if name == "report.html" or (session.folder / name).exists()]  # the page is written last
    return ["", f"in {session.folder}: {', '.join(there)}; {folds}"]


def _ended(session: Session, place: str) -> bool:
    status = read_status(session.folder / place)
    return status is not None and status.state == "done"


def _sum_up(session: Session) -> dict[str, Any]:
    summary = aggregate(session.folder)
    write_atomic(session.folder / "result.txt", "\n".join(["", *fold_table(summary), *where(session, summary)]) + "\n")
    done = summary["state"] == "done" and (not session.cv.refit or _ended(session, PLACE))
    _write_state(session, "done" if done else "", 0)
    return summary


def _write_state(session: Session, state: str, code: int) -> None:
    """The run's status.json out of its folds'. state: done | stopped (by a signal) | empty: some folds have not been run yet.

    Then it runs while another process holds a fold, has failed where a fold has, and is stopped otherwise: cv.fold, or a process that
    was killed; the same command takes up what is missing.
    """
    folders = [*sorted(session.folder.glob("fold_*")), *session.folder.glob(PLACE)]
    states = [status for folder in folders if (status := read_status(folder)) is not None]
    failed = next((status for status in states if status.state == "failed"), None)
    held = any(holder(folder) for folder in folders)
    status = Status(state or ("running" if held else "failed" if failed else "stopped"), session.hash, session.fingerprint)
    status.seconds = round(sum(fold.seconds for fold in states), 1)
    status.resumes = [row for fold in states for row in fold.resumes]
    if status.state == "failed":
        status.exit_code, status.error = failed.exit_code, failed.error
    elif status.state != "running":
        status.exit_code, status.stopped = code, "signal" if state == "stopped" else None
    write_status(session.folder, status)
