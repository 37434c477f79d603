"""A run from data set to result: what train.py does once there is something to train. One fold after the other, one loop."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file

from mmexpert import build
from mmexpert.config import NOT_HASHED, instantiate
from mmexpert.data.records import RecordDataset
from mmexpert.engine.checkpoint import Checkpoints, KeepSettings
from mmexpert.engine.console import Console, set_up_logging
from mmexpert.engine.export import save_model
from mmexpert.engine.finish import Finished, load_best, score_parts, write_results
from mmexpert.engine.folds import CvSettings, Fold, chosen_folds, fold_seed, make_folds
from mmexpert.engine.folds_file import fix_folds
from mmexpert.engine.lock import RunLock
from mmexpert.engine.loop import FitSettings, fit
from mmexpert.engine.meter import Meter
from mmexpert.engine.progress import Choice, Progress
from mmexpert.engine.report import write_report
from mmexpert.engine.results import read_json, versions, write_data_report, write_run_files
from mmexpert.engine.runtime import LaunchSettings, Ranks, Run, adopt_slurm, launch, seed_all, seed_rank
from mmexpert.engine.status import Status, config_hash, read_status, write_status
from mmexpert.engine.summary import aggregate
from mmexpert.engine.tracking import NAMES, Tracker
from mmexpert.engine.watch import Watch, WatchSettings
from mmexpert.types import MmexpertError, RunFolderError

log = logging.getLogger(__name__)
Config = dict[str, Any]
T = TypeVar("T")


@dataclass
class Session:
    """One call of the command: its config, folder, data set and folds."""

    cfg: Config
    folder: Path
    overrides: list[str]
    trust: Sequence[str]
    dataset: RecordDataset
    cv: CvSettings
    hash: str
    fingerprint: str


def train_run(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str]) -> float | None:
    """Trains what is not finished and returns the best monitored value (mean over folds)."""
    adopt_slurm()
    accelerator = start_accelerator(cfg, folder)
    ranks = Ranks(accelerator)
    set_up_logging(folder, ranks.rank)
    lock = RunLock(folder)
    on_first_rank(ranks, lambda: lock.acquire() and None)
    try:
        session = open_session(cfg, folder, overrides, trust, ranks)
        folds = make_folds(session.dataset, session.cv)
        on_first_rank(ranks, lambda: fix_folds(folder, session.dataset, session.cv, folds))
        values = []
        for fold in chosen_folds(folds, session.cv):
            values.append(train_fold(session, fold, len(folds), accelerator))
            accelerator = start_accelerator(cfg, folder)  # one a fold: prepared models of a finished one would stay registered
        if session.cv.splitter is not None:
            on_first_rank(ranks, lambda: finish_folds(session))
        on_first_rank(ranks, lambda: write_report(folder))
    finally:
        lock.release()
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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


def open_session(cfg: Config, folder: Path, overrides: list[str], trust: Sequence[str], ranks: Ranks) -> Session:
    """Builds the data set (rank 0 first: it may have to be simulated), writes the run's files, compares fingerprints."""
    digest = config_hash(cfg, NOT_HASHED)
    if ranks.rank == 0:
        write_run_files(folder, cfg, overrides, digest, ranks.processes)
    dataset = on_first_rank(ranks, lambda: build.build_dataset(cfg, trust), share=False)
    if dataset is None:  # another rank: what had to be simulated is there by now
        dataset = build.build_dataset(cfg, trust)
    for warning in dataset.exclusions.warnings:
        log.warning("%s", warning)
    if cfg["data_check"] == "deep":
        from mmexpert.check_data import require_sound

        on_first_rank(ranks, lambda: require_sound(dataset))
    fingerprint = dataset.fingerprint()
    cv = instantiate(cfg["cv"], "cv", trust)
    return Session(cfg, folder, overrides, trust, dataset, cv, digest, fingerprint)


def train_fold(session: Session, fold: Fold, count: int, accelerator: Any) -> float | None:
    """One fold from wherever it stands to its files; returns its best monitored value."""
    cfg, ranks = session.cfg, Ranks(accelerator)
    folder = session.folder / f"fold_{fold.number}" if fold.number else session.folder
    status = read_status(folder)
    if status is not None and status.state == "done" and status.config_hash == session.hash:
        log.info("fold %d is finished", fold.number)
        return read_json(folder / "metrics.json").get("best_value")
    if status is not None and status.fingerprint and status.fingerprint != session.fingerprint:
        raise RunFolderError(f"{folder}: the data has changed since the run began; choose another name=, or resume=never")
    if fold.number and ranks.rank == 0:
        write_run_files(folder, cfg, session.overrides, session.hash, ranks.processes)
    started = time.monotonic()
    status = status or Status("running", session.hash)
    status.state, status.fingerprint, status.error, before = "running", session.fingerprint, None, status.seconds
    if ranks.rank == 0:
        write_status(folder, status)
    progress = None
    try:
        progress, finished = _train(session, fold, folder, f"[fold {fold.number}/{count}] " if fold.number else "", accelerator, status, started)
        status.state, status.stopped, status.exit_code = "done", "epochs" if progress.patience_left else "early", 0
        status.epoch, status.step, status.best_epoch = progress.epoch, progress.step, finished.metrics["best_epoch"]
        return finished.best_value
    except SystemExit as stop:
        status.state, status.stopped, status.exit_code = "stopped", "signal", stop.code
        raise
    except Exception as error:
        status.state, status.exit_code = "failed", getattr(error, "exit_code", 1)
        status.error = {"type": type(error).__name__, "message": str(error)[:2000]}
        raise
    finally:
        status.seconds = round(before + time.monotonic() - started, 1)
        if ranks.rank == 0:
            write_status(folder, status)
        accelerator.free_memory()
        gc.collect()


def _train(
    session: Session, fold: Fold, folder: Path, prefix: str, accelerator: Any, status: Status, started: float
) -> tuple[Progress, Finished]:
    cfg, trainer, ranks, dataset = session.cfg, session.cfg["trainer"], Ranks(accelerator), session.dataset
    parts = fold.parts(dataset)
    seed = fold_seed(cfg["seed"], fold, session.cv.same_init)
    seed_all(seed)
    texts = dataset.training_texts(parts["train"])
    tokenizer = build.build_tokenizer(cfg, texts)
    classes = build.training_classes(dataset, parts["train"])
    objective = build.build_objective(cfg, build.build_model(cfg, classes, tokenizer, session.trust), session.trust)
    if cfg["init_from"]:
        load_initial(objective, Path(cfg["init_from"]), cfg["init_strict"])
    seed_rank(seed, ranks.rank)
    place = build.Placement(accelerator.device, ranks.rank, ranks.processes)
    loaders = build.build_loaders(cfg, dataset, parts, tokenizer, seed, place)
    objective.to(accelerator.device)
    optimizer, schedule = build.build_optimizer(cfg, objective, loaders.steps_per_epoch)
    evaluator = build.build_evaluator(cfg, session.trust)
    run, settings = open_run(session, folder, prefix, accelerator, loaders, objective)
    if ranks.rank == 0 and not prefix or fold.number == 1 and ranks.rank == 0:
        start_line(session, ranks, accelerator, objective, parts, tokenizer, texts)
    try:
        with run.watch:
            loaders.on_batch = run.watch.poll
            progress = fit(objective, loaders, evaluator, optimizer, schedule, settings, run)
            load_best(objective, run.checkpoints, session.cv.selection == "last")
            wanted = [*cfg["final_parts"], *([] if parts["test"] else ["valid"])]
            scored = score_parts(objective, loaders, evaluator, accelerator, list(dict.fromkeys(wanted)))
        finished = on_first_rank(
            ranks,
            lambda: _write(session, folder, objective, tokenizer, classes, progress, scored, status.seconds + time.monotonic() - started),
        )
        if (step := run.checkpoints.resumed_step) is not None:
            row = {"step": step, "versions": versions(), "processes": ranks.processes, "exact": run.checkpoints.exact}
            status.resumes.append(row)
    finally:
        loaders.close()
        run.tracker.finish()
    return progress, finished


def _write(
    session: Session, folder: Path, objective: Any, tokenizer: Any, classes: Any, progress: Progress, scored: dict[str, Any], seconds: float
) -> Finished:
    finished = write_results(folder, session.cfg, progress, scored, "epochs" if progress.patience_left else "early", seconds)
    save_model(folder / "model", objective, session.cfg, tokenizer, classes, finished.metrics)
    if folder != session.folder:
        write_report(folder)
    return finished


def open_run(session: Session, folder: Path, prefix: str, accelerator: Any, loaders: Any, objective: Any) -> tuple[Run, FitSettings]:
    """What the loop needs beside model and data."""
    cfg, trainer, ranks = session.cfg, session.cfg["trainer"], Ranks(accelerator)
    total, epochs = build.run_length(cfg, loaders.steps_per_epoch)
    monitors = trainer["monitor"] if isinstance(trainer["monitor"], list) else [trainer["monitor"]]
    early = trainer["early_stopping"]
    choice = Choice(trainer["mode"], trainer["save_top_k"], early["monitor"], early["patience"], early["min_delta"])
    identity = {
        "config_hash": session.hash,
        "fingerprint": session.fingerprint,
        "seed": cfg["seed"],
        "batch_size": trainer["batch_size"],
        "accumulation": trainer["accumulation"],
        "versions": versions(),
    }
    keep = KeepSettings(trainer["keep_last"], trainer["save_every_minutes"], trainer["save_every_steps"])
    checkpoints = Checkpoints(folder / "checkpoints", identity, keep, choice, ranks, cfg["allow_world_change"])
    name = f"{cfg['name']}/{folder.relative_to(session.folder.parent)}"
    settings = instantiate(cfg["tracker"], "tracker")
    tracker = Tracker(folder, settings, accelerator if ranks.rank == 0 else None, name, cfg)
    console = Console(prefix, loaders.steps_per_epoch, ["acc", "map", "RSum", f"{objective.model.query}_to_{objective.model.target}_R@1"])
    meter = Meter(tracker, console, ranks, accelerator.device, trainer["log_every"], trainer["batch_size"])
    poll = trainer["poll_every"] or (10 if accelerator.device.type == "cuda" else 1)
    watch = Watch(accelerator, WatchSettings(trainer["nonfinite"], trainer["nonfinite_budget"], poll), checkpoints.minutes_due)
    has_valid = bool(loaders.parts["valid"])
    limit = trainer["max_grad_norm"] if trainer["max_grad_norm"] is not None else float("inf")
    fit_settings = FitSettings(total, epochs, trainer["val_every"] if has_valid else 0, limit, tuple(monitors) if has_valid else ())
    return Run(accelerator, checkpoints, tracker, watch, meter), fit_settings


def start_line(session: Session, ranks: Ranks, accelerator: Any, objective: Any, parts: dict[str, list[int]], tokenizer: Any, texts: list[str]) -> None:
    """Says what runs, and what of the data is cut or left out."""
    trainer = session.cfg["trainer"]
    micro = trainer["batch_size"] // (ranks.processes * trainer["accumulation"])
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    log.info(
        "%s/%s | %d process%s, %s, %s | batch %d = %d x %d x %d accumulation | %s | %.1f M parameters",
        session.cfg["name"], session.folder.name, ranks.processes, "es"[: 2 * (ranks.processes > 1)], accelerator.device.type, accelerator.mixed_precision,
        trainer["batch_size"], ranks.processes, micro, trainer["accumulation"],
        ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()), parameters / 1e6,
    )  # fmt: skip
    if trainer["accumulation"] > 1:
        log.info("accumulation adds no negatives: each micro-batch of %d is a contrastive batch of its own", micro)
    truncated = tokenizer.too_long(texts) if tokenizer is not None else 0
    if truncated:
        log.warning("%d of %d captions are longer than encoder.text.max_length=%d and are truncated", truncated, len(texts), tokenizer.max_length)
    dataset = session.dataset
    report = {
        "dataset": dataset.name,
        "fingerprint": session.fingerprint,
        "records": len(dataset.records) + len(dataset.exclusions.dropped),
        "used": {part: len(rows) for part, rows in parts.items()},
        "excluded": len(dataset.exclusions.dropped),
        "truncated_captions": truncated,
        "warnings": dataset.exclusions.warnings,
    }
    write_data_report(session.folder, report, dataset.exclusions.dropped)


def load_initial(objective: Any, source: Path, strict: bool) -> None:
    """Weights by name from a run, checkpoint or model folder. Raises RunFolderError for names that one side lacks, unless not strict."""
    candidates = [source / "model.safetensors", source / "checkpoints" / "best" / "model.safetensors", source / "model" / "model.safetensors"]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise RunFolderError(f"init_from={source}: no model.safetensors there, in checkpoints/best or in model/")
    missing, unexpected = objective.load_state_dict(load_file(path), strict=False)
    if missing or unexpected:
        message = f"init_from={source}: missing {missing[:5]} ({len(missing)}), unexpected {unexpected[:5]} ({len(unexpected)})"
        if strict:
            raise RunFolderError(f"{message}; init_strict=false takes what fits")
        log.warning("%s", message)


def finish_folds(session: Session) -> None:
    """The summary over folds, once none is left; the run's status."""
    summary = aggregate(session.folder)
    state = "done" if summary["state"] == "done" else "running"
    status = Status(state, session.hash, session.fingerprint, exit_code=0 if state == "done" else None)
    write_status(session.folder, status)


def on_first_rank(ranks: Ranks, work: Callable[[], T], share: bool = True) -> T:
    """Result of work, done by rank 0 while the others wait; its error is raised on every rank, so that none is left waiting.

    share=False: the result is not sent (it may be large); other ranks get None.
    """
    value, error = None, None
    if ranks.rank == 0:
        try:
            value = work()
        except (MmexpertError, OSError) as raised:
            error = raised
    shared, error = ranks.gather_objects((value if share else None, error))[0]
    if error is not None:
        raise error
    return shared if share else value
