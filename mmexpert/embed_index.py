"""An index: features of many inputs with their names, whole in a folder or not there; and the rows nearest to a query."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmexpert.data.views import view_names
from mmexpert.embed_inputs import Inputs, read_clip
from mmexpert.engine.files import csv_text, strict_json, write_atomic
from mmexpert.types import ConfigError, DataError, RunFolderError, StorageError

BATCH = 64  # inputs read and encoded at once
_UNREADABLE = (DataError, OSError, ValueError, SyntaxError)  # SyntaxError: Pillow's for a damaged PNG
Failed = list[dict[str, str]]  # file, reason


def embed(model: Any, inputs: Inputs, on_error: str) -> tuple[Tensor, list[str], Failed]:
    """Features fp32 [N, D] of length 1 in the order of the names, the names, and what could not be read.

    Raises DataError naming the input that can not be read, unless on_error is skip; and where none can.
    """
    parts, names, failed = [], [], []
    for start in range(0, len(inputs.names), BATCH):
        batch = inputs.names[start : start + BATCH]
        try:
            rows, readable = _encoded(model, inputs, batch), batch
        except _UNREADABLE:  # one of them: which?
            rows, readable = _one_by_one(model, inputs, batch, failed, on_error)
        parts.append(rows)
        names += readable
    if not names:
        raise DataError(f"{inputs.root}: none of {len(inputs.names)} inputs can be read, the first: {failed[0]['reason']}")
    return torch.cat(parts), names, failed


def _encoded(model: Any, inputs: Inputs, names: list[str]) -> Tensor:
    features = getattr(model, f"encode_{inputs.role}")(inputs.read(names))
    if not bool(torch.isfinite(features).all()):
        raise DataError("its features are not finite")
    return torch.nn.functional.normalize(features.float(), dim=1)


def _one_by_one(model: Any, inputs: Inputs, batch: list[str], failed: Failed, on_error: str) -> tuple[Tensor, list[str]]:
    parts, names = [torch.zeros(0, model.dim)], []
    for name in batch:
        try:
            parts.append(_encoded(model, inputs, [name]))
            names.append(name)
        except _UNREADABLE as error:
            if on_error == "stop":
                text = told(inputs.where(name), error)
                remedy = ", or" if "; " in text else "; repair or remove it, or"  # what a fault of a file advises comes first
                raise DataError(f"{text}{remedy} leave it out with on_error=skip") from error
            failed.append({"file": name, "reason": f"{type(error).__name__}: {told(inputs.where(name), error)}"})
    return torch.cat(parts), names


def told(where: str, error: Exception) -> str:
    """What is wrong with an input, named once: errors of files name them already, some twice."""
    text = str(error).replace(f" (record {where})", "").replace(f" {where!r}", "")
    return text if where in text else f"{where}: {text}"


def write_index(place: Path, features: Tensor, names: list[str], failed: Failed, inputs: Inputs, model: Any, run: Path) -> Path:
    """Writes features.npy, names.json, meta.json and, where something failed, failed.csv; renamed into place when complete."""
    meta = {
        "role": inputs.role,
        "fingerprint": model.fingerprint,
        "count": len(names),
        "dim": features.shape[1],
        "root": str(inputs.root.resolve()),
        "failed": len(failed),
        "run": str(run.resolve()),
    }
    with replaced(place) as folder:
        np.save(folder / "features.npy", features.numpy().astype(np.float32))
        write_atomic(folder / "names.json", strict_json(names, indent=0))
        write_atomic(folder / "meta.json", strict_json(meta, indent=1))
        if failed:
            write_atomic(folder / "failed.csv", csv_text(failed))
    return place


@contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """A new folder beside place, which takes its name at the end; after an error place is as it was. Raises StorageError."""
    temporary, old = (place.with_name(f".{kind}-{place.name}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            os.rename(place, old)
        os.rename(temporary, place)
    except OSError as error:
        raise StorageError(f"{place}: can not be written ({error}); free space or check the folder's rights") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Index:
    """features [N, D] fp32 of length 1; names [N]; meta as embed wrote it."""

    features: Tensor
    names: list[str]
    meta: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Raises RunFolderError where the folder holds no whole index."""
        try:
            features = torch.from_numpy(np.load(folder / "features.npy", allow_pickle=False))
            names, meta = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("names.json", "meta.json"))
            shape = (meta["count"], meta["dim"])
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            there = sorted(str(path.parent) for path in Path("outputs/embed").glob("*/meta.json"))[:5]
            raise RunFolderError(
                f"{folder}: no index ({error}); mmexpert.embed writes one{', there are ' * bool(there)}{', '.join(there)}"
            ) from error
        if tuple(features.shape) != shape or len(names) != shape[0]:
            raise RunFolderError(
                f"{folder}: features {tuple(features.shape)}, {len(names)} names and meta.json {shape} differ: embed again"
            )
        return cls(features.float(), names, meta)

    def check_model(self, model: Any) -> None:
        """Raises RunFolderError where the index was made by other weights."""
        if model.fingerprint != self.meta["fingerprint"]:
            raise RunFolderError(
                f"the index was made by the model {self.meta['fingerprint'][:12]} of {self.meta['run']}, and this is "
                f"{model.fingerprint[:12]}: "
                "their features do not compare; embed again, or name the right model with run="
            )

    def row_named(self, role: str, value: str) -> int | None:
        """The row that a query names as tables print it; None for another role, and where a file or clip of that name lies here."""
        path = Path(value)
        views = path.parent.iterdir() if role == "radar" and path.parent.is_dir() else ()
        here = path.exists() or any((view / f"{path.name}.npy").exists() for view in views)
        return None if here or role != self.meta["role"] or value not in self.names else self.names.index(value)

    def nearest(self, query: Tensor, k: int) -> list[dict[str, Any]]:
        """The k rows {rank, name, score} with the largest cosine with query [1, D], of equals the first name; all where k > N."""
        scores = self.features @ torch.nn.functional.normalize(query.float(), dim=1)[0]
        order = scores.sort(descending=True, stable=True).indices[:k].tolist()
        return [{"rank": rank, "name": self.names[row], "score": float(scores[row])} for rank, row in enumerate(order, 1)]


def query_features(model: Any, query: dict[str, str]) -> Tensor:
    """Features [1, D] of a query {role: text or path}; image and text together are composed. Raises ConfigError, DataError."""
    if len(query) == 2:
        if not hasattr(model, "compose"):
            raise ConfigError("text= and image= together need a composed model; give one of them")
        call, given = lambda: model.compose([Path(query["image"])], [query["text"]]), "image"
    else:
        ((given, value),) = query.items()
        if given not in [name for name, node in model.config["encoder"].items() if node]:
            raise ConfigError(f"this model has no {given} tower; it encodes {', '.join(model.roles)}")
        call = lambda: getattr(model, f"encode_{given}")([_read(model, given, value)])  # noqa: E731
    try:
        return call()
    except TypeError as error:
        raise ConfigError(f"{' and '.join(query)}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{query[given]}: {error}") from error


def _read(model: Any, role: str, value: str) -> Any:
    if role == "text":
        return value
    return Path(value) if role == "image" else read_clip(Path(value), view_names(model.config["dataset"]["views"]))
