"""Other data than a run's own, for runs without classes: the data set's own parts stand in place of the stored folds'."""

import logging
from typing import Any

from mmexpert.data.records import RecordDataset
from mmexpert.engine.folds import PARTS, Fold
from mmexpert.engine.folds_file import stored_folds
from mmexpert.types import ConfigError, RunFolderError

log = logging.getLogger(__name__)


def is_other(dataset: RecordDataset, info: dict[str, Any]) -> bool:
    """Whether a data set has other ids than those of a parsed folds_info.json."""
    known = {sample for fold in stored_folds(info) for part in (*PARTS, "external") for sample in getattr(fold, part)}
    return {record.id for record in dataset.records} != known | set(info["left_out"])


def own_part(dataset: RecordDataset, split: str | None, info: dict[str, Any]) -> tuple[str, Fold]:
    """(part, the data set's own parts as one fold): split, else the test part or the only one there; all rows where there are no parts.

    Raises ConfigError where the data has no such part, RunFolderError for data with classes, which fold models predict by their mean.
    """
    if dataset.classes is not None:
        known = {sample for fold in stored_folds(info) for part in PARTS for sample in getattr(fold, part)}
        new = next((record.id for record in dataset.records if record.id not in known), "fewer records than the run's")
        raise RunFolderError(
            f"this is other data than the run's ({new}), and a run with classes predicts other data by the mean of its models: name the "
            "run folder or a fold, and leave checkpoint= out"
        )
    parts = {name: [dataset.records[i].id for i in dataset.part(name)] for name in PARTS}
    there = [name for name in PARTS if parts[name]]
    part = split or ("test" if parts["test"] or len(there) != 1 else there[0])
    if not there and split is None:
        parts["test"] = [record.id for record in dataset.records]
    if not parts[part]:
        has = f"it has {', '.join(there)}" if there else "its records name no parts: leave split out to take all its rows"
        raise ConfigError(f"split={part}: the other data has no such part; {has}")
    log.info("other data than the run's own: %d rows, its %s", len(parts[part]), f"{part} part" if there else "whole")
    _warn_of_known(parts[part], info)
    # a train part is asked for in places where nothing is trained
    return part, Fold(0, 1, parts["train"] or parts[part], parts["valid"], parts["test"])


def _warn_of_known(ids: list[str], info: dict[str, Any]) -> None:
    trained = {sample for fold in info["folds"] for part in ("train", "valid") for sample in fold[part]}
    if known := [sample for sample in ids if sample in trained]:
        log.warning(
            "%d of %d rows have ids that the run was trained or chosen on (such as %s): if they are the same, the figures are too good",
            len(known), len(ids), known[0],
        )  # fmt: skip
