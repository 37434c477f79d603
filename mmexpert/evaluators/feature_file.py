"""Features that another program has made, as one NPZ file, scored by the protocol of FashionIQ or CIRR. Nothing is unpickled."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmexpert.data.arrays import ArrayFile
from mmexpert.data.findings import DataFault
from mmexpert.metrics.composed import (
    CIRR_K,
    FASHIONIQ_K,
    ComposedRanks,
    cirr_metrics,
    combined,
    group_ranks,
    plain_metrics,
    rank_targets,
    three_means,
)
from mmexpert.types import ConfigError, DataError

log = logging.getLogger(__name__)
_GROUP = 6
_NEEDED = ("gallery", "gallery_names", "references", "targets", "text_features")
_KNOWN = (*_NEEDED, "members", "reference_features", "pairids", "texts")


@dataclass(frozen=True)
class FeatureFile:
    """The arrays of a file, checked; rows of the gallery in place of names."""

    gallery: Tensor  # fp32 [Ng, D]
    text: Tensor  # fp32 [Nq, D]
    reference_features: Tensor  # fp32 [Nq, D]
    reference: Tensor  # int64 [Nq]
    target: Tensor  # int64 [Nq]
    members: Tensor | None  # int64 [Nq, 6]
    own_references: bool  # reference features of their own, not gallery rows


def read_features(path: Path, protocol: str) -> FeatureFile:
    """Reads and checks a file. Raises DataError naming file and array, what was found and what is expected."""
    arrays = _arrays(path)
    missing = [name for name in (*_NEEDED, *(("members",) if protocol == "cirr" else ())) if name not in arrays]
    if missing:
        raise DataError(
            f"{path}: no array {missing[0]!r}; it holds {', '.join(arrays)}; protocol {protocol} needs {', '.join(missing)} too"
        )
    gallery, names = _features(path, arrays, "gallery", None), _strings(path, arrays, "gallery_names")
    if len(names) != len(gallery):
        raise DataError(f"{path}: gallery has {len(gallery)} rows, gallery_names {len(names)}: one name a row")
    row = {name: i for i, name in enumerate(names.tolist())}
    if len(row) < len(names):
        values, counts = np.unique(names, return_counts=True)
        raise DataError(f"{path}: gallery_names holds {str(values[counts > 1][0])!r} more than once: one row a picture")
    references, targets = _strings(path, arrays, "references"), _strings(path, arrays, "targets")
    shape = (len(references), gallery.shape[1])
    text = _features(path, arrays, "text_features", shape)
    if len(targets) != len(references) or not len(references):
        raise DataError(f"{path}: references has {len(references)} names, targets {len(targets)}: one of each a query, at least one query")
    found = {name: _rows(path, name, array, row) for name, array in (("references", references), ("targets", targets))}
    if same := int((found["references"] == found["targets"]).sum()):
        log.warning("%s: %d of %d queries have their reference as target: nothing is asked for there", path, same, len(targets))
    members = _members(path, arrays, found, row) if protocol == "cirr" else None
    _check_extras(path, arrays, len(references))
    own = "reference_features" in arrays
    features = _features(path, arrays, "reference_features", shape) if own else gallery[found["references"]]
    return FeatureFile(gallery, text, features, found["references"], found["targets"], members, own)


def score_features(file: FeatureFile, protocol: str, combine: str, ties: str) -> tuple[dict[str, float], dict[str, Any]]:
    """(flat figures: R@K and Rs@K in percent, average, three means, hits, queries, gallery, ranks; protocol) of a file's queries."""
    query = combined(combine, file.reference_features, file.text)
    excluded = file.reference if protocol == "cirr" else None
    ranking = rank_targets(query, file.gallery, file.target, excluded, ties)
    groups = None
    if file.members is not None:
        groups = group_ranks(query, file.gallery, file.target, file.reference, file.members, ties)
    ranked = ComposedRanks(ranking, len(file.gallery), groups)
    if protocol == "cirr":
        metrics = cirr_metrics(ranked)
    else:
        metrics = plain_metrics(ranked, FASHIONIQ_K)
        values = [metrics[f"R@{k}"] for k in FASHIONIQ_K]
        metrics |= {"average": sum(values) / len(values)} | three_means(values)
    others = len(file.gallery) - (excluded is not None)
    return metrics, {
        "protocol": protocol,
        "chance": {f"R@{k}": 100 * min(1.0, k / others) for k in (CIRR_K if protocol == "cirr" else FASHIONIQ_K)},
        "reference": "in the gallery" if excluded is None else "left out of the gallery",
        "reference_features": "of their own" if file.own_references else "gallery rows",
        "combiner": combine,
        "ties": ties,
        "precision": "fp32 scores, fp64 where two are within 2e-6",
        "k": list(CIRR_K if protocol == "cirr" else FASHIONIQ_K),
        "queries": len(file.target),
        "gallery": len(file.gallery),
        "dim": file.gallery.shape[1],
        "partial": "unknown",
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name. Headers are read first: what a file declares is compared with what it holds before memory is asked for."""
    advice = f"write it with numpy.savez, with {', '.join(_NEEDED)}; names as unicode arrays (dtype U), features as floats"
    if not path.is_file():
        raise DataError(f"features={path}: there is no such file")
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: no readable .npz file; {advice}")
    try:
        names = ArrayFile(path, "", path.stem).members()
        unknown = sorted(set(names) - set(_KNOWN))
        if unknown:
            raise DataError(f"{path}: unknown array {unknown[0]!r}; there are {', '.join(_KNOWN)}")
        return {name: ArrayFile(path, name, path.stem).array() for name in names}
    except DataFault as fault:
        raise DataError(f"{fault}; nothing is unpickled: {advice}") from fault


def _features(path: Path, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, int] | None) -> Tensor:
    """An array of features in fp32; shape: the one expected, None = any [N, D]."""
    array = arrays[name]
    wanted = "[N, D]" if shape is None else list(shape)
    if array.ndim != 2 or not array.size or (shape is not None and array.shape != shape):
        raise DataError(f"{path}: {name} is {list(array.shape)}, expected {wanted}")
    if array.dtype.kind != "f":
        raise DataError(f"{path}: {name} has dtype {array.dtype}, expected floats")
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    good = np.isfinite(narrow).all(1) & narrow.any(1)
    if not good.all():
        rows = np.flatnonzero(~good)
        raise DataError(f"{path}: {len(rows)} rows of {name} are zero or not finite in fp32, the first is row {rows[0]}")
    return torch.from_numpy(narrow)


def _strings(path: Path, arrays: dict[str, np.ndarray], name: str, width: int | None = None) -> np.ndarray:
    array = arrays[name]
    if array.dtype.kind != "U":
        raise DataError(f"{path}: {name} has dtype {array.dtype}, expected a unicode array (dtype U)")
    if array.ndim != (1 if width is None else 2) or (width is not None and array.shape[1] != width):
        raise DataError(f"{path}: {name} is {list(array.shape)}, expected {'[N]' if width is None else f'[Nq, {width}]'}")
    return array


def _rows(path: Path, name: str, names: np.ndarray, row: dict[str, int]) -> Tensor:
    """Gallery rows of names, in their shape."""
    strange = [value for value in names.ravel().tolist() if value not in row]
    if strange:
        raise DataError(f"{path}: {len(strange)} names of {name} are not in gallery_names, the first is {strange[0]!r}")
    return torch.tensor([row[value] for value in names.ravel().tolist()], dtype=torch.long).reshape(names.shape)


def _members(path: Path, arrays: dict[str, np.ndarray], found: dict[str, Tensor], row: dict[str, int]) -> Tensor:
    members = _rows(path, "members", _strings(path, arrays, "members", _GROUP), row)
    if len(members) != len(found["references"]):
        raise DataError(f"{path}: members has {len(members)} rows, references {len(found['references'])}: one group a query")
    for number, group in enumerate(members.tolist()):
        if len(set(group)) < _GROUP:
            raise DataError(f"{path}: members of query {number} are not six distinct names")
        for role in ("references", "targets"):
            if int(found[role][number]) not in group:
                raise DataError(f"{path}: members of query {number} lack its {role[:-1]}")
    return members


def _check_extras(path: Path, arrays: dict[str, np.ndarray], queries: int) -> None:
    for name in ("pairids", "texts"):
        if name in arrays and arrays[name].shape != (queries,):
            raise DataError(f"{path}: {name} is {list(arrays[name].shape)}, expected [{queries}]")
    if "pairids" in arrays and (arrays["pairids"].dtype.kind not in "iu" or len(np.unique(arrays["pairids"])) < queries):
        raise DataError(f"{path}: pairids must be distinct integers")
    if "texts" in arrays:
        _strings(path, arrays, "texts")


def check_protocol(protocol: str) -> str:
    """The protocol of a feature file, which can not be told from its arrays. Raises ConfigError for auto."""
    if protocol == "auto":
        raise ConfigError("features=FILE: say how it is scored, evaluator.protocol=fashioniq or evaluator.protocol=cirr")
    return protocol
