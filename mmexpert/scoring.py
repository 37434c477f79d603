"""What `mmexpert.evaluate` does once the arguments are read: a stored run's weights on one of its parts."""

import logging
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmexpert import build
from mmexpert.config import NOT_HASHED
from mmexpert.data.records import RecordDataset
from mmexpert.engine.class_merge import merge_classes
from mmexpert.engine.console import result_table
from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.folds import PARTS, Fold
from mmexpert.engine.folds_file import FILE, read_folds_info, stored_folds
from mmexpert.engine.plots import write_plots
from mmexpert.engine.results import provenance, read_json, write_predictions
from mmexpert.engine.runtime import LaunchSettings, launch
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.engine.stamps import stamps
from mmexpert.engine.status import config_hash
from mmexpert.engine.step_folder import MODEL, load_weights, read_weights
from mmexpert.other_data import is_other, own_part
from mmexpert.stored_weights import stored_weights
from mmexpert.types import ConfigError, RunFolderError
from mmexpert.vocabulary import stored_words

log = logging.getLogger(__name__)
Config = dict[str, Any]


def evaluate_run(
    cfg: Config, folder: Path, split: str | None, checkpoint: str | None, trust: Sequence[str], configs: dict[str, Config], name: str
) -> dict[str, dict[str, Any]]:
    """Scores the split of a run, or of each of its folds; writes RUN/evaluate/NAME/ and returns the metrics by folder name.

    split: None = test. checkpoint: as stored_weights has it. configs: of each fold that has one of its own (cv=nested), by folder name.
    """
    if split not in (None, *PARTS):
        raise ConfigError(f"split={split}: choose train, valid or test")
    folds = sorted(folder.glob("fold_*"), key=lambda path: int(path.name.rpartition("_")[2])) or [folder]
    info = read_folds_info((folder if (folder / FILE).exists() else folder.parent) / FILE)
    dataset = merge_classes(build.build_dataset(cfg, trust), info.get("merged", ()))
    everything = {fold.number: fold for fold in stored_folds(info)}
    if is_other(dataset, info):
        part, fold = own_part(dataset, split, info)
        everything = {number: replace(fold, number=number) for number in everything}
        cfg, configs = _for_scoring(cfg), {place: _for_scoring(config) for place, config in configs.items()}
    else:
        part = split or "test"
    found = {}
    for path in folds:
        number = int(path.name.rpartition("_")[2]) if path.name.startswith("fold_") else 0
        if number not in everything:
            raise RunFolderError(f"{path}: the stored folds have no number {number}")
        weights = stored_weights(cfg, path, checkpoint)
        found[path.name] = score_fold(configs.get(path.name, cfg), weights, everything[number], dataset, part, trust, name)
    if len(found) > 1 and os.environ.get("RANK", "0") == "0":
        for line in over_folds(folder, found):
            log.info("%s", line)
        log.info("in %s", folder / "fold_*" / "evaluate" / name)
    return found


def over_folds(folder: Path, found: dict[str, dict[str, Any]]) -> list[str]:
    """A line on the mean of the metric that stands for the run, of the folds that have it; none where the run has no summary yet."""
    summary = folder / "cv_summary.json"
    key = read_json(summary)["headline"].rpartition("/")[2] if summary.exists() else ""
    values = [float(metrics[key]) for metrics in found.values() if metrics.get(key) is not None]
    if len(values) < 2:
        return []
    return [f"mean over {len(values)} folds: {key} {statistics.mean(values):.3f}, sd {statistics.stdev(values):.3f}"]


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Without the loaders' lines on batches of training: nothing is trained here."""
    loader_log = logging.getLogger(build.Loaders.__module__)
    before = loader_log.level
    loader_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loader_log.setLevel(before)


def _for_scoring(cfg: Config) -> Config:
    """The configuration for other data, of which nothing is trained: it may have fewer training samples than a batch."""
    return cfg | {"trainer": cfg["trainer"] | {"drop_last": False}}


def score_fold(
    cfg: Config, weights: Path, fold: Fold, dataset: RecordDataset, split: str, trust: Sequence[str], name: str
) -> dict[str, Any]:
    """Metrics of one fold's weights on a part. weights: RUN/checkpoints/POSITION."""
    folder, parts = weights.parents[1], fold.parts(dataset)
    if not parts[split]:
        raise ConfigError(f"split={split}: this run has no {split} part")
    adopt_slurm()
    trainer = cfg["trainer"]
    settings = LaunchSettings(trainer["device"], trainer["mixed_precision"], 1, trainer["deterministic"], trainer["group_timeout_s"], None)
    accelerator = launch(settings, None, folder)
    tokenizer, corpus = stored_words(cfg, folder)
    corpus = corpus or (tokenizer.corpus(dataset.training_texts(parts["train"])) if tokenizer else None)
    classes = build.training_classes(dataset, parts["train"])
    model = build.build_model(cfg, classes, tokenizer, trust)
    objective = build.build_objective(cfg, model, corpus, trust)
    objective.to(accelerator.device)
    cache = build.build_cache(cfg, model, dataset, tokenizer)  # as the run had it: its checkpoints lack the towers that were tables
    if cache:
        dataset, tokenizer = cache.dataset, cache.tokenizer
    missing, unexpected = load_weights(objective, read_weights(weights.resolve()))
    if cfg.get("combiner") and not any(True for _ in model.combiner.parameters()):  # combiner=sum over a run with another
        unexpected = [name for name in unexpected if not name.startswith("model.combiner.")]
    if missing or unexpected:
        raise RunFolderError(f"{weights} does not fit the configuration: missing {missing[:5]}, unexpected {unexpected[:5]}")
    objective.eval()
    dataset.fit(parts["train"])
    place = build.Placement(accelerator.device, accelerator.process_index, accelerator.num_processes)
    with quiet_loaders():
        loaders = build.build_loaders(cfg, dataset, parts, tokenizer, cfg["seed"], place)
    evaluation = build.build_evaluator(cfg, trust)(objective, loaders, accelerator, split)
    if accelerator.is_main_process:
        out = folder / "evaluate" / name
        out.mkdir(parents=True, exist_ok=True)
        content = (
            evaluation.metrics
            | {
                "checkpoint": weights.name,
                "config_hash": config_hash(cfg, NOT_HASHED),
                "protocol": evaluation.protocol | provenance(cfg, weights.resolve() / MODEL, dataset.fingerprint()),
            }
            | stamps(dataset, cfg["cv"]["selection"])
        )
        write_atomic(out / "metrics.json", strict_json(content, indent=1))
        write_predictions(out, evaluation.predictions, evaluation.tables)
        write_plots(out, [], evaluation.tables, evaluation.protocol, evaluation.metrics, 0, None)
        head, end = ([folder.name.replace("_", " ")], [""]) if fold.number else ([], [])
        for line in [*head, *result_table(evaluation.metrics, evaluation.protocol), f"in {out}", *end]:
            log.info("%s", line)
    return evaluation.metrics
