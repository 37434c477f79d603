"""Folders of computed data, named by what they were computed from; made whole or not at all, verified before use."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mmexpert.types import StorageError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def content_name(prefix: str, identity: dict[str, Any]) -> str:
    """prefix-<16 hex of BLAKE2b over the canonical JSON of what the content depends on>."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{prefix}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, filled by make(temporary folder) where it is absent or damaged.

    One process makes it while the others wait for a lock; a killed maker leaves only a `.tmp-` folder that nobody reads. A file whose
    sha256 is not the manifest's is named in a warning and the folder is made again. Raises StorageError where writing fails.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{folder.name}.lock", "w") as lock:
            _take(lock, folder)
            fault = damage(folder) if folder.exists() else "absent"
            if fault and folder.exists():
                log.warning("%s: %s; it is made again", folder, fault)
                shutil.rmtree(folder)
            if fault:
                _fill(folder, make)
    except OSError as error:
        raise StorageError(f"{folder}: {error}; free space, or choose another dataset.cache_dir") from error
    return folder


def _take(lock: TextIO, folder: Path) -> None:
    """Waits for the lock, and says so. lockf: the kernel frees it at death, and forked workers that outlive their owner do not keep it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process that makes %s", folder)
        fcntl.lockf(lock, fcntl.LOCK_EX)


def damage(folder: Path) -> str:
    """What is wrong with a cache folder, by file name; empty where every file is as it was written."""
    try:
        files = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return f"{MANIFEST} can not be read ({error})"
    for name, digest in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            return f"{name} is missing"
        if file_digest(path) != digest:
            return f"{name} has another sha256 than when it was written"
    return ""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fill(folder: Path, make: Callable[[Path], None]) -> None:
    for old in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(old, ignore_errors=True)  # of a killed maker: we hold the lock; a worker that outlives it may still write there
    temporary = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        _write(temporary, make)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a full disk, a damaged source, a stop: nothing half made stays
    _sync(folder.parent)  # the rename itself is on the disk


def _write(temporary: Path, make: Callable[[Path], None]) -> None:
    make(temporary)
    files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
