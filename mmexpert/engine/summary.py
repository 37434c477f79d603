"""The summary over folds: made from whatever folds are done, as often as one likes, always the same bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.console import summary_line
from mmexpert.engine.external import external_summary, line
from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.folds_file import FILE, read_folds_info
from mmexpert.engine.inner_folds import wins
from mmexpert.engine.oof import FoldRows, oof_text, pooled_tables, read_rows
from mmexpert.engine.row_scores import bootstrap_intervals
from mmexpert.engine.stamps import told
from mmexpert.engine.status import Status, read_status
from mmexpert.metrics.statistics import corrected_interval
from mmexpert.types import RunFolderError

_ENVIRONMENT = ("versions", "platform", "devices", "processes")  # what may move a number; not the command, host or commit


def aggregate(folder: Path) -> dict[str, Any]:
    """Writes cv_summary.json, cv_summary.md, oof_predictions.csv, and per_class.csv and confusion.csv where there are classes.

    Raises RunFolderError for a folder without folds, with folds of different configurations or data, or with a damaged fold.
    """
    folder = Path(folder)
    info, statuses, done = read_done(folder)
    rows = [read_rows(folder, fold) for fold in done]
    metrics = [read_json(folder / f"fold_{fold['fold']}" / "metrics.json") for fold in done]
    names = list(info["dataset"]["classes"])
    config = read_json(folder / "config.json")["config"]
    pooled, tables = pooled_tables(rows, names) if names else ({}, {})
    entries = over_folds(metrics, rows, names)
    headline, said = _headline(config, names, entries)
    grid = config["cv"].get("grid")
    external = external_summary(folder, info, metrics, [fold["fold"] for fold in done], names)
    summary: dict[str, Any] = {
        "format": 1,
        "state": "done" if len(done) == len(info["folds"]) else "partial",
        "folds_done": [fold["fold"] for fold in done],
        "folds_missing": [number for number in statuses if number not in [fold["fold"] for fold in done]],
        "selection": config["cv"]["selection"],
        "optimistic": config["cv"]["selection"] == "outer",
        "over_corrected": any(one.get("over_corrected", False) for one in metrics),
        "groups": next((one["groups"] for one in metrics if "groups" in one), info["dataset"]["groups"]),
        "rows_fingerprint": info["dataset"]["rows_fingerprint"],
        "headline": headline,
        "metrics": {key: entry for key, entry in entries.items() if not key.startswith("test/group_")},
        "group_metrics": {key: entry for key, entry in entries.items() if key.startswith("test/group_")},
        "pooled": pooled,
        "external": external,
        **({"nested": wins(folder, [fold["fold"] for fold in done], grid)} if grid is not None else {}),
        "warnings": _warnings(info, config, statuses, entries) + _one_class(rows) + _stamped(metrics) + _unscored(external) + said,
        "config": config | {"cv": {key: value for key, value in config["cv"].items() if key not in ("fold", "workers")}},  # one summary
        "environment": _environment(folder),
    }
    files = {"cv_summary.json": strict_json(summary, indent=1), "cv_summary.md": summary_table(summary)} | tables
    for name, text in (files | ({"oof_predictions.csv": oof_text(rows)} if rows else {})).items():
        write_atomic(folder / name, text)
    return summary


def read_done(folder: Path) -> tuple[dict[str, Any], dict[int, Status | None], list[dict[str, Any]]]:
    """(folds_info.json, status of each fold, the entries of the finished ones). Raises RunFolderError as aggregate does."""
    info = read_folds_info(folder / FILE)
    if info["method"] == "none":
        raise RunFolderError(f"{folder} is a run without folds (cv=none); its figures are in metrics.json")
    statuses = {fold["fold"]: read_status(folder / f"fold_{fold['fold']}") for fold in info["folds"]}
    done = [fold for fold in info["folds"] if (status := statuses[fold["fold"]]) is not None and status.state == "done"]
    _check_alike(folder, {fold["fold"]: statuses[fold["fold"]] for fold in done})
    return info, statuses, done


def summary_table(summary: dict[str, Any]) -> str:
    """Markdown: the headline, one line per metric with chance beside it, then the warnings."""
    lines = [summary_line(summary)]
    entries = summary["metrics"] | summary["group_metrics"]
    if summary["headline"] in entries:
        entry = entries[summary["headline"]]
        lines.append(
            f"{summary['headline']}: {entry['mean']:.3f}{_interval(entry['ci95_corrected'], ', 95 % ')}, chance {_number(entry['chance'])}"
        )
    if beside := line(summary["external"], summary["headline"]):
        lines.append(beside)
    lines += [
        "",
        "| metric | mean | sd | min | max | n | 95 % corrected | 95 % bootstrap | chance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in entries.items():
        cells = [_number(entry[key]) for key in ("mean", "sd", "min", "max")] + [str(entry["n"])]
        cells += [_interval(entry["ci95_corrected"]), _interval(entry["ci95_bootstrap"]), _number(entry["chance"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Corrected: Nadeau and Bengio's t interval over folds. Bootstrap: groups drawn within fold and class; training varies more.",
    ]
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in summary["warnings"])]) + "\n"


def over_folds(metrics: Sequence[dict[str, Any]], rows: Sequence[FoldRows], names: Sequence[str]) -> dict[str, Any]:
    """Per metric of the valid and test parts: value of each fold (None where it has none), mean, spread, intervals, chance."""
    found_keys = dict.fromkeys(key for fold in metrics for key in fold if key.startswith(("test/", "valid/")))
    keys = [key for key in found_keys if not key.endswith(("_lo", "_hi"))]  # bounds within a fold: their mean bounds nothing
    protocols = [fold.get("protocol", {}).get("test", {}) for fold in metrics]
    ratio = float(np.mean([test / train for train, test in (fold.sizes for fold in rows)])) if rows else 0.0
    drawn = bootstrap_intervals(rows, names, protocols[0].get("k", ())) if rows else {}
    found: dict[str, Any] = {}
    for key in keys:
        values = [fold.get(key) if isinstance(fold.get(key), (int, float)) else None for fold in metrics]
        known = [value for value in values if value is not None]
        if not known:
            continue
        name = key.removeprefix("test/")
        chances = [chance for protocol in protocols if (chance := protocol.get("chance", {}).get(name)) is not None]
        found[key] = {
            "folds": values,
            "mean": float(np.mean(known)),
            "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            "median": float(np.median(known)),
            "min": min(known),
            "max": max(known),
            "n": len(known),
            "ci95_corrected": corrected_interval(known, ratio),
            "ci95_bootstrap": drawn.get(name) if key.startswith("test/") else None,
            "chance": float(np.mean(chances)) if chances and key.startswith("test/") else None,
        }
    return found


def _check_alike(folder: Path, statuses: dict[int, Status]) -> None:
    for what, values in (
        ("configurations (config_hash)", {number: status.config_hash for number, status in statuses.items()}),
        ("data (fingerprint)", {number: status.fingerprint or "" for number, status in statuses.items()}),
    ):
        if len(set(values.values())) > 1:
            listed = ", ".join(f"fold {number}: {value[:12]}" for number, value in values.items())
            raise RunFolderError(f"{folder} holds folds of different {what}, which have no common mean: {listed}. Run the odd ones again")


def _headline(config: dict[str, Any], names: Sequence[str], entries: dict[str, Any]) -> tuple[str, list[str]]:
    """(key of the metric that stands for the run, warnings)."""
    wanted = config["cv"]["headline"]
    monitor = config["trainer"]["monitor"]
    monitored = "test/" + str(monitor[0] if isinstance(monitor, list) else monitor).rsplit("/", 1)[-1]
    usual = "test/balanced_acc" if names and (not entries or "test/balanced_acc" in entries) else monitored
    if wanted is None:
        return usual, []
    key = wanted if "/" in wanted else f"test/{wanted}"
    if entries and key not in entries:
        return usual, [f"cv.headline={wanted} is no metric of this run, {usual} stands for it; there are {', '.join(entries)}"]
    return key, []


def _warnings(info: dict[str, Any], config: dict[str, Any], statuses: dict[int, Status | None], entries: dict[str, Any]) -> list[str]:
    said = []
    if config["cv"]["selection"] == "outer":
        said.append("optimistic: the checkpoints were chosen on the reported test parts (cv.selection=outer)")
    open_folds = {
        number: status.state if status else "not begun" for number, status in statuses.items() if status is None or status.state != "done"
    }
    if open_folds:
        said.append("partial: " + ", ".join(f"fold {number} {state}" for number, state in open_folds.items()))
    if config["cv"].get("over") == "rows" and info["dataset"]["groups"] < info["dataset"]["rows"]:
        said.append(f"cv={info['method']} splits rows: groups of several rows are on both sides, which makes the figures too good")
    if info.get("merged"):
        said.append(f"small classes are one class `other` (cv.small_classes=merge): {', '.join(info['merged'])}")
    if info["left_out"]:
        said.append(f"{len(info['left_out'])} rows of small classes are not in this run (cv.small_classes=skip); {FILE} lists them")
    some = [key for key, entry in entries.items() if entry["n"] < len(entry["folds"])]
    if some:
        said.append(f"not known in every fold, so the mean is over fewer: {', '.join(some)}")
    return said


def _one_class(rows: Sequence[FoldRows]) -> list[str]:
    """Folds whose model says the same of every row: then drawing rows moves hardly any figure."""
    constant = [fold.number for fold in rows if len({row.get("predicted", "") for row in fold.rows}) == 1 and "predicted" in fold.rows[0]]
    if not constant:
        return []
    folds = f"fold{'s' * (len(constant) > 1)} {', '.join(map(str, constant))}"
    return [
        f"{folds} predict one class only, nothing is told apart there: the interval over groups is too narrow, look at the one over folds"
    ]


def _stamped(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """What the folds' own results carry; `optimistic` is the configuration's to say."""
    return told({name: value for one in metrics for name, value in one.items() if name in ("over_corrected", "groups")})


def _unscored(external: dict[str, Any]) -> list[str]:
    if not external["rows"] or "models" in external:
        return []
    return [f"the data set's own test part ({external['rows']} rows) is outside all folds and is not scored here"]


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    stored = read_json(path) if path.exists() else {}
    return {key: stored[key] for key in _ENVIRONMENT if key in stored}


def read_json(path: Path) -> Any:
    """A file of a finished fold. Raises RunFolderError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} can not be read ({error.strerror}): run the fold again, or remove its folder first") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}): remove its folder and run the fold again") from error


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None, before: str = "") -> str:
    return "" if bounds is None else f"{before}{bounds[0]:.3f} .. {bounds[1]:.3f}"
