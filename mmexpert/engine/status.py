"""status.json: how a run, or a fold of it, stands; and the hash that says whether two configurations are one run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mmexpert.engine.files import plain, strict_json, write_atomic
from mmexpert.engine.secrets import mask_text
from mmexpert.types import MmexpertError, ProcessError, RunFolderError

ABSENT = "(absent)"
"""Stands in config_difference for a key that one of the two does not have."""
STATES = ("running", "stopped", "done", "failed")


@dataclass
class Status:
    """state: running | stopped | done | failed. stopped: epochs | early | signal, None while it runs. epoch, step: completed.

    best_epoch: from 1. seconds: over all sittings. resumes: [{step, versions, processes, exact}], one for each continuation.
    error: {type, message} of a failed run.
    """

    state: str
    config_hash: str
    fingerprint: str | None = None
    stopped: str | None = None
    exit_code: int | None = None
    epoch: int = 0
    best_epoch: int | None = None
    step: int = 0
    seconds: float = 0.0
    resumes: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, str] | None = None


def read_status(folder: Path) -> Status | None:
    """The status of the run in a folder, None where there is none. Raises RunFolderError for a file that is not one."""
    path = Path(folder) / "status.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        status = Status(**{f.name: stored[f.name] for f in fields(Status) if f.name in stored})
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is not a status file ({error}); resume=never starts afresh and keeps this folder") from error
    if status.state not in STATES:
        raise RunFolderError(f"{path}: state {status.state!r}, expected one of {', '.join(STATES)}")
    return status


def write_status(folder: Path, status: Status) -> None:
    """Replaces status.json atomically. Raises StorageError."""
    write_atomic(Path(folder) / "status.json", strict_json(asdict(status), indent=2))


def trained(folder: Path) -> bool:
    """Whether a run folder, or a fold of it, holds a checkpoint: only then is there something that another config or data would spoil."""
    return any(any(Path(folder).glob(pattern)) for pattern in ("checkpoints/*_*", "fold_*/checkpoints/*_*"))


def note_end(folder: Path, digest: str, error: BaseException) -> None:
    """status.json of a run, or a fold of it, that was stopped (SystemExit, KeyboardInterrupt) or failed (any other) outside its loop,
    whatever it was before. digest: its config hash."""
    status = read_status(folder) or Status("failed", digest)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        status.state, status.stopped, status.exit_code, status.error = "stopped", "signal", getattr(error, "code", 130), None
    else:
        status.state, status.exit_code, status.error = "failed", getattr(error, "exit_code", 1), told_error(error)
    write_status(folder, status)


def told_error(error: BaseException) -> dict[str, str]:
    """{type, message} for status.json, without secrets."""
    return {"type": type(error).__name__, "message": mask_text(str(error))[:2000]}


def child_error(folder: Path, what: str, code: int, log_file: Path) -> MmexpertError:
    """The error of a run in a process of its own: the class of its exit code, what its status says, where its log lies.

    code: as subprocess has it, below 0 the number of a signal.
    """
    kind = next((kind for kind in MmexpertError.__subclasses__() if kind.exit_code == code), ProcessError)
    status = read_status(folder)
    told = (status.error or {}).get("message") if status is not None and status.state == "failed" else None
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return kind(f"{what} {how}{': ' + told if told else ''}; see {log_file}")


def config_hash(config: dict[str, Any], ignored: Sequence[str]) -> str:
    """Hex SHA-256 of a resolved configuration as JSON with sorted keys, without the ignored keys and all below them."""
    kept = _without(plain(config), ignored)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def config_difference(stored: dict[str, Any], now: dict[str, Any], ignored: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """(dotted key, stored, now) of every value that differs, sorted by key, without the ignored keys; ABSENT for what is not there."""
    before, after = (flat(_without(plain(config), ignored)) for config in (stored, now))
    rows = [(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted(before.keys() | after.keys())]
    return [row for row in rows if json.dumps(row[1]) != json.dumps(row[2])]  # as the hash sees them: 1 and 1.0 differ


def _without(config: dict[str, Any], ignored: Sequence[str], prefix: str = "") -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path not in ignored:
            kept[key] = _without(value, ignored, f"{path}.") if isinstance(value, dict) else value
    return kept


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted key, in their order; lists and empty dicts are values."""
    leaves = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves
