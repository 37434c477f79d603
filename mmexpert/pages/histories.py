"""Curves of one run, of its folds, or of several runs in one figure."""

import math
import re
from collections.abc import Sequence

from mmexpert.pages.curves import Line, chart
from mmexpert.pages.stored import StoredRun

_RECALL = re.compile(r"valid/[a-z]+_to_[a-z]+_R@1")
_SHARES = ("valid/acc", "valid/balanced_acc")
_MOST_RUNS = 16  # lines of a chart


def run_charts(run: StoredRun) -> str:
    """Loss with its chance level, accuracy, learning rates; the best epoch is marked."""
    if not run.history:
        return _fold_charts(run)
    best = run.metrics.get("best_epoch")
    mark = (f"best epoch, {best}", best) if isinstance(best, int) else None
    loss = [_line(run, f"{part}/loss_total", part) for part in ("train", "valid")]
    rows = run.json("training_results.json").get("chance_rows")
    level = (f"ln({rows}), chance of loss_clip", math.log(rows)) if isinstance(rows, int) and rows > 1 else None
    parts = [chart("Loss (nats)", "epoch", loss, level, mark)]
    names = dict.fromkeys(key for row in run.history for key in row)
    right = [_line(run, "train/in_batch_recall_1", "train, in-batch recall@1", 100)]
    right += [_line(run, key, key.replace("_", " ")) for key in names if _RECALL.fullmatch(key)]
    right += [_line(run, key, key.replace("_", " "), 100) for key in _SHARES if key in names]
    right += [_line(run, "valid/average", "valid average of recalls")] if "valid/average" in names else []
    parts.append(chart("Accuracy (percent)", "epoch", right, None, mark))
    steps = run.steps or run.history
    rates = sorted({key for row in steps for key in row if key.startswith(("lr/", "train/lr_"))})
    drawn = [
        Line(key.removeprefix("lr/").removeprefix("train/lr_"), [(row.get("step", 0), row.get(key)) for row in steps]) for key in rates
    ]
    parts.append(chart("Learning rate", "optimizer step", drawn))
    return _figures(parts)


def _fold_charts(run: StoredRun) -> str:
    return joint_charts([fold for fold in run.folds if fold.history])


def joint_charts(runs: Sequence[StoredRun]) -> str:
    """Losses and the monitored value of several runs (or folds): a line each, one figure a quantity."""
    shown = [run for run in runs if run.history][:_MOST_RUNS]
    monitors = {str(run.metrics.get("monitor")) for run in shown} - {"None"}
    wanted: list[tuple[str, str]] = [("Training loss (nats)", "train/loss_total"), ("Validation loss (nats)", "valid/loss_total")]
    wanted += [(key.replace("_", " "), key) for key in sorted(monitors) if key not in ("train/loss_total", "valid/loss_total")]
    return _figures([chart(title, "epoch", [_line(run, key, run.short) for run in shown]) for title, key in wanted])


def _line(run: StoredRun, key: str, name: str, factor: float = 1.0) -> Line:
    return Line(name, [(row["epoch"], None if row.get(key) is None else factor * row[key]) for row in run.history])


def _figures(parts: list[str]) -> str:
    inner = "".join(parts)
    return f'<div class="charts">{inner}</div>' if inner else ""
