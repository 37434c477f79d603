"""Which checkpoints stay: hard-linked best ones, the newest few, and links for readers. Every action may be repeated after a kill."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def reconcile(folder: Path, best: dict[str, list[dict[str, Any]]], keep_last: int, phase: Callable[[str], None] = lambda _: None) -> None:
    """Makes a checkpoints/ folder what the best lists say; also run at every start."""
    for old in folder.glob(".old-step_*"):
        whole = folder / old.name.removeprefix(".old-")
        if whole.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, whole)
    for entries in best.values():
        for entry in entries:
            source, target = folder / f"step_{entry['step']:08d}", folder / entry["folder"]
            if not target.exists() and source.exists():
                _link_folder(source, target)
    steps = sorted(path for path in folder.glob("step_*") if path.is_dir())
    if steps:
        _point(folder / "last", steps[-1].name)
    for number, (key, entries) in enumerate(best.items()):
        if entries and (folder / entries[0]["folder"]).exists():
            _point(folder / ("best" if number == 0 else f"best_{key.rpartition('/')[2]}"), entries[0]["folder"])
    phase("links")
    kept = {entry["folder"] for entries in best.values() for entry in entries}
    stale = [path for path in folder.glob("epoch_*") if path.name not in kept]
    stale += steps[: max(0, len(steps) - keep_last)] + list(folder.glob(".tmp-*"))
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    phase("prune")


def _link_folder(source: Path, target: Path) -> None:
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, temporary / path.name)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary / path.name)
    os.rename(temporary, target)


def _point(link: Path, name: str) -> None:
    temporary = link.with_name(f".tmp-link-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
