"""A run from data set to result: what train.py does once there is something to train. One fold after the other, one loop."""

import gc
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.command_line import said_beside
from mmexpert.engine.chance import chance_loss, contrastive_rows
from mmexpert.engine.console import fold_log, set_up_logging
from mmexpert.engine.export import save_model
from mmexpert.engine.failures import translated
from mmexpert.engine.finish import Finished, load_best, score_parts, write_results
from mmexpert.engine.folds import Fold, fold_seed
from mmexpert.engine.folds_file import settle_folds, write_class_table
from mmexpert.engine.foresight import foresee_monitors
from mmexpert.engine.lock import RunLock
from mmexpert.engine.loop import fit
from mmexpert.engine.progress import Progress
from mmexpert.engine.results import provenance, read_json, versions, write_run_files
from mmexpert.engine.runtime import LaunchSettings, Ranks, launch, on_first_rank, seed_all, seed_rank
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.engine.stamps import stamps
from mmexpert.engine.status import Status, read_status, told_error, trained, write_status
from mmexpert.engine.step_folder import newest_position
from mmexpert.engine.stops import Stops
from mmexpert.engine.tracking import NAMES
from mmexpert.fold_runs import run_folds
from mmexpert.kept_models import keep_best, keep_pth
from mmexpert.nested import nested_train
from mmexpert.report import write_report
from mmexpert.session import Session, load_initial, open_run, start_line
from mmexpert.session_opening import open_noted
from mmexpert.types import RunFolderError
from mmexpert.vocabulary import settle_words

log = logging.getLogger(__name__)
Config = dict[str, Any]


def train_run(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str]) -> float | None:
    """Trains what is not finished and returns the best monitored value (mean over folds)."""
    adopt_slurm()
    ranks = Ranks(start_accelerator(cfg, folder))
    set_up_logging(folder, ranks.rank)
    with Stops(ranks) as stops:
        if cfg["cv"]["splitter"] is None:
            return _train_alone(cfg, folder, overrides, trust, stops)
        session = open_noted(cfg, folder, overrides, trust, stops)  # each fold has a lock: several processes may share the folds
        folds = on_first_rank(ranks, lambda: settle_folds(folder, session.dataset, session.cv))
        train, restart = train_fold, lambda: start_accelerator(cfg, folder)
        if session.cv.grid is not None:
            train = nested_train(session, folds, train_fold, restart)
        return run_folds(session, folds, ranks.accelerator, train, restart)


def _train_alone(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str], stops: Stops) -> float | None:
    """A run without folds, under its lock."""
    lock, ranks = RunLock(folder), stops.ranks
    on_first_rank(ranks, lambda: lock.acquire() and None)
    try:
        session = open_noted(cfg, folder, overrides, trust, stops)
        (fold,) = on_first_rank(ranks, lambda: settle_folds(folder, session.dataset, session.cv))
        value = train_fold(session, fold, 1, ranks.accelerator)
        on_first_rank(ranks, lambda: write_report(folder))
    finally:
        lock.release()
    return value


def start_accelerator(cfg: Config, folder: Path) -> Any:
    """The processes of a fold."""
    trainer = cfg["trainer"]
    settings = LaunchSettings(
        trainer["device"],
        trainer["mixed_precision"],
        trainer["accumulation"],
        trainer["deterministic"],
        trainer["group_timeout_s"],
        cfg["expect_processes"],
    )
    log_with = cfg["tracker"]["log_with"]
    return launch(settings, NAMES.get(log_with) if log_with else None, folder)


def train_fold(session: Session, fold: Fold, count: int, accelerator: Any) -> float | None:
    """One fold from wherever it stands to its files; returns its best monitored value."""
    cfg, ranks = session.cfg, Ranks(accelerator)
    folder = fold.folder(session.folder)
    status = read_status(folder)
    if status is not None and status.state == "done" and status.config_hash == session.hash:
        log.info("%s is finished", folder.name)
        return read_json(folder / "metrics.json").get("best_value")
    if status is not None and status.fingerprint and status.fingerprint != session.fingerprint and trained(folder):
        raise RunFolderError(f"{folder}: the data has changed since the run began; choose another name=, or resume=never")
    own_log: AbstractContextManager[None] = nullcontext()
    if folder != session.folder and ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_run_files(folder, cfg, session.overrides, session.hash, ranks.processes, said_beside(session.trust))
        write_class_table(folder, session.dataset)
        own_log = fold_log(folder)
    started = time.monotonic()
    status = status or Status("running", session.hash)
    status.state, status.fingerprint, status.error, before = "running", session.fingerprint, None, status.seconds
    if ranks.rank == 0:
        write_status(folder, status)
    progress = None
    try:
        with translated(accelerator.device, ranks.processes, cfg["trainer"]["grad_checkpointing"]), own_log:
            progress, finished = _train(session, fold, folder, fold.prefix(count), accelerator, status, started)
        status.state, status.stopped, status.exit_code = "done", "epochs" if progress.patience_left else "early", 0
        status.epoch, status.step, status.best_epoch = progress.epoch, progress.step, finished.metrics["best_epoch"]
        return finished.best_value
    except (SystemExit, KeyboardInterrupt) as stop:
        status.state, status.stopped, status.exit_code = "stopped", "signal", getattr(stop, "code", 130)
        status.epoch, status.step = newest_position(folder / "checkpoints") or (status.epoch, status.step)
        log.info("stopped and saved at step %d: the same command continues", status.step)
        raise
    except Exception as error:  # of any kind: status.json says how the fold ended, the error goes on
        status.state, status.exit_code = "failed", getattr(error, "exit_code", 1)
        status.error = told_error(error)
        raise
    finally:
        status.seconds = round(before + time.monotonic() - started, 1)
        if ranks.rank == 0:
            write_status(folder, status)
            if status.state == "done" and folder != session.folder:  # the run's own page comes last
                write_report(folder)
        accelerator.free_memory()
        gc.collect()


def _train(
    session: Session, fold: Fold, folder: Path, prefix: str, accelerator: Any, status: Status, started: float
) -> tuple[Progress, Finished]:
    cfg, ranks, dataset = session.cfg, Ranks(accelerator), session.dataset
    parts = fold.parts(dataset)
    seed = fold_seed(cfg["seed"], fold, session.cv.same_init)
    with session.stops.at_once():  # nothing is there to be saved
        seed_all(seed)
        texts = dataset.training_texts(parts["train"])
        tokenizer, corpus = settle_words(cfg, folder, dataset.vocabulary_texts(parts["train"]), texts, ranks)
        classes = build.training_classes(dataset, parts["train"])
        model = build.build_model(cfg, classes, tokenizer, session.trust)
        objective = build.build_objective(cfg, model, corpus, session.trust, dataset.keys[parts["train"]])
        if cfg["init_from"]:
            load_initial(objective, Path(cfg["init_from"]), cfg["init_strict"])
        seed_rank(seed, ranks.rank)
        dataset.fit(parts["train"])
        place = build.Placement(accelerator.device, ranks.rank, ranks.processes)
        objective.to(accelerator.device)
        cache = build.build_cache(cfg, model, dataset, tokenizer)  # frozen towers become tables
        served, tokens = (cache.dataset, cache.tokenizer) if cache else (dataset, tokenizer)
        loaders = build.build_loaders(cfg, served, parts, tokens, seed, place)
        optimizer, schedule = build.build_optimizer(cfg, objective, loaders.steps_per_epoch)
        evaluator = build.build_evaluator(cfg, session.trust)
    run, settings = open_run(session, folder, prefix, accelerator, loaders, objective, optimizer)
    run.checkpoints.extra["preparation"] = build.stored_preparation(cfg, dataset)
    if ranks.rank == 0 and fold.number < 2 and not fold.place:
        start_line(session, ranks, accelerator, objective, parts, tokenizer, texts)
    try:
        loaders.on_batch = session.stops.end
        if settings.monitors and not trained(folder):
            wanted = [*settings.monitors, cfg["trainer"]["early_stopping"]["monitor"]]
            foresee_monitors(wanted, objective, loaders, evaluator, accelerator)
        progress = fit(objective, loaders, evaluator, optimizer, schedule, settings, run)
        weights = load_best(objective, run.checkpoints, session.cv.selection == "last")
        wanted = [*cfg["final_parts"], *([] if parts["test"] else ["valid"]), *(["external"] if fold.external else [])]
        scored = score_parts(objective, loaders, evaluator, accelerator, list(dict.fromkeys(wanted)))
        session.stops.end()  # from here on the fold ends as done: writing is short, and no further fold begins
        if cache:
            cache.put_back()  # the saved model has its towers
        words, seconds = (tokenizer, classes), status.seconds + time.monotonic() - started
        finished = on_first_rank(ranks, lambda: _write(session, folder, objective, words, progress, scored, weights, seconds))
        run.tracker.log_images(folder / "plots", progress.step)
        on_first_rank(ranks, lambda: keep_pth(folder, cfg, run.checkpoints, progress, classes))
        if (step := run.checkpoints.resumed_step) is not None:
            row = {"step": step, "versions": versions(), "processes": ranks.processes, "exact": run.checkpoints.exact}
            status.resumes.append(row)
    except SystemExit:  # asked to stop: what is best so far can be used
        keep_best(session, folder, objective, (tokenizer, classes), run.checkpoints, cache)
        raise
    finally:
        loaders.close()
        run.tracker.finish()
    return progress, finished


def _write(
    session: Session,
    folder: Path,
    objective: Any,
    words: tuple[Any, Any],
    progress: Progress,
    scored: dict[str, Any],
    weights: Path,
    seconds: float,
) -> Finished:
    """words: tokenizer and class table, or None; weights: the file that was scored."""
    origin, rows = provenance(session.cfg, weights, session.fingerprint), contrastive_rows(session.cfg["trainer"])
    chance_rows = rows if chance_loss(objective.loss, rows) is not None else None
    stamped = stamps(session.dataset, session.cv.selection)
    finished = write_results(folder, session.cfg, progress, scored, origin, chance_rows, seconds, stamped)
    preparation = build.stored_preparation(session.cfg, session.dataset)
    save_model(folder / "model", objective, session.cfg, *words, finished.metrics, preparation, weights.parent.name)
    return finished
