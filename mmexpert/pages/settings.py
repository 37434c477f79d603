"""Configuration, data, environment, checkpoints and resumes of a run, as tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmexpert.engine.status import ABSENT, flat
from mmexpert.pages.markup import folded, number, table, text
from mmexpert.pages.stored import StoredRun

_MOST_LINES = 30  # of warnings and of dropped records
_NOT_COMPARED = ("cv.fold", "trainer.device", "trainer.num_workers", "hydra")


def config_tables(run: StoredRun, defaults: Mapping[str, Any] | None) -> str:
    """What differs from the defaults, then every key, the differing ones shaded. defaults: by dotted key, those of the chosen options;
    None where they are not known: then what the command line names is marked."""
    if not run.config:
        return ""
    changed = {key: _default(key, defaults) for key, value in run.config.items() if _is_changed(run, key, value, defaults)}
    said = table("Said on the command line", ("override",), [(one,) for one in run.overrides])
    rows = [(key, _value(run.config[key]), default) for key, default in changed.items()]
    other = table("Keys that differ from the defaults of the chosen options", ("key", "value", "default"), rows)
    if not rows:
        other = '<p class="soft">No key differs from the defaults of the chosen options.</p>'
    everything = [(key, _value(value)) for key, value in run.config.items()]
    whole = table(
        "Configuration", ("key", "value"), everything, "shaded: differs from the defaults", [key in changed for key in run.config]
    )
    return said + other + folded(f"all {len(everything)} keys", whole)


def _is_changed(run: StoredRun, key: str, value: Any, defaults: Mapping[str, Any] | None) -> bool:
    if defaults is None:
        return key in [one.lstrip("+~").partition("=")[0] for one in run.overrides]
    return json.dumps(value) != json.dumps(defaults.get(key, ABSENT))


def _default(key: str, defaults: Mapping[str, Any] | None) -> str:
    return "not known" if defaults is None else _value(defaults.get(key, ABSENT))


def differing_keys(runs: Sequence[StoredRun]) -> str:
    """Keys whose values are not the same in all runs: a row a key, a column a run; keys that some runs do not have are folded away."""
    shared: list[tuple[str, ...]] = []
    absent: list[tuple[str, ...]] = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [_value(run.config[key]) if key in run.config else ABSENT for run in runs]
        if len(set(values)) > 1 and not key.startswith(_NOT_COMPARED):
            (absent if ABSENT in values else shared).append((key, *values))
    head = ("key", *(run.short for run in runs))
    if not shared and not absent:
        return '<p class="soft">The configurations are the same.</p>'
    rest = table("Keys that only some have", head, absent)
    return table("Keys that differ", head, shared) + folded(f"{len(absent)} keys that only some runs have", rest)


def data_tables(run: StoredRun) -> str:
    """Rows of each part, classes, what was left out and warned of."""
    report, folds = run.json("data_report.json"), run.json("folds_info.json").get("dataset", {})
    rows = [(key, _value(value)) for key, value in flat(report).items() if key != "warnings"]
    rows += [(key, _value(folds[key])) for key in ("rows", "groups") if key in folds]
    blocks = [table("Data", ("what", "value"), rows)]
    if isinstance(classes := folds.get("classes"), dict) and classes:
        blocks.append(folded(f"{len(classes)} classes", table("Rows of each class", ("class", "rows"), list(classes.items()))))
    blocks += [f'<p class="warn">{text(warning)}</p>' for warning in report.get("warnings", [])[:_MOST_LINES]]
    dropped = run.rows("dropped.csv")
    shown = [tuple(row.get(name, "") for name in ("file", "record", "reason")) for row in dropped[:_MOST_LINES]]
    blocks.append(table(f"Left out: {len(dropped)} records", ("file", "record", "reason"), shown, "dropped.csv has all" if dropped else ""))
    said = _warned(run)
    blocks.append(table("Warnings while it ran", ("time", "warning"), said))
    return "".join(blocks)


def _warned(run: StoredRun) -> list[tuple[str, str]]:
    """The last WARNING and ERROR lines of log.txt: time and text."""
    path = run.folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = [line.split(maxsplit=3) for line in lines if " WARNING " in line[:40] or " ERROR " in line[:40]]
    return [(f"{parts[0]} {parts[1].partition(',')[0]}", parts[3]) for parts in found if len(parts) == 4][-_MOST_LINES:]


def checkpoint_tables(run: StoredRun) -> str:
    """The checkpoints that are kept, which one is the best and which the last, and every continuation."""
    folder = run.folder / "checkpoints"
    links = {path.resolve().name: [] for path in folder.glob("*")} if folder.is_dir() else {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.is_symlink():
            links.setdefault(path.resolve().name, []).append(path.name)
    rows = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.is_symlink() or path.name.startswith(".") or not path.is_dir():
            continue
        size = sum(file.stat().st_size for file in path.glob("*") if file.is_file()) / 1e6
        rows.append((path.name, ", ".join(links.get(path.name, [])), f"{size:.1f} MB"))
    resumes = run.json("status.json").get("resumes", [])
    again = [(one.get("step"), one.get("processes"), _value(one.get("exact")), _value(one.get("versions"))) for one in resumes]
    head = ("from step", "processes", "exact", "versions")
    return table("Checkpoints", ("name", "is", "size"), rows) + table("Continued after a stop", head, again)


def environment_table(run: StoredRun) -> str:
    """Versions, devices, commit."""
    rows = [(key, _value(value)) for key, value in flat(run.json("environment.json")).items() if key != "command"]
    return table("Environment", ("what", "value"), rows)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False)
    return "null" if value is None else number(value)
