"""What a fold is made of before its loop begins: run objects, start line, first weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.config import instantiate
from mmexpert.data.records import RecordDataset
from mmexpert.engine.accumulate import accumulation
from mmexpert.engine.blocks import prepare_blocks
from mmexpert.engine.chance import chance_loss, contrastive_rows
from mmexpert.engine.checkpoint import Checkpoints
from mmexpert.engine.console import Console
from mmexpert.engine.evidence import Evidence
from mmexpert.engine.folds import CvSettings
from mmexpert.engine.keep_settings import KeepSettings
from mmexpert.engine.loop import FitSettings
from mmexpert.engine.meter import Meter
from mmexpert.engine.progress import Choice
from mmexpert.engine.results import versions, write_data_report
from mmexpert.engine.runtime import Ranks, Run
from mmexpert.engine.stamps import stamps, told
from mmexpert.engine.step_folder import read_weights
from mmexpert.engine.stops import Stops
from mmexpert.engine.tracking import Tracker
from mmexpert.engine.watch import Watch, WatchSettings, poll_steps
from mmexpert.losses.tiling import Tiling
from mmexpert.types import RunFolderError

log = logging.getLogger(__name__)
Config = dict[str, Any]


@dataclass
class Session:
    """One call of the command: its config, folder, data set and folds, and the stop signals that it gets."""

    cfg: Config
    folder: Path
    overrides: list[str]
    trust: Sequence[str]
    dataset: RecordDataset
    cv: CvSettings
    hash: str
    fingerprint: str
    stops: Stops


def open_run(
    session: Session, folder: Path, prefix: str, accelerator: Any, loaders: Any, objective: Any, optimizer: Any
) -> tuple[Run, FitSettings]:
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
    tracker = open_tracker(session, folder, accelerator)
    shown = ["acc", "map", "RSum", "average", f"{objective.model.query}_to_{objective.model.target}_R@1"]
    console = Console(prefix, loaders.steps_per_epoch, shown)
    meter = Meter(tracker, console, ranks, accelerator.device, trainer["log_every"], trainer["batch_size"], contrastive_rows(trainer))
    records = loaders.dataset.records
    evidence = Evidence(folder, ranks, lambda ids: [records[i].id for i in ids], lambda: scales_and_rates(objective, optimizer))
    poll = poll_steps(trainer["poll_every"], accelerator.device, optimizer)
    watching = WatchSettings(trainer["nonfinite"], trainer["nonfinite_budget"], poll, loaders.steps_per_epoch, total)
    watch = Watch(accelerator, watching, checkpoints.minutes_due, evidence, session.stops)
    has_valid = bool(loaders.parts["valid"])
    limit = trainer["max_grad_norm"] if trainer["max_grad_norm"] is not None else float("inf")
    prepare_blocks(objective.model, trainer["grad_checkpointing"], trainer["compile"])
    objective.loss.tile(Tiling(trainer["loss_tile"], trainer["loss_exchange"]))
    backward = accumulation(trainer["accumulate"], accelerator, objective)
    fit_settings = FitSettings(
        total, epochs, trainer["val_every"] if has_valid else 0, limit, tuple(monitors) if has_valid else (), backward
    )
    return Run(accelerator, checkpoints, tracker, watch, meter), fit_settings


def open_tracker(session: Session, folder: Path, accelerator: Any, job: str = "") -> Tracker:
    """The tracker of a run, or of one of its folds: then its group is the run's name and its job type the fold's. job: another one's."""
    settings, place = instantiate(session.cfg["tracker"], "tracker"), folder.relative_to(session.folder)
    run = f"{session.cfg['name']}/{session.folder.name}"
    job = job or ("" if place == Path() else place.as_posix())
    if job and settings.group is None:
        settings = replace(settings, group=run)
    return Tracker(folder, settings, accelerator if Ranks(accelerator).rank == 0 else None, f"{run}/{job}".rstrip("/"), session.cfg, job)


def start_line(
    session: Session, ranks: Ranks, accelerator: Any, objective: Any, parts: dict[str, list[int]], tokenizer: Any, texts: list[str]
) -> None:
    """Says what runs, and what of the data is cut or left out."""
    trainer = session.cfg["trainer"]
    micro = trainer["batch_size"] // (ranks.processes * trainer["accumulation"])
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    log.info(
        "%s/%s | %d process%s, %s, %s | batch %d = %d x %d x %d accumulation | %s | %.1f M parameters",
        session.cfg["name"], session.folder.name, ranks.processes, "es"[: 2 * (ranks.processes > 1)],
        accelerator.device.type, accelerator.mixed_precision,
        trainer["batch_size"], ranks.processes, micro, trainer["accumulation"],
        ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()), parameters / 1e6,
    )  # fmt: skip
    if (chance := chance_loss(objective.loss, rows := contrastive_rows(trainer))) is not None:
        log.info("chance level of loss_clip: ln(%d) = %.4f", rows, chance)
    for sentence in told(stamps(session.dataset, session.cv.selection)):
        log.warning("%s", sentence)
    if trainer["accumulation"] > 1 and trainer["accumulate"] == "gradients":
        log.info(
            "accumulation adds no negatives: each micro-batch of %d is contrasted on its own; trainer.accumulate=features makes one batch",
            micro,
        )
    truncated = tokenizer.too_long(texts) if tokenizer is not None else 0
    if truncated:
        log.warning(
            "%d of %d captions are longer than encoder.text.max_length=%d and are truncated", truncated, len(texts), tokenizer.max_length
        )
    dataset = session.dataset
    scored = [caption for part in ("valid", "test") for i in parts[part] for caption in dataset.records[i].captions]
    if tokenizer is not None and (cut := tokenizer.too_long(scored)):
        log.warning("%d of %d captions of the evaluation are truncated too (%.1f %%)", cut, len(scored), 100 * cut / len(scored))
    report = {
        "dataset": dataset.name,
        "fingerprint": session.fingerprint,
        "records": len(dataset.records) + len(dataset.exclusions.dropped),
        "used": {part: len(rows) for part, rows in parts.items()},
        "excluded": len(dataset.exclusions.dropped),
        "truncated_captions": truncated,
        "warnings": dataset.exclusions.warnings,
    }
    if dataset.lengths:
        report["clips_by_frames"] = dict(dataset.lengths)
    write_data_report(session.folder, report, dataset.exclusions.dropped)


def scales_and_rates(objective: Any, optimizer: Any) -> dict[str, float]:
    """Learned scales and biases, and the rate of each parameter group, by their logged names."""
    scales = {name: float(value) for name, value in objective.scales().items()}
    return scales | {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}


def initial_weights(source: Path) -> Path:
    """The file of weights of a run, checkpoint or model folder. Raises RunFolderError where there is none."""
    candidates = [
        source / "model.safetensors",
        source / "checkpoints" / "best" / "model.safetensors",
        source / "model" / "model.safetensors",
    ]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise RunFolderError(f"init_from={source}: no model.safetensors there, in checkpoints/best or in model/")
    return path


def load_initial(objective: Any, source: Path, strict: bool) -> None:
    """Weights by name from a run, checkpoint or model folder. Raises RunFolderError for names that one side lacks, unless not strict."""
    path = initial_weights(source)
    missing, unexpected = objective.load_state_dict(read_weights(path.parent), strict=False)
    if missing or unexpected:
        message = f"init_from={source}: missing {missing[:5]} ({len(missing)}), unexpected {unexpected[:5]} ({len(unexpected)})"
        if strict:
            raise RunFolderError(f"{message}; init_strict=false takes what fits")
        log.warning("%s", message)
