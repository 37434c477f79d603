"""What a person sees while a run goes on: a bar on a terminal, plain lines otherwise; rank 0 only."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmexpert.engine.external import line
from mmexpert.engine.secrets import mask_text
from mmexpert.engine.waiting import Waiting

log = logging.getLogger(__name__)
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # of log.txt
_CLASS_METRICS = (
    "acc",
    "balanced_acc",
    "macro_f1",
    "map",
    "group_acc",
    "probe_acc",
    "probe_balanced_acc",
    "nearest_acc",
    "nearest_balanced_acc",
)
_SHORT = {"loss": "loss_total", "cls": "loss_class", "clip": "loss_clip", "seq": "loss_seq"}


class Masked(logging.Formatter):
    """Lines, tracebacks included, without secrets of the environment."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (logging's call)."""
        return mask_text(super().format(record))


def set_up_logging(folder: Path, rank: int) -> None:
    """Messages of the package to the screen (rank 0) and to log.txt (log_rankN.txt on other ranks)."""
    root = logging.getLogger()
    if root.level != logging.DEBUG:  # which hydra.verbose=true has set
        root.setLevel(logging.INFO)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / ("log.txt" if rank == 0 else f"log_rank{rank}.txt"), encoding="utf-8")
    file.setFormatter(Masked(_LINE))
    root.addHandler(file)
    if rank == 0:
        screen = logging.StreamHandler(sys.stdout)
        screen.setFormatter(Masked("%(message)s"))
        root.addHandler(screen)
    for noisy in ("httpx", "urllib3", "matplotlib", "transformers", "accelerate", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def fold_log(folder: Path) -> Iterator[None]:
    """Messages go to the fold's own log.txt too, unless the screen is that file (a process of cv.workers)."""
    path = folder / "log.txt"
    if path.exists() and os.path.samestat(os.fstat(1), path.stat()):
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Masked(_LINE))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class Console:
    """prefix: `[fold 2/5] ` with folds. total: optimizer steps of the run. steps_per_epoch: width of a bar."""

    def __init__(self, prefix: str, steps_per_epoch: int, shown: list[str]) -> None:
        self.prefix, self.steps_per_epoch, self.shown = prefix, steps_per_epoch, shown
        self.bar: tqdm | None = None
        self.waiting = Waiting()

    def step(self, row: dict[str, Any]) -> None:
        """A logged step: loss parts, rate, time spent waiting for data."""
        parts = [f"{name}={row[f'train/{key}']:.4f}" for name, key in _SHORT.items() if f"train/{key}" in row]
        if "train/acc" in row:
            parts.append(f"acc={100 * row['train/acc']:.2f}%")
        rates = [value for name, value in row.items() if name.startswith("lr/")]
        parts += [f"lr={max(rates):.2e}", f"data={row['data_time']:.3f}s"]
        text = ", ".join(parts)
        if sys.stdout.isatty():
            done = (row["step"] - 1) % self.steps_per_epoch + 1
            if self.bar is None or self.bar.n > done:
                self.bar = tqdm(total=self.steps_per_epoch, desc=f"{self.prefix}Epoch {row['epoch']} [Train]")
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
        else:
            log.info("%sEpoch %d [Train] step %d: %s", self.prefix, row["epoch"], row["step"], text)
        self.waiting.add(row)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's end: training means and validation metrics."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        for part, name in (("train", "Train"), ("valid", "Val")):
            if f"{part}/loss_total" not in row:
                continue
            text = f"{name} Loss: {row[f'{part}/loss_total']:.4f}"
            if f"{part}/loss_class" in row:
                text += f" (Class: {row[f'{part}/loss_class']:.4f}, Contrastive: {row[f'{part}/loss_clip']:.4f})"
            if f"{part}/acc" in row:
                text += f", {name} Acc: {100 * row[f'{part}/acc']:.2f}%"
            for key in self.shown:
                if part == "valid" and f"valid/{key}" in row and key != "acc":
                    text += f", {name} {key}: {row[f'valid/{key}']:.2f}"
            log.info("%sEpoch %d %s", self.prefix, row["epoch"], text)
        self.waiting.tell()


def result_table(metrics: dict[str, Any], protocol: dict[str, Any]) -> list[str]:
    """The lines printed at the end: metrics of one part with the chance line beside them."""
    chance = protocol.get("chance", {})
    if "directions" in protocol:
        k = protocol["k"]
        lines = [
            f"{protocol['part']} part of {protocol['dataset']}: {protocol['queries']} queries, gallery {protocol['gallery']}, ranked by "
            f"{protocol['rank_by']} scores, ties {protocol['ties']}",
            f"{'':16s}" + "".join(f"{f'R@{n} %':>9s}" for n in k) + f"{'median':>9s}{'MRR':>8s}",
        ]
        for name in protocol["directions"]:
            lines.append(
                f"{name:16s}"
                + "".join(f"{metrics[f'{name}_R@{n}']:9.1f}" for n in k)
                + f"{metrics[f'{name}_median_rank']:9.1f}{metrics[f'{name}_MRR']:8.3f}"
            )
        lines.append(f"{'chance':16s}" + "".join(f"{chance[f'''{protocol['directions'][0]}_R@{n}''']:9.1f}" for n in k))
        hard = [f"{key.removeprefix('hard_')} {metrics[key]:.0f}" for key in metrics if key.startswith("hard_")]
        return lines + ([f"own caption above the hard one, % (chance 50): {', '.join(hard)}"] if hard else [])
    if "gallery_sizes" in protocol:
        sizes = ", ".join(f"{name} {size}" for name, size in protocol["gallery_sizes"].items())
        partial = ", PARTIAL: pictures are missing" if protocol["partial"] else ""
        head = f"{protocol['part']} part of {protocol['dataset']}: {protocol['queries']} queries, {protocol['gallery']} gallery ({sizes})"
        rows = [(name, metrics[name], chance.get(name)) for name in protocol["shown"]]
        return [head + partial, *(f"{n:20s}{v:6.2f}" + ("" if c is None else f"  (chance {c:.2f})") for n, v, c in rows)]
    head = f"{protocol['part']} part of {protocol['dataset']}: {protocol['rows']} rows, {protocol['n_classes_used']} classes"
    lines = [f"{head}, by {protocol['by']}"]
    for key in _CLASS_METRICS:
        if metrics.get(key) is not None:
            interval = f"  [{metrics[f'{key}_lo']:.3f}, {metrics[f'{key}_hi']:.3f}]" if f"{key}_lo" in metrics else ""
            beside = f"  (chance {chance[key]:.3f})" if key in chance else ""
            lines.append(f"{key:22s}{metrics[key]:.3f}{interval}{beside}")
    return lines


def summary_line(summary: dict[str, Any]) -> str:
    """Folds, groups and selection, with the stamps that every table must show."""
    groups = summary["groups"]
    counted = f"groups {groups}" if isinstance(groups, str) else f"{groups} groups"
    stamps = ", OPTIMISTIC: chosen on the test parts" if summary["optimistic"] else ""
    stamps += ", OVER-CORRECTED: class weights act twice" if summary["over_corrected"] else ""
    return f"{len(summary['folds_done'])} folds, {counted}, selection {summary['selection']}{stamps}, state {summary['state']}"


def fold_table(summary: dict[str, Any]) -> list[str]:
    """The lines printed after the last fold: means over folds with both intervals; recalls of retrieval where there are no classes."""
    entries = {name.removeprefix("test/"): entry for name, entry in (summary["metrics"] | summary["group_metrics"]).items()}
    missing = summary["folds_missing"]
    lines = [
        summary_line(summary) + (f", missing: {missing}" if missing else ""),
        f"{'mean over folds':26s}{'':8s}{'sd':>7s}   95 % over folds   95 % over groups   chance",
    ]
    shown = [key for key in _CLASS_METRICS if key in entries] or [key for key in entries if "_R@" in key and not key.startswith("valid/")]
    for key in shown:
        entry = entries[key]
        cells = [_bounds(entry["ci95_corrected"]), _bounds(entry["ci95_bootstrap"])]
        sd = "" if entry["sd"] is None else f"{entry['sd']:.3f}"
        chance = "" if entry["chance"] is None else f"{entry['chance']:.3f}"
        lines.append(f"{key:26s}{entry['mean']:8.3f}{sd:>7s}{cells[0]:>18s}{cells[1]:>19s}{chance:>9s}".rstrip())
    if beside := line(summary["external"], summary["headline"]):
        lines.append(beside)
    return [*lines, *(f"WARNING: {warning}" for warning in summary["warnings"])]


def _bounds(interval: Any) -> str:
    return "" if interval is None else f"{interval[0]:.3f} .. {interval[1]:.3f}"
