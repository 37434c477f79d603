"""`python -m mmexpert.check_data dataset=NAME [overrides] [strict=true] [least_groups=5]`: reads a whole data set and lists its faults.

Overrides are those of mmexpert.train; only the data set is built. Writes outputs/data_checks/FINGERPRINT.json and .csv (severity,
code, file, record, advice) and exits 3 where there is an error, with strict=true also for a warning.
"""

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mmexpert.command_line import composed, launch, trust_list
from mmexpert.own_keys import shown_help
from mmexpert.types import DataError

if TYPE_CHECKING:  # --help and a misspelt key must not wait for torch
    from mmexpert.data.findings import Finding
    from mmexpert.data.records import Record, RecordDataset

log = logging.getLogger(__name__)
FOLDER = Path("outputs") / "data_checks"
_SHOWN = 10  # findings that are printed; the files hold all
_COLUMNS = ("severity", "code", "file", "record", "advice")


def application() -> None:
    """The command. Raises DataError where the data set is refused."""
    if shown_help(__doc__):
        return
    overrides = sys.argv[1:]
    cfg = composed(*overrides, name="check_data")
    node = OmegaConf.to_container(cfg.dataset, resolve=True, throw_on_missing=True)  # alone: a tower may ask for keys of another data set
    name, findings = check_config(node, tuple(trust_list), cfg.least_groups)
    counts = Counter(finding.severity for finding in findings)
    for finding in findings[:_SHOWN]:
        log.info("%s %s: %s", finding.severity, finding.code, finding.advice)
    if len(findings) > _SHOWN:
        log.info("and %d more", len(findings) - _SHOWN)
    path = FOLDER / f"{name}.csv"
    verdict = f"errors: {counts['error']}, warnings: {counts['warning']}, listed in {path}"
    if counts["error"] or (cfg.strict and counts["warning"]):
        raise DataError(f"{verdict}: mend them" + (" (strict=true: warnings too)" if cfg.strict else ""))
    log.info("%s", verdict)


def check_config(node: dict[str, Any], trust: Sequence[str], least_groups: int) -> tuple[str, list["Finding"]]:
    """(name of the report's files, findings) of the data set that a config node describes.

    Unusable records are left out while it is built, so that all of them are found at once; the rest is read.
    """
    from mmexpert.build import build_dataset
    from mmexpert.data.findings import DataFault, DataFaults

    if "on_error" in node:
        node = node | {"on_error": "skip"}
    try:
        dataset = build_dataset({"dataset": node}, trust)
    except (DataFault, DataFaults) as fault:  # of the set as a whole: there is nothing to read
        faults = fault.faults if isinstance(fault, DataFaults) else (fault,)
        name = hashlib.sha256(json.dumps(node, sort_keys=True, default=str).encode()).hexdigest()
        findings = [each.finding() for each in faults]
        write_findings(name, node["_target_"], findings, 0)
        return name, findings
    findings = check_dataset(dataset, least_groups)
    told = [f"{dataset.name}: {counted(dataset, findings)}"]
    told.append(f"{len({record.group for record in dataset.records})} groups")
    told += [f"{len(dataset.classes.names)} classes"] if dataset.classes is not None else []
    log.info("%s", ", ".join(told))
    return dataset.fingerprint(), findings


def counted(dataset: "RecordDataset", findings: Sequence["Finding"]) -> str:
    """How many records there are by split; those that have a fault, left out while the set was built or not, are among them."""
    splits = Counter(record.split or "no split" for record in dataset.records)
    parts = ", ".join(f"{n} {split}" for split, n in sorted(splits.items()))
    left = sum(finding.severity == "error" for finding in getattr(dataset, "findings", ()))  # one fault each: the first ends its reading
    bad = {finding.record for finding in findings if finding.severity == "error"} & {record.id for record in dataset.records}
    if not left + len(bad):
        return f"{len(dataset.records)} records ({parts})"
    return f"{len(dataset.records) + left} records, {left + len(bad)} of them faulty ({parts}{f', {left} left out' if left else ''})"


def check_dataset(dataset: "RecordDataset", least_groups: int) -> list["Finding"]:
    """Findings of a data set, errors first; every record is read once. Writes the report."""
    from mmexpert.data.findings import deep_check

    own = dataset.deep_check() if hasattr(dataset, "deep_check") else deep_check(dataset)
    findings = sorted([*own, *record_findings(dataset, least_groups)], key=lambda finding: finding.severity != "error")
    write_findings(dataset.fingerprint(), dataset.name, findings, len(dataset.records))
    return findings


def require_sound(dataset: "RecordDataset") -> None:
    """Raises DataError where the check, or an earlier one of the same fingerprint, has found an error.

    Records that dataset.on_error=skip has left out are no reason: the run does not use them.
    """
    from mmexpert.data.findings import Finding

    path = FOLDER / f"{dataset.fingerprint()}.json"
    if path.exists():
        findings = [Finding(**row) for row in json.loads(path.read_text(encoding="utf-8"))["findings"]]
    else:
        findings = check_dataset(dataset, 0)
    known = set(getattr(dataset, "findings", ()))
    errors = [finding for finding in findings if finding.severity == "error" and finding not in known]
    if errors:
        first = "\n  ".join(f"{finding.code}: {finding.advice}" for finding in errors[:_SHOWN])
        raise DataError(
            f"data_check=deep: errors: {len(errors)}, listed in {path.with_suffix('.csv')}\n  {first}\nNothing has been trained"
        )


def record_findings(dataset: "RecordDataset", least_groups: int) -> list["Finding"]:
    """What can be said of any data set: ids, captions, groups and classes of its records. least_groups: for small_class."""
    found = [*_id_findings(dataset.records), *_caption_findings(dataset), *_group_findings(dataset.records)]
    return found if dataset.classes is None else [*found, *_class_findings(dataset, least_groups)]


def write_findings(name: str, dataset: str, findings: Sequence["Finding"], records: int) -> None:
    """NAME.json and NAME.csv below outputs/data_checks."""
    from mmexpert.engine.files import csv_text, strict_json, write_atomic

    rows = [{column: getattr(finding, column) for column in _COLUMNS} for finding in findings]
    counts = Counter(finding.severity for finding in findings)
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1,
        "dataset": dataset,
        "records": records,
        "errors": counts["error"],
        "warnings": counts["warning"],
        "findings": rows,
    }
    write_atomic(FOLDER / f"{name}.json", strict_json(content, indent=1))
    write_atomic(FOLDER / f"{name}.csv", csv_text(rows) if rows else ",".join(_COLUMNS) + "\n")


def _id_findings(records: Sequence["Record"]) -> list["Finding"]:
    first: dict[str, Record] = {}
    found = []
    for record in records:
        twin = first.setdefault(record.id, record)
        if twin is not record and twin.split != record.split:
            found.append(_error("id_in_two_splits", record, f"the id {record.id!r} is in {twin.split} and in {record.split}: remove one"))
        elif twin is not record:
            found.append(_error("duplicate_id", record, f"two records have the id {record.id!r}: give each its own"))
    return found


def _caption_findings(dataset: "RecordDataset") -> list["Finding"]:
    from mmexpert.data.records import wordless

    found = []
    for record in dataset.records:
        blank = [(number, caption) for number, caption in enumerate(record.captions, 1) if wordless(caption)]
        if blank:
            number, caption = blank[0]
            seen = f" ({caption!r})" if caption.strip() else ""
            found.append(_error("empty_caption", record, f"record {record.id!r}: caption {number} is empty{seen}: write or remove it"))
        elif not record.captions and dataset.classes is None:
            found.append(_error("empty_caption", record, f"record {record.id!r} has no caption, and the data set no class texts: add one"))
    return found


def _group_findings(records: Sequence["Record"]) -> list["Finding"]:
    owner: dict[str, Record] = {}
    leaks: dict[str, Record] = {}
    for record in records:
        if record.split and owner.setdefault(record.group, record).split != record.split:
            leaks.setdefault(record.group, record)
    return [
        _error(
            "group_in_two_splits",
            record,
            f"the group {group!r} is in {owner[group].split} ({owner[group].id}) and in {record.split} ({record.id}): its rows know each "
            "other, put all into one split",
        )
        for group, record in leaks.items()
    ]


def _class_findings(dataset: "RecordDataset", least_groups: int) -> list["Finding"]:
    from mmexpert.data.findings import Finding
    from mmexpert.data.records import wordless

    groups: dict[int, set[str]] = {}
    found = []
    for record in dataset.records:
        groups.setdefault(record.label, set()).add(record.group)
        if not 0 <= record.label < len(dataset.classes.names):
            found.append(_error("unknown_class", record, f"record {record.id!r} has the label {record.label}: there is no such class"))
    for label, name in enumerate(dataset.classes.names):
        if all(wordless(text) for text in dataset.classes.texts[label]):
            found.append(Finding("error", "class_without_text", dataset.name, name, f"the class {name!r} has no text: write one"))
        if (count := len(groups.get(label, ()))) < max(least_groups, 1):
            advice = f"the class {name!r} has {count} groups, fewer than {max(least_groups, 1)}: use fewer folds, or cv.small_classes"
            found.append(Finding("warning", "small_class", dataset.name, name, advice))
    return found


def _error(code: str, record: "Record", advice: str) -> "Finding":
    from mmexpert.data.findings import Finding

    return Finding("error", code, str(record.source or ""), record.id, advice)


def main() -> None:
    """Entry point of `python -m mmexpert.check_data`."""
    launch(application)


if __name__ == "__main__":
    main()
