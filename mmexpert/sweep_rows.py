"""The run folders below a folder as rows of a table: what differs in their configurations, how they stand, what they have reached."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexpert.config import NOT_HASHED, suggest
from mmexpert.engine.lock import holder
from mmexpert.engine.monitor_mode import mode_of
from mmexpert.engine.status import flat, read_status
from mmexpert.types import ConfigError, RunFolderError

_SEED = "seed"
_OFF = "-"  # cell of a key that a row does not have


@dataclass
class RunRow:
    """One run. figures: best monitored value first, then test metrics, by a column name that holds the gallery; modes: min | max of each.

    epochs: completed, or folds as `3/5 folds`. seconds: of training, over all sittings.
    """

    folder: str
    config: dict[str, Any] = field(repr=False)  # by dotted key, without keys that change no number
    state: str
    epochs: str = ""
    seconds: float = 0.0
    error: str = ""
    monitor: str = ""  # column of the monitored metric
    figures: dict[str, float] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)


@dataclass
class SeedRow:
    """Finished runs that differ in nothing but their seed: number of seeds, (mean, sd) by column; sd with n - 1."""

    config: dict[str, Any]
    seeds: int
    figures: dict[str, tuple[float, float]]


def run_rows(folder: Path) -> list[RunRow]:
    """Every run at or below a folder, but for what resume=never has put aside. Raises RunFolderError where there is none."""
    rows = []
    for place, inner, files in os.walk(folder):
        inner.sort()
        if "config.json" in files or "status.json" in files:
            inner.clear()  # folds and checkpoints are part of the run
            if not _put_aside(Path(place)):
                rows.append(_row(Path(place), Path(place).relative_to(folder).as_posix()))
    if not rows:
        raise RunFolderError(f"{folder}: no run folder (one with config.json) is here or below; outputs/NAME holds those of name=NAME")
    return rows


def sorted_rows(rows: Sequence[RunRow], key: str | None) -> list[RunRow]:
    """Best first by the monitor that most rows have, or by a metric, configuration key, state, epochs, seconds or folder.

    Rows without a value come last. Raises ConfigError for an unknown key.
    """
    if key is None:
        monitors = [row.monitor for row in rows if row.monitor]
        key = max(sorted(set(monitors)), key=monitors.count) if monitors else "folder"
    if key in ("state", "epochs", "seconds", "folder"):
        return sorted(rows, key=lambda row: (row.seconds if key == "seconds" else 0, str(getattr(row, key)), row.folder))
    columns = metric_columns(rows, key)
    if columns:
        mode = next(row.modes[name] for name in columns for row in rows if name in row.modes)
        best = {id(row): next((row.figures[name] for name in columns if name in row.figures), None) for row in rows}
        sign = 1 if mode == "min" else -1
        return sorted(rows, key=lambda row: (best[id(row)] is None, sign * (best[id(row)] or 0.0), row.folder))
    if any(key in row.config for row in rows):
        return sorted(rows, key=lambda row: (key not in row.config, *_order(row.config.get(key)), row.folder))
    known = sorted({name.split(" ", 1)[0] for row in rows for name in row.figures}) + ["state", "epochs", "seconds", "folder"]
    raise ConfigError(f"--sort {key}: no such metric or configuration key{suggest(key, known)}")


def metric_columns(rows: Sequence[RunRow], metric: str) -> list[str]:
    """The columns of a metric, one a gallery: by the whole name of the column, `test/acc`, `acc` of the test part, or `R@1` of all
    directions.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    bare = {name: name.split(" ", 1)[0] for name in names}
    exact = [name for name in names if name == metric] or [name for name in names if bare[name] in (metric, f"test/{metric}")]
    return exact or [name for name in names if name.startswith("test/") and bare[name].endswith(f"_{metric}")]


def shown_columns(rows: Sequence[RunRow]) -> list[str]:
    """What a table on the screen has room for: each monitored metric, and the same metric of the test part."""
    monitors = list(dict.fromkeys(row.monitor for row in rows if row.monitor))
    tested = [f"test/{name.split(' ', 1)[0].rsplit('/', 1)[-1]}" for name in monitors]
    return list(dict.fromkeys([*monitors, *(column for name in tested for column in metric_columns(rows, name))]))


def differing(rows: Sequence[RunRow]) -> dict[str, list[str]]:
    """A column for each configuration key in which the rows differ: its cell in each row.

    Where a node's class differs there is one column for the node, with the classes' names; keys that follow from the class have none.
    """
    keys = sorted({key for row in rows for key in row.config})
    changed = [key for key in keys if len({_cell(row, key) for row in rows}) > 1]
    parts = {key.removesuffix("._target_") for key in changed if key.endswith("._target_")}
    columns: dict[str, list[str]] = {part: [_part(row, part) for row in rows] for part in parts}
    for key in changed:
        above = [part for part in parts if key == part or key.startswith(f"{part}.")]
        if key.endswith("._target_") or key in parts or any(_follows(rows, key, columns[part]) for part in above):
            continue
        columns[key] = [_cell(row, key) for row in rows]
    return dict(sorted(columns.items()))


def seed_rows(rows: Sequence[RunRow]) -> list[SeedRow]:
    """Means over seeds, of the configurations that have two or more."""
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        if row.state == "done":
            without = {key: value for key, value in row.config.items() if key != _SEED}
            groups.setdefault(json.dumps(without, sort_keys=True, default=str), []).append(row)
    found = []
    for group in (group for group in groups.values() if len({row.config.get(_SEED) for row in group}) > 1):
        shared = [name for name in group[0].figures if all(name in row.figures for row in group)]
        values = {name: [row.figures[name] for row in group] for name in shared}
        figures = {name: (statistics.fmean(of), statistics.stdev(of)) for name, of in values.items()}
        found.append(SeedRow({key: value for key, value in group[0].config.items() if key != _SEED}, len(group), figures))
    return found


def _row(place: Path, name: str) -> RunRow:
    config = _json(place / "config.json").get("config", {})
    row = RunRow(name, _hashed(flat(config)), "not begun")
    folds = sorted(place.glob("fold_*/status.json"))
    try:
        status, statuses = read_status(place), [read_status(path.parent) for path in folds]
    except RunFolderError as error:
        row.state, row.error = "damaged", str(error)
        return row
    if status is not None:
        row.state, row.epochs, row.seconds = status.state, str(status.epoch), status.seconds
        row.error = (status.error or {}).get("message", "") if status.state == "failed" else ""
    if folds:
        count = len(_json(place / "folds_info.json").get("folds", folds))
        row.epochs = f"{sum(one.state == 'done' for one in statuses)}/{count} folds"
        row.seconds = sum(one.seconds for one in statuses)
        failed = next((one for one in statuses if one.state == "failed"), None)
        if row.state != "done" and failed is not None:
            row.state, row.error = "failed", (failed.error or {}).get("message", "")
    if row.state == "running" and not any(holder(path) for path in (place, *(path.parent for path in folds))):
        row.state = "interrupted"  # nobody holds its lock: it was killed
    metrics = [_json(path.parent / "metrics.json") for path in folds] if folds else [_json(place / "metrics.json")]
    _take_figures(row, [one for one in metrics if one], config.get("trainer", {}).get("mode"))
    return row


def _take_figures(row: RunRow, metrics: Sequence[dict[str, Any]], mode: str | None) -> None:
    """Means over the folds of their best monitored values and of the test metrics that all of them have."""
    if not metrics:
        return
    monitor = metrics[0].get("monitor")
    best = [one["best_value"] for one in metrics if isinstance(one.get("best_value"), (int, float))]
    named: dict[str, tuple[str, list[float]]] = {}
    if monitor and best:
        row.monitor = _column(monitor, metrics, len(metrics) > 1)
        named[row.monitor] = (mode or mode_of(monitor), best)
    for key in metrics[0]:
        values = [one.get(key) for one in metrics]
        if key.startswith("test/") and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            named[_column(key, metrics, len(metrics) > 1)] = (mode_of(key), values)
    for name, (direction, values) in named.items():
        row.figures[name], row.modes[name] = statistics.fmean(values), direction


def _column(key: str, metrics: Sequence[dict[str, Any]], folds: bool) -> str:
    """A metric's name with the gallery, or the rows and classes, that it is of: what differs there can not be compared."""
    part = key.split("/", 1)[0]
    said = sorted({_gallery(part, one) for one in metrics} - {""})
    beside = [*([said[0] if len(said) == 1 else f"{said[0]} .. {said[-1]}"] if said else []), *(["mean of folds"] if folds else [])]
    return f"{key} ({', '.join(beside)})" if beside else key


def _gallery(part: str, metrics: dict[str, Any]) -> str:
    protocols = metrics.get("protocol") or {}
    protocol = protocols.get(part) or {key: value for key, value in protocols.get("test", {}).items() if key != "gallery"}
    sizes = sorted({int(value) for key, value in metrics.items() if key.startswith(f"{part}/") and key.endswith("_gallery") and value})
    dataset = f"{protocol['dataset']} " if protocol.get("dataset") else ""
    if sizes or protocol.get("gallery"):
        return f"{dataset}gallery {'+'.join(str(size) for size in sizes) or protocol['gallery']}"
    if "n_classes_used" in protocol:
        return f"{dataset}{protocol['n_classes_used']} classes"
    return dataset.strip()


def _hashed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not any(key == one or key.startswith(f"{one}.") for one in NOT_HASHED)}


def _put_aside(place: Path) -> bool:
    base, _, number = place.name.rpartition(".")
    return number.isdigit() and bool(base) and place.with_name(base).is_dir()


def _cell(row: RunRow, key: str) -> str:
    if key not in row.config:
        return _OFF
    value = row.config[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _part(row: RunRow, part: str) -> str:
    target = row.config.get(f"{part}._target_")
    return str(target).rsplit(".", 1)[-1] if target else _cell(row, part)


def _follows(rows: Sequence[RunRow], key: str, classes: Sequence[str]) -> bool:
    """Whether rows of one class all have one value of the key."""
    seen: dict[str, str] = {}
    return all(seen.setdefault(name, _cell(row, key)) == _cell(row, key) for row, name in zip(rows, classes, strict=True))


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, "" if number else str(value)


def _json(path: Path) -> dict[str, Any]:
    """A file of a run; empty where it is missing or damaged, since a table of many runs must not fail on one."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
