"""`mmexpert.evaluate run=RUN dataset.root=DIR`: a run's models on other data of the same classes, by their mean probability."""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.data.records import RecordDataset
from mmexpert.engine.class_merge import OTHER, merge_classes
from mmexpert.engine.console import result_table
from mmexpert.engine.external import figures, mean_rows, tables
from mmexpert.engine.files import csv_text, strict_json, write_atomic
from mmexpert.engine.folds_file import FILE, read_folds_info, rows_fingerprint
from mmexpert.engine.oof import rows_text, text_rows
from mmexpert.engine.runtime import LaunchSettings, launch
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.engine.stamps import stamps
from mmexpert.engine.status import read_status
from mmexpert.evaluators.classification import prediction_rows
from mmexpert.evaluators.probabilities import class_probabilities
from mmexpert.loading import load
from mmexpert.types import ConfigError, DataError, RunFolderError

log = logging.getLogger(__name__)
Config = dict[str, Any]
METRICS = "metrics.json"


def evaluate_other(cfg: Config, folder: Path, split: str | None, trust: Sequence[str], name: str) -> dict[str, Any] | None:
    """Scores a run's finished folds (or its one model) on other data; writes RUN/evaluate/NAME/ and returns metrics.json.

    split: rows of that part of the other data alone; None = all. None is returned where the rows are those of the run itself. Raises
    DataError for a class that the run does not know, RunFolderError where NAME holds the result of other rows. None also for a run
    without classes.
    """
    run = folder if (folder / FILE).exists() else folder.parent
    info = read_folds_info(run / FILE)
    names = list(info["dataset"]["classes"])
    if not names:  # ranks of several models have no mean
        return None
    dataset = merge_classes(build.build_dataset(_with_order(cfg, names, info.get("merged", ())), trust), info.get("merged", ()))
    rows_there = rows_fingerprint(dataset.records)
    if rows_there == info["dataset"]["rows_fingerprint"]:
        return None
    out = folder / "evaluate" / name
    if (out / METRICS).exists() and json.loads((out / METRICS).read_text(encoding="utf-8"))["protocol"]["rows_fingerprint"] != rows_there:
        raise RunFolderError(f"{out} holds the result of other rows under the same name: move it away")
    _check(cfg, dataset, names)
    wanted = [i for i, record in enumerate(dataset.records) if split is None or record.split == split]
    if not wanted:
        raise ConfigError(f"split={split}: the other data has no such part; leave split out to take all its rows")
    _warn_of_known(dataset, wanted, info)
    models = _models(folder)
    rows = mean_rows([_rows(cfg, path, dataset, wanted, trust) for path in models], names)
    found = figures(rows, names, dataset.classes.ordered and cfg["dataset"].get("class_order") is not None)
    content = {name: value for name, value in found["metrics"].items() if value is not None}
    content |= {f"group_{name}": value for name, value in found["group_metrics"].items() if value is not None}
    by = f"mean probability of {len(models)} models" if len(models) > 1 else "one model"
    by += ", pooled scores" if cfg.get("similarity") else ""  # the run's own figures may be by fused ones
    counts = {"rows": len(rows), "groups": found["groups"], "n_classes_used": content["n_classes_used"]}
    protocol = {"part": "other", "dataset": dataset.name, "by": by, "models": [path.name for path in models], "split": split} | counts
    protocol["rows_fingerprint"] = rows_there
    content |= {"ci95_bootstrap": found["ci95_bootstrap"], "protocol": protocol | {"chance": found["chance"]}}
    content |= stamps(dataset, cfg["cv"]["selection"])
    _write(out, content, rows, names)
    return content


def _with_order(cfg: Config, names: Sequence[str], merged: Sequence[str]) -> Config:
    """The data set's node with the run's classes in the run's order: the other data may lack some, and must not have further ones."""
    if cfg["dataset"].get("class_order", "absent") is not None:
        return cfg  # the data set takes no order, or has one
    kept = [name for name in names if not merged or name != OTHER]
    return cfg | {"dataset": cfg["dataset"] | {"class_order": sorted({*kept, *merged})}}


def _check(cfg: Config, dataset: RecordDataset, names: Sequence[str]) -> None:
    if dataset.classes is None or list(dataset.classes.names) != list(names):
        found = "none" if dataset.classes is None else ", ".join(dataset.classes.names)
        raise DataError(f"the other data has the classes {found}, the run was trained on {', '.join(names)}: they must be the same")
    if cfg["evaluator"].get("prior") == "train":
        raise ConfigError("evaluator.prior=train needs the run's own training part: set evaluator.prior=as_trained for other data")
    if (rank_by := cfg["evaluator"].get("rank_by")) in ("sequence", "fused"):
        raise ConfigError(f"evaluator.rank_by={rank_by}: other data is scored by pooled scores alone: set evaluator.rank_by=pooled")


def _warn_of_known(dataset: RecordDataset, wanted: Sequence[int], info: dict[str, Any]) -> None:
    seen = {sample for fold in info["folds"] for part in ("train", "valid", "test") for sample in fold[part]}
    if known := [dataset.records[i].id for i in wanted if dataset.records[i].id in seen]:
        log.warning(
            "%d of %d rows have ids of the run's own data (such as %s): figures on films that were trained on are too good",
            len(known), len(wanted), known[0],
        )  # fmt: skip


def _models(folder: Path) -> list[Path]:
    """The finished folds, or the folder itself; final/ is one model, and named by run=RUN/final."""
    folds = sorted(folder.glob("fold_*"), key=lambda path: int(path.name.rpartition("_")[2])) or [folder]
    done = [path for path in folds if (status := read_status(path)) is not None and status.state == "done"]
    if not done:
        raise RunFolderError(f"{folder}: no model is finished yet; the same train command continues")
    if len(done) < len(folds):
        log.warning("%d of %d folds are finished; the mean is over these", len(done), len(folds))
    return done


def _rows(cfg: Config, folder: Path, dataset: RecordDataset, wanted: list[int], trust: Sequence[str]) -> list[dict[str, str]]:
    """Predictions of one stored model."""
    adopt_slurm()
    trainer = cfg["trainer"]
    settings = LaunchSettings(trainer["device"], trainer["mixed_precision"], 1, trainer["deterministic"], trainer["group_timeout_s"], None)
    accelerator = launch(settings, None, folder)
    loaded = load(folder, accelerator.device.type, trust)
    place = build.Placement(accelerator.device, accelerator.process_index, accelerator.num_processes)
    cfg = cfg | {"trainer": trainer | {"drop_last": False}}
    dataset = copy.copy(dataset)
    dataset.take_up(loaded.config.get("preparation", {}).get("image"))  # mean and sd of this model's own training part
    dataset.balance_settings = None  # nothing is trained, and a class may be absent
    parts = {"train": wanted, "valid": [], "test": wanted}
    loaders = build.build_loaders(cfg, dataset, parts, loaded.tokenizer, cfg["seed"], place)
    try:
        ids, probabilities = class_probabilities(loaded.model, loaders, accelerator, "test")
    finally:
        loaders.close()
    return text_rows(prediction_rows(probabilities, dataset, [dataset.records[i] for i in ids]))


def _write(out: Path, content: dict[str, Any], rows: list[dict[str, str]], names: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / METRICS, strict_json(content, indent=1))
    write_atomic(out / "predictions.csv", rows_text(rows))
    for name, table in tables(rows, names).items():
        write_atomic(out / f"{name}.csv", csv_text(table))
    for line in [*result_table(content, content["protocol"]), f"in {out}"]:
        log.info("%s", line)
