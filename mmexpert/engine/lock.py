"""One writer per run folder: a lock that the kernel frees when its owner dies, however it dies."""

import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from mmexpert.types import RunFolderError, StorageError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems without POSIX locks
_TAKEN = (errno.EACCES, errno.EAGAIN)
_held: dict[tuple[int, str], dict[str, Any]] = {}  # (pid, file) -> owner; lockf lets one process lock twice


class RunLock:
    """Holds `.lock` (pid, host, start) of a folder by fcntl.lockf, as a context manager or by acquire and release.

    lockf and not flock: loader workers that outlive a killed owner would keep a flock. The owner never opens the file a second time:
    closing any descriptor of it would drop the lock. Raises RunFolderError naming the holder, StorageError where nothing can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder).resolve() / ".lock"
        self._exclusive = self.path.with_name(".lock-exclusive")  # where the file system has no locks
        self._descriptor: int | None = None
        self._owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": datetime.now().astimezone().isoformat(timespec="seconds")}

    def acquire(self) -> "RunLock":
        """Takes the lock or raises."""
        key = (os.getpid(), str(self.path))
        if key in _held:
            raise RunFolderError(_taken(self.path.parent, _held[key]))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._lock()
        except OSError as error:
            self._close()
            raise StorageError(f"{self.path}: {error.strerror}; the run needs a folder that it can write to") from error
        _held[key] = self._owner
        return self

    def release(self) -> None:
        """Gives the lock back; the file stays, since removing it would let two later runs each lock a file of that name."""
        if self._descriptor is not None:
            _held.pop((os.getpid(), str(self.path)), None)
            self._close()
            self._exclusive.unlink(missing_ok=True)

    def __enter__(self) -> "RunLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _lock(self) -> None:
        for attempt in range(3):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._create_exclusively()
                    break
                if error.errno not in _TAKEN:
                    raise
                if attempt == 2:
                    owner = self._read()
                    self._close()
                    raise RunFolderError(_taken(self.path.parent, owner)) from error
                time.sleep(0.05)  # holder() of another process locks for an instant; the owner may not have written its name yet
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(self._owner).encode(), 0)
        os.fsync(self._descriptor)

    def _create_exclusively(self) -> None:
        """The same promise without locks: a file that only one can create, taken over from a dead process of this host."""
        for _ in range(2):
            try:
                descriptor = os.open(self._exclusive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                owner = _parse(self._exclusive.read_bytes())
                if owner.get("host") != self._owner["host"] or _alive(owner.get("pid")):
                    self._close()
                    raise RunFolderError(_taken(self.path.parent, owner)) from None
                self._exclusive.unlink(missing_ok=True)
                continue
            with open(descriptor, "wb") as file:
                file.write(json.dumps(self._owner).encode())
            return
        raise RunFolderError(f"{self._exclusive}: another run took it at the same moment; try again")

    def _read(self) -> dict[str, Any]:
        return _parse(os.pread(self._descriptor, 4096, 0))

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder(folder: Path) -> dict[str, Any] | None:
    """{pid, host, start} of the process that holds a folder's lock, None where nobody does. For readers such as `cv status`."""
    path = Path(folder).resolve() / ".lock"
    if own := _held.get((os.getpid(), str(path))):
        return own
    if not path.exists():
        return None
    with open(path, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                return _parse(file.read(4096))
            exclusive = path.with_name(".lock-exclusive")
            return _parse(exclusive.read_bytes()) if exclusive.exists() else None
    return None


def _parse(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return True  # an unreadable owner is left alone
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _taken(folder: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')!r}, started {owner.get('start', '?')!r}"
    return f"{folder} is in use by {who}. Wait for it, stop it, or choose another name="
