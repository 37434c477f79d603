"""The files of one checkpoint folder: what is in them, and whether they are what was written."""

import json
from pathlib import Path
from typing import Any

import torch

from mmexpert.engine.files import fsync_path, sha256_file
from mmexpert.types import RunFolderError

MODEL, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint folder, by file name; empty where it is whole. One flipped bit loads without complaint: hence
    the sums."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} can not be read ({error})"
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    if there != set(files):
        return f"holds {sorted(there)}, the manifest names {sorted(files)}"
    for name, entry in files.items():
        if (folder / name).stat().st_size != entry["bytes"] or sha256_file(folder / name) != entry["sha256"]:
            return f"{name} is not what was written"
    return ""


def load_state(folder: Path) -> dict[str, Any]:
    """state.pt of a checkpoint, on the CPU; plain data only."""
    return torch.load(folder / STATE, weights_only=True, map_location="cpu")


def plain(value: Any) -> Any:
    """Only what weights_only=True reads back: NumPy scalars and paths would save and never load."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(inner) for inner in value)
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return float(value) if type(value).__module__ == "numpy" else value
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value)} does not belong into a checkpoint")


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Saves plain content and flushes it to the disk."""
    torch.save(content, path)
    fsync_path(path)


def digests(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of the named files."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names}


def check_names(stored: list[list[str]], optimizer: Any, folder: Path) -> None:
    """Raises RunFolderError where the optimizer's groups hold other parameters than the stored ones."""
    now = [group["param_names"] for group in optimizer.param_groups]
    if stored != now:
        a, b = {n for group in stored for n in group}, {n for group in now for n in group}
        raise RunFolderError(f"{folder}: the optimizer's parameters differ: only stored {sorted(a - b)[:5]}, only now {sorted(b - a)[:5]}")
