"""Runs side by side on the same folds: paired differences with intervals and tests (metrics/statistics.py). Trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.folds_file import FILE
from mmexpert.engine.oof import FoldRows, labels_of, probabilities_of, read_rows
from mmexpert.engine.progress import mode_of
from mmexpert.engine.row_scores import drawn_means
from mmexpert.engine.summary import read_done, read_json
from mmexpert.metrics.classification import group_rows
from mmexpert.metrics.statistics import bootstrap_p, corrected_interval, corrected_p, holm, mcnemar
from mmexpert.types import ConfigError, RunFolderError

_LEVEL = 0.05  # of the verdict, on Holm's p
_COLUMNS = (
    "run", "baseline", "run's mean", "difference", "95 % corrected", "p", "Holm p", "95 % bootstrap", "p", "Holm p", "folds won",
    "McNemar", "Holm p",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedRun:
    """A run of the comparison: its folds_info.json, its config, and the predictions and metrics of each finished fold by number."""

    name: str
    info: dict[str, Any]
    config: dict[str, Any]
    rows: dict[int, FoldRows]
    metrics: dict[int, dict[str, Any]]

    @property
    def classes(self) -> list[str]:
        """Names in label order; empty for retrieval."""
        return list(self.info["dataset"]["classes"])


def compare_runs(folders: Sequence[Path], metric: str, baseline: int) -> dict[str, Any]:
    """What comparison.json holds: each other run against folders[baseline]. metric: of the test part, or with its part (`valid/acc`).

    Raises RunFolderError for runs of other rows or folds (with the first fold that differs) or without folds, ConfigError for a
    metric that a run lacks.
    """
    runs = [_read(Path(folder)) for folder in folders]
    first = runs[baseline]
    for run in runs:
        _check_same_folds(first, run)
    numbers = [number for number in first.rows if all(number in run.rows for run in runs)]
    if not numbers:
        raise RunFolderError(f"no fold is finished in all of {', '.join(run.name for run in runs)}: run the same command again first")
    key = metric if "/" in metric else f"test/{metric}"
    known, warnings = _with_values(runs, key, numbers)
    rows = [_compare(first, run, key, known) for place, run in enumerate(runs) if place != baseline]
    for name in ("corrected", "bootstrap", "mcnemar"):
        for row, value in zip(rows, holm([row["p"][name] for row in rows]), strict=True):
            row["p_holm"][name] = value
    for row in rows:
        row["verdict"] = _verdict(row, len(known))
    return {
        "format": 1,
        "metric": key,
        "baseline": first.name,
        "rows_fingerprint": first.info["dataset"]["rows_fingerprint"],
        "folds": known,
        "optimistic": any(run.config["cv"]["selection"] == "outer" for run in runs),
        "comparisons": rows,
        "warnings": _warnings(runs, numbers) + warnings,
    }


def comparison_table(comparison: dict[str, Any]) -> str:
    """comparison.md: a line a run, then the verdicts and warnings."""
    stamp = ", OPTIMISTIC: chosen on the test parts" if comparison["optimistic"] else ""
    lines = [
        f"{comparison['metric']}, {len(comparison['folds'])} folds, differences from {comparison['baseline']}{stamp}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for row in comparison["comparisons"]:
        test, won = row["mcnemar"], row["folds_won"]
        shown = f"{test['only_baseline']} : {test['only_run']} {test['units']}, p {_number(test['p'], 4)}" if test else ""
        cells = [
            row["run"].replace("|", "\\|"), *(_number(row[name]) for name in ("mean_baseline", "mean_run", "mean_difference")),
            _interval(row["ci95_corrected"]), _number(row["p"]["corrected"], 4), _number(row["p_holm"]["corrected"], 4),
            _interval(row["ci95_bootstrap"]), _number(row["p"]["bootstrap"], 4), _number(row["p_holm"]["bootstrap"], 4),
            f"{won['run']} : {won['baseline']}, {won['tied']} tied", shown, _number(row["p_holm"]["mcnemar"], 4),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{row['run']}: {row['verdict']}" for row in comparison["comparisons"])]
    lines += [
        "",
        "Corrected: Nadeau and Bengio's t over folds, a heuristic for folds. Bootstrap: the same drawn groups for both runs, without",
    ]
    lines += ["the variance of training. McNemar: exact, right in the baseline alone : right in the run alone. Holm: over all these runs."]
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in comparison["warnings"])]) + "\n"


def _read(folder: Path) -> ComparedRun:
    info, _, done = read_done(folder)
    rows = {fold["fold"]: read_rows(folder, fold) for fold in done}
    metrics = {number: read_json(folder / f"fold_{number}" / "metrics.json") for number in rows}
    return ComparedRun(folder.as_posix(), info, read_json(folder / "config.json")["config"], rows, metrics)


def _check_same_folds(first: ComparedRun, other: ComparedRun) -> None:
    before, after = first.info["dataset"], other.info["dataset"]
    tests = [{fold["fold"]: set(fold["test"]) for fold in run.info["folds"]} for run in (first, other)]
    numbers = [number for number in sorted(tests[0] | tests[1]) if tests[0].get(number) != tests[1].get(number)]
    where = ""
    if numbers:
        mine, theirs = (found.get(numbers[0], set()) for found in tests)
        where = (
            f"fold {numbers[0]} is the first that differs: {len(mine)} and {len(theirs)} test rows, of them {len(mine & theirs)} in common"
        )
    if before["rows_fingerprint"] != after["rows_fingerprint"] or first.classes != other.classes:
        what = f"have other rows, labels, groups or classes ({before['rows']} and {after['rows']} rows)"
    elif numbers:
        what = "have other folds"
    else:
        return
    raise RunFolderError(
        f"{first.name} and {other.name} {what}; {where or 'their test parts are equal'}. Run both with one dataset and one cv="
    )


def _with_values(runs: Sequence[ComparedRun], key: str, numbers: Sequence[int]) -> tuple[list[int], list[str]]:
    """The folds where every run has the metric as a number, and a warning that names the others."""
    known = [number for number in numbers if all(isinstance(run.metrics[number].get(key), (int, float)) for run in runs)]
    if not known:
        there = [name for name in runs[0].metrics[numbers[0]] if "/" in name and all(name in run.metrics[numbers[0]] for run in runs)]
        raise ConfigError(f"--metric {key}: not every run has it. All have {', '.join(sorted(there))}")
    lost = [str(number) for number in numbers if number not in known]
    return known, [f"{key} is not known in fold {', '.join(lost)}, which is left out"] if lost else []


def _compare(first: ComparedRun, run: ComparedRun, key: str, numbers: Sequence[int]) -> dict[str, Any]:
    values = [np.array([one.metrics[number][key] for number in numbers], dtype=float) for one in (first, run)]
    differences = values[1] - values[0]
    gains = -differences if mode_of(key) == "min" else differences
    folds = [[first.rows[number] for number in numbers], [_in_order(run.rows[number], first.rows[number]) for number in numbers]]
    sizes = [one.rows[number].sizes for one in (first, run) for number in numbers]
    rho = float(np.mean([test / train for train, test in sizes]))  # of both: the runs may have inner parts of other sizes
    p = corrected_p(differences, rho)
    draws = _draws(folds, key, first.classes, first.metrics[numbers[0]])
    test = _mcnemar(folds, first.classes) if key.startswith("test/") else None
    return {
        "run": run.name,
        "mean_baseline": float(values[0].mean()),
        "mean_run": float(values[1].mean()),
        "mean_difference": float(differences.mean()),
        "differences": differences.tolist(),
        "rho": rho,
        "ci95_corrected": corrected_interval(differences, rho) if p is not None else None,
        "ci95_bootstrap": None if draws is None else np.percentile(draws, [2.5, 97.5]).tolist(),
        "p": {"corrected": p, "bootstrap": None if draws is None else bootstrap_p(draws), "mcnemar": test and test["p"]},
        "p_holm": {},
        "folds_won": {"run": int((gains > 0).sum()), "baseline": int((gains < 0).sum()), "tied": int((gains == 0).sum())},
        "mcnemar": test,
    }


def _in_order(fold: FoldRows, like: FoldRows) -> FoldRows:
    """Rows in the order of another run's, so that both are drawn alike."""
    row_of = {row["id"]: row for row in fold.rows}
    return FoldRows(fold.number, fold.repeat, [row_of[row["id"]] for row in like.rows], fold.sizes)


def _draws(folds: Sequence[list[FoldRows]], key: str, classes: Sequence[str], metrics: dict[str, Any]) -> np.ndarray | None:
    """Drawn differences; None where the rows do not decide the metric. A draw without a value (no negative left) is left out."""
    k = metrics.get("protocol", {}).get("test", {}).get("k", ())
    name = key.removeprefix("test/")
    mine, theirs = (drawn_means(rows, classes, k, (name,)).get(name) if key.startswith("test/") else None for rows in folds)
    if mine is None or theirs is None:
        return None
    draws = theirs - mine  # the same groups are drawn of both
    draws = draws[~np.isnan(draws)]
    return draws if len(draws) else None


def _mcnemar(folds: Sequence[list[FoldRows]], classes: Sequence[str]) -> dict[str, Any] | None:
    """Of rows, or of groups where one has several rows; a row of several repeats counts once, with its mean probabilities."""
    if not classes or any(f"p_{name}" not in one[0].rows[0] for name in classes for one in folds):
        return None
    right, units = [], "rows"
    for one in folds:
        found: dict[str, list[Any]] = {}
        for fold in one:
            for row, label, chances in zip(fold.rows, labels_of(fold, classes), probabilities_of(fold, classes), strict=True):
                found.setdefault(row["id"], [row["group"], label, []])[2].append(chances)
        groups, labels, chances = zip(*found.values(), strict=True)
        means, truth = np.array([np.mean(rows, axis=0) for rows in chances]), np.array(labels)
        if len(set(groups)) < len(groups):
            units = "groups"
            means, truth, _ = group_rows(means, truth, groups)
        if not len(truth):
            return None
        right.append(means.argmax(1) == truth)
    counts = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    return {"only_baseline": counts[0], "only_run": counts[1], "units": units, "p": mcnemar(*counts)}


def _verdict(row: dict[str, Any], folds: int) -> str:
    p, bounds = row["p_holm"]["corrected"], row["ci95_corrected"]
    if p is None:
        return "no p: one fold has no spread" if folds < 2 else "no p: all differences equal"
    if p >= _LEVEL:
        width = (bounds[1] - bounds[0]) / 2
        told = f"; with {folds} folds of this spread a difference below {width:.3g} can not be shown" if width else ""
        return f"no difference shown (p {p:.3g}){told}"
    return f"a difference of {row['mean_difference']:+.3g} (p {p:.3g})"


def _warnings(runs: Sequence[ComparedRun], numbers: Sequence[int]) -> list[str]:
    said = []
    for run in runs:
        if run.config["cv"]["selection"] == "outer":
            said.append(f"optimistic: {run.name} chose its checkpoints on the reported test parts (cv.selection=outer)")
        if open_folds := [str(fold["fold"]) for fold in run.info["folds"] if fold["fold"] not in run.rows]:
            said.append(f"partial: fold {', '.join(open_folds)} of {run.name} is not finished")
    left = len(runs[0].info["folds"]) - len(numbers)
    return said + ([f"{left} folds that are not finished in every run are left out ({FILE} lists all)"] if left else [])


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f} .. {bounds[1]:.3f}"
