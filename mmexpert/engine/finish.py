"""After the last epoch: the best weights, scored once on the parts that were kept apart, and the files that tell it."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmexpert.data.loaders import Loaders
from mmexpert.engine.checkpoint import Checkpoints
from mmexpert.engine.console import result_table
from mmexpert.engine.examples_file import write_examples
from mmexpert.engine.external import FILE as EXTERNAL
from mmexpert.engine.files import csv_text, write_atomic
from mmexpert.engine.plots import write_plots
from mmexpert.engine.progress import Progress
from mmexpert.engine.results import write_metrics, write_predictions, write_training_results
from mmexpert.engine.stamps import told
from mmexpert.engine.step_folder import MODEL, load_weights, read_weights
from mmexpert.evaluators.base import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """What a fold ends with: its figures, and the monitored value of the epoch whose weights gave them."""

    metrics: dict[str, Any]
    best_value: float | None


def load_best(objective: nn.Module, checkpoints: Checkpoints, last: bool) -> Path:
    """Loads the weights to be reported, the best epoch's or the newest, and returns their file."""
    folder = checkpoints.latest() if last else checkpoints.best_folder()
    load_weights(objective, read_weights(folder))
    objective.eval()
    return folder / MODEL


def score_parts(objective: nn.Module, loaders: Loaders, evaluator: Any, accelerator: Any, parts: list[str]) -> dict[str, Evaluation]:
    """Each part that has rows, scored once."""
    return {part: evaluator(objective, loaders, accelerator, part) for part in parts if loaders.parts[part]}


def write_results(
    folder: Path,
    config: dict[str, Any],
    progress: Progress,
    scored: dict[str, Evaluation],
    origin: dict[str, Any],
    chance_rows: int | None,
    seconds: float,
    stamped: dict[str, Any],
) -> Finished:
    """metrics.json, training_results.json, predictions, plots and result.txt of a fold; rank 0 alone.

    origin: provenance of the numbers. chance_rows: as write_plots has it. seconds: of the whole run, over its resumes. stamped: from
    engine.stamps.
    """
    last = config["cv"]["selection"] == "last"
    best_epoch, best_value = reported(progress, last)
    metrics = _metrics(progress, scored, best_epoch) | {"best_value": best_value} | stamped
    protocol = {part: evaluation.protocol | origin for part, evaluation in scored.items()}
    log.info("ended after epoch %d, %s", progress.epoch, _ending(progress, last))
    write_metrics(folder, metrics, protocol)
    shown = scored.get("test") or next(iter(scored.values()), Evaluation({}))
    write_predictions(folder, shown.predictions, shown.tables)
    if "external" in scored:
        write_atomic(folder / EXTERNAL, csv_text(scored["external"].predictions))
    write_training_results(
        folder,
        {
            "name": config["name"],
            "state": "done",
            "stopped": "epochs" if progress.patience_left else "early",
            "best_epoch": best_epoch,
            "best": metrics,
            "final": progress.history[-1],
            "protocol": protocol,
            "config": config,
            "history": progress.history,
            "seconds": round(seconds, 1),
            "chance_rows": chance_rows,
        },
    )
    write_examples(folder, shown)
    write_plots(folder, progress.history, shown.tables, shown.protocol, shown.metrics, progress.best_epoch or best_epoch, chance_rows)
    lines = [line for evaluation in scored.values() for line in ["", *result_table(evaluation.metrics, evaluation.protocol)]]
    lines += [f"WARNING: {sentence}" for sentence in told(stamped)]
    files = "report.html, metrics.json, model/, plots/, history.csv, checkpoints/" + (", predictions.csv" if shown.predictions else "")
    lines += ["", f"in {folder}: {files}"]
    write_atomic(folder / "result.txt", "\n".join(lines) + "\n")
    for line in lines:
        log.info("%s", line)
    return Finished(metrics, best_value)


def reported(progress: Progress, last: bool) -> tuple[int, float | None]:
    """(epoch whose weights are scored, first monitored value of that epoch): the best epoch's, or the last's (cv.selection=last)."""
    if not last:
        return progress.best_epoch or progress.epoch, progress.best_value
    value = progress.history[-1].get(next(iter(progress.best), ""))
    return progress.epoch, value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _metrics(progress: Progress, scored: dict[str, Evaluation], epoch: int) -> dict[str, Any]:
    """The reported epoch's validation figures, each part's own where it was scored again, and which epoch that was."""
    metrics = {name: value for name, value in progress.history[epoch - 1].items() if name.startswith("valid/")}
    for part, evaluation in scored.items():
        metrics = {name: value for name, value in metrics.items() if not name.startswith(f"{part}/")}
        metrics |= {f"{part}/{name}": value for name, value in evaluation.metrics.items()}
    return metrics | {"best_epoch": epoch, "monitor": next(iter(progress.best), None)}


def _ending(progress: Progress, last: bool) -> str:
    """Why training has ended, and which epoch is kept."""
    ended, (epoch, value) = "trained to its end" if progress.patience_left else "early stopping", reported(progress, last)
    if progress.best_value is None:
        return f"{ended}; no validation, the last epoch is kept: {epoch}"
    monitor = next(iter(progress.best))
    if not last:
        return f"{ended}; best epoch {epoch}: {monitor} {value:.4f}"
    figure = "" if value is None else f", {monitor} {value:.4f}"
    return f"{ended}; the last epoch is reported (cv.selection=last): {epoch}{figure}; best was epoch {progress.best_epoch}"
