"""What a person sees while a run goes on: a bar on a terminal, plain lines otherwise; rank 0 only."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmexpert.engine.external import line
from mmexpert.engine.progress_lines import of_part, summary, terms
from mmexpert.engine.secrets import mask_text
from mmexpert.engine.waiting import Waiting

log = logging.getLogger(__name__)
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # of log.txt
_CLASS_METRICS = (
    "acc",
    "balanced_acc",
    "macro_f1",
    "map",
    "quadratic_kappa",
    "group_acc",
    "probe_acc",
    "probe_balanced_acc",
    "nearest_acc",
    "nearest_balanced_acc",
)


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


def note_command(folder: Path) -> None:
    """The command of environment.json as a line of the folder's log.txt alone: the screen has it above."""
    path = os.path.abspath(folder / "log.txt")
    command = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["command"]
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.baseFilename == path:
            handler.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "%s", (command,), None))


@contextlib.contextmanager
def fold_log(folder: Path) -> Iterator[None]:
    """The command and messages go to the fold's own log.txt too, unless the screen is that file (a process of cv.workers)."""
    path = folder / "log.txt"
    if path.exists() and os.path.samestat(os.fstat(1), path.stat()):
        log.info("%s", json.loads((folder / "environment.json").read_text(encoding="utf-8"))["command"])
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Masked(_LINE))
    logging.getLogger().addHandler(handler)
    note_command(folder)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class Console:
    """prefix: `[fold 2/5] ` with folds. steps_per_epoch: width of a bar. shown: metrics of validation that its line ends with."""

    def __init__(self, prefix: str, steps_per_epoch: int, shown: list[str]) -> None:
        self.prefix, self.steps_per_epoch, self.shown = prefix, steps_per_epoch, shown
        self.bar: tqdm | None = None
        self.last = (0, 0)  # epoch and step whose line was the last
        self.batches, self.seen, self.begun = 0, 0, 0.0  # of the validation: evaluation batches, of them seen, when it began
        self.waiting = Waiting()

    def step(self, row: dict[str, Any], means: dict[str, float], done: int) -> None:
        """A logged step: means of the epoch so far, rate, time spent waiting for data. done: steps of the epoch."""
        rates = [value for name, value in row.items() if name.startswith("lr/")]
        place = f"step {row['step']}: " if not sys.stdout.isatty() else ""
        text = ", ".join([f"{place}{terms(means)}", f"lr={max(rates):.2e}", f"data={row['data_time']:.3f}s"])
        self._train(row["epoch"], done, text)
        self.waiting.add(row)

    def trained(self, epoch: int, means: dict[str, float], done: int) -> None:
        """The training part of an epoch has ended after so many steps: its means, if the last step's line has not just shown them."""
        if self.last != (epoch, done) and "loss_total" in means:
            self._train(epoch, done, terms(means))
        self.close()

    def validation(self, batches: int) -> None:
        """A validation begins, of so many batches."""
        self.close()
        self.batches, self.seen, self.begun = batches, 0, time.monotonic()
        if sys.stdout.isatty():
            self.bar = tqdm(total=batches, desc=f"{self.prefix}[Val]")

    def validated(self) -> None:
        """A batch of it is there. Evaluators may go through a part more than once: further walks are not shown."""
        self.seen = min(self.seen + 1, self.batches)
        if self.bar is not None:
            self.bar.update(self.seen - self.bar.n)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's end: training means and validation metrics."""
        means = {part: of_part(row, part) for part in ("train", "valid")}
        if "loss_total" in means["valid"]:
            self._end_validation(terms(means["valid"]))
        self.close()
        for part, name in (("train", "Train"), ("valid", "Val")):
            if "loss_total" in means[part]:
                log.info("%s%s", self.prefix, summary(name, means[part], self.shown if part == "valid" else []))
        self.waiting.tell()

    def close(self) -> None:
        """Leaves the bar of the moment as it stands."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _train(self, epoch: int, done: int, text: str) -> None:
        head, self.last = f"{self.prefix}Epoch {epoch} [Train]", (epoch, done)
        if not sys.stdout.isatty():
            log.info("%s: %d/%d [%s]", head, done, self.steps_per_epoch, text)
            return
        if self.bar is None:
            self.bar = tqdm(total=self.steps_per_epoch, desc=head)
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)

    def _end_validation(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif self.batches:
            log.info("%s[Val]: %d/%d [%.1fs, %s]", self.prefix, self.seen, self.batches, time.monotonic() - self.begun, text)


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
