"""Files that are whole or not there: atomic writes, strict JSON, checksums, cells of CSV files. Imports the standard library only."""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmexpert.types import StorageError

_BLOCK = 2**20  # bytes read at once for a checksum
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces a file in one step: a reader, or the next run after a kill, sees the old bytes or the new ones. Raises StorageError."""
    content = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: {len(content)} bytes were not written ({error}); free space or check the folder's rights") from error


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON with keys in their own order and a newline at the end; NaN and infinities become null, which every parser reads."""
    return json.dumps(plain(value, finite=True), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any, finite: bool = False, where: str = "") -> Any:
    """The same made of dict, list, tuple, str, int, float, bool and None (tensors stay); NumPy scalars and paths are turned into these.

    finite: NaN and infinities become None. torch.save takes NumPy scalars, but torch.load(weights_only=True) refuses them.
    Raises TypeError naming the place of anything else.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # numpy.float64 is one too
        return None if finite and not math.isfinite(value) else float(value)
    if isinstance(value, (str, os.PathLike)):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(entry, finite, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [plain(entry, finite, f"{where}[{i}]") for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    if hasattr(value, "detach") and not finite:  # a tensor; recognised without importing torch
        return value.detach()
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item(), finite, where)
    raise TypeError(f"{where.lstrip('.') or 'value'} is a {type(value).__name__}, which a file of this run may not hold")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Returns when a file's bytes, or a folder's entries, are on the disk: a rename survives a power cut only after the folder's."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def csv_cell(value: Any) -> Any:
    """What a CSV cell holds: text that a spreadsheet would run as a formula gets an apostrophe, numbers never; None is empty."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file of rows by column name; columns in the order in which they first appear, cells that a row lacks are empty."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    writer.writerows([csv_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()
