"""What `mmexpert.submit` does once the arguments are read: encodes a split with a run's best weights and writes the ranked names."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mmexpert import build
from mmexpert.data.cirr import read_cirr
from mmexpert.data.collate import Collate, to_device
from mmexpert.data.records import RecordDataset
from mmexpert.data.sampling import evaluation_draws
from mmexpert.data.workers import BatchSource, Stream, WorkerSettings
from mmexpert.evaluators.composed import check_complete, encode_part
from mmexpert.loading import load
from mmexpert.models.composed import Composed
from mmexpert.run_place import run_place
from mmexpert.submission import faults_of, insist, ranked_names, read_submission, recalls, write_submission
from mmexpert.types import Batch, ConfigError, RunFolderError

log = logging.getLogger(__name__)


def check(paths: Sequence[Path], node: dict[str, Any]) -> None:
    """Reads one file or the two of a submission. Raises DataError listing all faults. node: the data set's."""
    if len(paths) > 2:
        raise ConfigError(f"check= takes one file or two, not {len(paths)}")
    annotations = read_cirr(node["root"], node["split"])
    files = [read_submission(path) for path in paths]
    insist(faults_of(files, annotations))
    log.info("%s: no fault, %d queries", ", ".join(map(str, paths)), len(annotations.queries))
    by_metric = {file.content["metric"]: file.content for file in files}
    if len(by_metric) == 2 and annotations.queries[0].target:
        _log_recalls(recalls((by_metric["recall"], by_metric["recall_subset"]), annotations))


def submit(cfg: dict[str, Any], run: Path, name: str, trust: Sequence[str]) -> list[Path]:
    """Paths of the two files written below RUN/submission. Raises DataError where pictures are missing or the check finds a fault.

    run: also one of its checkpoints, or its model/.
    """
    if cfg["dataset"]["allow_missing"]:
        raise ConfigError("dataset.allow_missing=true drops queries, but the server wants all of them: fetch the pictures")
    dataset = build.build_dataset(cfg, trust)
    (part, annotations), *_ = dataset.annotations.items()
    loaded = load(run, cfg["trainer"]["device"], trust)
    collate = Collate(loaded.tokenizer, dataset.unit_length, dataset.pad_to, dataset.max_length)
    if not isinstance(loaded.model, Composed):
        raise RunFolderError(f"{run}: a {type(loaded.model).__name__} composes no queries: name a run of cir_finetune or cir_combiner")
    pictures = dataset.pictures(part)
    # closed on every way out: a process waits for its loader workers for ever
    with (
        closing(_batches(pictures, collate, cfg["trainer"], loaded.device)) as gallery,
        closing(_batches(dataset, collate, cfg["trainer"], loaded.device)) as queries,
    ):
        encoded = encode_part(loaded.model, gallery, queries, "auto")
    check_complete(encoded, range(len(dataset)), len(pictures))
    order = {record.id: row for row, record in enumerate(dataset.records)}
    rows = torch.tensor([order[query.id] for query in annotations.queries])  # records are sorted by id, queries as in the file
    contents = ranked_names(encoded.query[rows], encoded.pictures, encoded.reference[rows], encoded.members[rows], annotations)
    paths = write_submission(run_place(run, None).folder / "submission", name, contents, annotations)
    log.info("written: %s", ", ".join(map(str, paths)))
    if annotations.queries[0].target:
        _log_recalls(recalls(contents, annotations))
    return paths


def _log_recalls(found: dict[str, float]) -> None:
    log.info("recalls of these files: %s", ", ".join(f"{key} {value:.2f}" for key, value in found.items()))


def _batches(dataset: RecordDataset, collate: Collate, trainer: dict[str, Any], device: torch.device) -> Iterator[Batch]:
    """All rows of a data set in evaluation batches."""
    settings = WorkerSettings(trainer["num_workers"], trainer["prefetch_factor"], False, trainer["loader_timeout_s"])
    draws = evaluation_draws(list(range(len(dataset))), trainer["eval_batch_size"] or trainer["batch_size"], 1, 0)
    stream = Stream(BatchSource(dataset, collate), settings, 0, persistent=False)
    try:
        for batch in stream.batches(draws):
            yield to_device(batch, device)
    finally:
        stream.close()
