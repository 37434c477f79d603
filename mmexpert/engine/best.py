"""What stands beside the newest checkpoints: the best epochs as hard links, links for readers, and the removal of the rest."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmexpert.engine.files import fsync_path
from mmexpert.engine.step_folder import step_folders, step_name

log = logging.getLogger(__name__)
_LINKS_REFUSED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
Best = dict[str, list[dict[str, Any]]]


def reconcile(folder: Path, best: Best, keep_last: int, passed: Callable[[str], None]) -> None:
    """Brings checkpoints/ in line with the best lists and the newest keep_last steps. Every action may be repeated after a kill.

    passed: told "links" and "prune" as these are done. Raises OSError.
    """
    wanted = {entry["folder"]: entry["step"] for entries in best.values() for entry in entries}
    for name, step in wanted.items():
        if not (folder / name).exists():
            _add_epoch(folder, name, step)
    steps = step_folders(folder)
    _swap_links(folder, steps[-1].name if steps else None, best)
    passed("links")
    for path in [*steps[:-keep_last], *(path for path in folder.glob("epoch_*") if path.name not in wanted)]:
        discard(path)
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    fsync_path(folder)
    passed("prune")


def discard(path: Path) -> None:
    """Removes a folder; under another name first, so that a kill leaves no half of a checkpoint under its own."""
    temporary = path.with_name(f".tmp-gone-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    path.rename(temporary)
    shutil.rmtree(temporary)


def _add_epoch(folder: Path, name: str, step: int) -> None:
    source = folder / step_name(step)
    if not source.is_dir():
        log.warning("%s is among the best, but neither it nor %s is there any more", folder / name, source.name)
        return
    temporary = folder / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in source.iterdir():
        _link_or_copy(path, temporary / path.name)
    fsync_path(temporary)
    temporary.rename(folder / name)
    fsync_path(folder)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _LINKS_REFUSED:
            raise
        shutil.copyfile(source, target)  # exFAT, some network shares
        fsync_path(target)


def link_names(monitors: Sequence[str]) -> dict[str, str]:
    """Link of each monitored key: best for the first, best_<metric> for the others, in characters that every file system takes."""
    names = {}
    for key in monitors:
        metric = re.sub(r"[^\w.@+-]", "_", key.split("/", 1)[-1])
        names[key] = f"best_{metric}" if names else "best"
    return names


def _swap_links(folder: Path, last: str | None, best: Best) -> None:
    links = {name: best[key][0]["folder"] for key, name in link_names(list(best)).items() if best[key]}
    if last is not None:
        links["last"] = last
    for name, target in links.items():
        path, temporary = folder / name, folder / f".tmp-{name}"
        if path.is_symlink() and os.readlink(path) == target:
            continue
        temporary.unlink(missing_ok=True)
        try:
            os.symlink(target, temporary)
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in _LINKS_REFUSED:
                raise
            log.warning("%s: this file system has no links; the folder itself is %s", path, target)
