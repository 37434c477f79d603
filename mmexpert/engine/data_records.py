"""The records that a run was begun with, one short line each, so that a resume on other data can name what changed."""

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path

from mmexpert.engine.files import write_atomic
from mmexpert.engine.status import trained
from mmexpert.types import RunFolderError

NAME = "data_records.txt.gz"
_NAMED = 10


def keep_records(folder: Path, fingerprint: str, lines: Sequence[str]) -> None:
    """Writes the file at a run's start, and compares it ever after. lines: RecordDataset.fingerprint_lines().

    Raises RunFolderError with the first ten changed, new and missing records where something has been trained on other data.
    """
    path = folder / NAME
    now = digests(lines)
    before, rows = _read(path)
    if before == fingerprint:
        return
    if before is not None and trained(folder):
        raise RunFolderError(
            f"{folder}: the data has changed since the run began: {difference(rows, now)}. Put it back, "
            "choose another name=, or resume=never"
        )
    text = "\n".join([fingerprint, *(f"{digest}\t{name}" for name, digest in now.items())]) + "\n"
    write_atomic(path, gzip.compress(text.encode(), mtime=0))


def digests(lines: Sequence[str]) -> dict[str, str]:
    """16 hex of SHA-256 of each line by its first field, the record's id; further lines of one id get a number."""
    found: dict[str, str] = {}
    for line in lines:
        name = repr(line.split("\t", 1)[0][:200])
        while name in found:
            name += "'"
        found[name] = hashlib.sha256(line.encode()).hexdigest()[:16]
    return found


def difference(before: dict[str, str], now: dict[str, str]) -> str:
    """`2 changed ('a', 'b'); 1 new ('c')`: the first ten of each kind."""
    kinds = {
        "changed": [name for name, digest in now.items() if before.get(name, digest) != digest],
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
    }
    told = [f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})" for kind, names in kinds.items() if names]
    return "; ".join(told) or "its order or parameters"


def _read(path: Path) -> tuple[str | None, dict[str, str]]:
    """(fingerprint, digests) as stored; (None, {}) where there is no such file, or none that can be read."""
    try:
        first, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError):
        return None, {}
    return first, {name: digest for digest, _, name in (row.partition("\t") for row in rows)}
