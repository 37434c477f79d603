"""The two files of CIRR's test server: ranked names of each query, written only when they pass the check that also reads foreign files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmexpert.data.composed_index import Annotations
from mmexpert.data.parsed_json import parsed_json
from mmexpert.engine.files import write_atomic
from mmexpert.metrics.composed import unit_fp64
from mmexpert.types import DataError

VERSION = "rc2"
LENGTHS = {"recall": 50, "recall_subset": 3}
"""Metric -> names a query."""
FILES = {"recall": "recall_submission", "recall_subset": "recall_subset_submission"}
LIMIT = 5_000_000  # bytes that the server takes, as reported
_ROWS = 512
Content = dict[str, Any]


@dataclass(frozen=True)
class Submitted:
    """A file as it stands: where, its parsed content, its size in bytes."""

    path: Path
    content: Any
    size: int


def ranked_names(
    query: Tensor, gallery: Tensor, reference: Tensor, members: Tensor, annotations: Annotations
) -> tuple[Content, Content]:  # fmt: skip
    """(recall, recall_subset) contents of queries [Nq, D] in the order of annotations.queries; gallery [Ng, D] in the order of its names.

    reference [Nq], members [Nq, 6]: gallery rows. By falling fp64 cosine, ties in gallery order, the reference in neither.
    """
    names = annotations.galleries[""]
    contents = tuple({"version": VERSION, "metric": metric} for metric in LENGTHS)
    wide_query, wide_gallery = unit_fp64(query), unit_fp64(gallery)
    for rows in torch.arange(len(query)).split(_ROWS):
        scores = wide_query[rows] @ wide_gallery.T
        scores.scatter_(1, reference[rows, None], -torch.inf)
        place = torch.empty_like(scores, dtype=torch.long)
        order = scores.sort(dim=1, descending=True, stable=True).indices
        place.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        for i, row in enumerate(rows.tolist()):
            pairid = str(annotations.queries[row].pairid)
            contents[0][pairid] = [names[j] for j in order[i, : min(LENGTHS["recall"], len(names) - 1)].tolist()]
            others = [j for j in members[row].tolist() if j != int(reference[row])]
            others.sort(key=lambda j, i=i: int(place[i, j]))
            contents[1][pairid] = [names[j] for j in others[: LENGTHS["recall_subset"]]]
    return contents


def write_submission(folder: Path, name: str, contents: tuple[Content, Content], annotations: Annotations) -> list[Path]:
    """Checks both contents and writes FOLDER/recall_submission_NAME.json and FOLDER/recall_subset_submission_NAME.json.

    Raises DataError with all faults; then nothing is written.
    """
    texts = {metric: json.dumps(content, separators=(",", ":")) for metric, content in zip(LENGTHS, contents, strict=True)}
    paths = {metric: folder / f"{FILES[metric]}_{name}.json" for metric in LENGTHS}
    submitted = [Submitted(paths[metric], json.loads(text), len(text.encode())) for metric, text in texts.items()]
    insist(faults_of(submitted, annotations))
    folder.mkdir(parents=True, exist_ok=True)
    for metric, path in paths.items():
        write_atomic(path, texts[metric])
    return list(paths.values())


def read_submission(path: Path) -> Submitted:
    """A file that is there. Raises DataError where it is no JSON or has a key twice, which JSON readers would drop in silence."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object. Raises DataError for a key that is there twice."""
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise DataError(f"{path}: the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
        return dict(pairs)

    try:
        raw = path.read_bytes()
        return Submitted(path, parsed_json(raw.decode("utf-8-sig"), unique), len(raw))
    except FileNotFoundError as error:
        raise DataError(f"check={path}: there is no such file") from error
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})") from error


def insist(faults: Sequence[str]) -> None:
    """Raises DataError listing all faults where there is one."""
    if faults:
        lines = "\n  ".join(faults)
        raise DataError(f"the submission has {len(faults)} fault{'s' * (len(faults) > 1)}, nothing has been written:\n  {lines}")


def faults_of(files: Sequence[Submitted], annotations: Annotations) -> list[str]:
    """All faults of one file, or of the two of a submission, whose orders are compared too."""
    found: list[str] = []
    by_metric: dict[str, Submitted] = {}
    for file in files:
        if not isinstance(file.content, dict):
            found.append(f"{file.path}: a {type(file.content).__name__}, expected a dict")
            continue
        metric = file.content.get("metric")
        if isinstance(metric, str) and metric in by_metric:
            found.append(f"{file.path}: metric {metric!r}, as in {by_metric[metric].path}; expected one of each")
        if isinstance(metric, str):
            by_metric.setdefault(metric, file)
        found += _file_faults(file, annotations)
    if set(LENGTHS) <= set(by_metric):
        found += _order_faults(by_metric["recall_subset"], by_metric["recall"])
    return found


def _file_faults(file: Submitted, annotations: Annotations) -> list[str]:
    found, content = [], file.content
    if file.size >= LIMIT:
        found.append(f"{file.path}: {file.size} bytes, the server takes less than {LIMIT}")
    if content.get("version") != VERSION:
        found.append(f"{file.path}: version is {content.get('version')!r}, expected {VERSION!r}")
    metric = content.get("metric")
    if not isinstance(metric, str) or metric not in LENGTHS:
        found.append(f"{file.path}: metric is {metric!r}, expected {' or '.join(map(repr, LENGTHS))}")
        metric = "recall_subset" if FILES["recall_subset"] in file.path.name else "recall"  # so that its rows are looked at too
    queries = {str(query.pairid): query for query in annotations.queries}
    rows = {key: value for key, value in content.items() if key not in ("version", "metric")}
    found += [f"{file.path}: pairid {key} of the captions file is missing" for key in queries if key not in rows]
    found += [f"{file.path}: the key {key!r} is no pairid of the captions file" for key in rows if key not in queries]
    names = set(annotations.names)
    for key, row in rows.items():
        if key in queries:
            found += [f"{file.path}, pairid {key}: {fault}" for fault in _row_faults(row, queries[key], metric, names)]
    return found


def _row_faults(row: Any, query: Any, metric: str, names: set[str]) -> list[str]:
    if not isinstance(row, list) or any(not isinstance(name, str) for name in row):
        return [f"{str(row)[:80]} is no list of names"]
    found = []
    if len(row) != LENGTHS[metric]:
        found.append(f"{len(row)} names, expected {LENGTHS[metric]}")
    found += [f"{name!r} is there more than once" for name in dict.fromkeys(row) if row.count(name) > 1]
    found += [f"{name!r} is not in the split file" for name in dict.fromkeys(row) if name not in names]
    if query.reference in row:
        found.append(f"the reference {query.reference!r} is in the list")
    if metric == "recall_subset":
        found += [f"{name!r} is no member of the group" for name in dict.fromkeys(row) if name in names and name not in query.members]
    return found


def _order_faults(subset: Submitted, recall: Submitted) -> list[str]:
    """Pairids whose group list is in another order than the names have in the recall list."""
    found = []
    for key, row in subset.content.items():
        whole = recall.content.get(key)
        if key in ("version", "metric") or not isinstance(row, list) or not isinstance(whole, list):
            continue
        places = [whole.index(name) for name in row if name in whole]
        behind = [name in whole for name in row]
        if places != sorted(places) or behind != sorted(behind, reverse=True):
            found.append(f"{subset.path}, pairid {key}: the order of {', '.join(map(str, row))} differs from that in {recall.path}")
    return found


def recalls(contents: Sequence[Content], annotations: Annotations) -> dict[str, float]:
    """R@K and Rs@K in percent of the lists, where the targets are known: they equal what `evaluate` says."""
    found: dict[str, float] = {}
    for content, name, limits in ((contents[0], "R", (1, 5, 10, 50)), (contents[1], "Rs", (1, 2, 3))):
        for k in limits:
            hits = sum(query.target in content[str(query.pairid)][:k] for query in annotations.queries)
            found |= {f"{name}@{k}": 100 * hits / len(annotations.queries)}
    return found
