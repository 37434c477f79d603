"""One checkpoint on the disk: files, manifest, checksums. Whole and verified, or not there."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmexpert.engine.files import fsync_path, plain, sha256_file, strict_json
from mmexpert.engine.parts import own_part, parted, whole
from mmexpert.types import RunFolderError

log = logging.getLogger(__name__)
MODEL, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"
FORMAT = 1
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
"""What a full disk raises: Python's files, safetensors, and torch.save ("unexpected pos"), in this order."""


def phase(name: str, step: int) -> None:
    """A seam for tests: kills the process by SIGKILL where MMEXPERT_KILL_AT is "name:step", else does nothing.

    Names in the order of a save: rng, model, state, manifest, swap (only where a folder is replaced), rename, links, prune.
    """
    if os.environ.get("MMEXPERT_KILL_AT") == f"{name}:{step}":
        os.kill(os.getpid(), signal.SIGKILL)


def step_name(step: int) -> str:
    """Folder of a step's checkpoint."""
    return f"step_{step:08d}"


def rank_file(rank: int) -> str:
    """File of one rank's generators."""
    return f"rng_{rank}.pt"


def weights_of(module: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole, on the CPU, each memory once: of tied weights the first name stands for all.

    Called by every rank where the module is sharded; keep=False: nothing is kept of it here.
    """
    seen: set[tuple[Any, ...]] = set()
    weights = {}
    for name, tensor in module.state_dict().items():
        part, full = own_part(tensor), whole(tensor.detach())
        place = (part.untyped_storage().data_ptr(), part.storage_offset(), part.shape, part.stride(), part.device)
        if not keep or part.numel() and place in seen:
            continue
        seen.add(place)
        weights[name] = full.cpu().contiguous()
    return weights


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copies weights into the module by name. Returns (names missing from weights, names that the module does not have).

    Tied names that weights_of left out are not missing. Raises RunFolderError naming tensors of another shape.
    """
    wanted = module.state_dict()
    shapes = [
        f"{name}: stored {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if shapes:
        raise RunFolderError(f"{len(shapes)} stored tensors have another shape: {'; '.join(shapes[:5])}. Another model was stored here")
    needed = weights_of(module)
    module.load_state_dict({name: parted(weights[name], like) for name, like in wanted.items() if name in weights}, strict=False)
    return [name for name in needed if name not in weights], [name for name in weights if name not in wanted]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or model folder. Raises RunFolderError where the file is missing or cut."""
    path = folder / MODEL
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{path}: no weights can be read ({error})") from error


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes tensors; without metadata, whose order in the file is not the same twice."""
    save_file(weights, path)
    fsync_path(path)


def write_state(path: Path, state: Any) -> None:
    """Writes plain containers and tensors. Raises TypeError naming the place of anything that would not load again."""
    torch.save(plain(state), path)
    fsync_path(path)


def read_state(path: Path) -> Any:
    """Reads what write_state wrote; other types are refused, so that no code of a foreign file runs. Raises RunFolderError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise RunFolderError(f"{path} holds more than plain containers and tensors, or is damaged: {error}") from error


def described(path: Path) -> dict[str, Any]:
    """A file's entry of the manifest."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_manifest(folder: Path, contents: dict[str, Any]) -> None:
    """Writes manifest.json with a checksum of itself, and brings it and the folder to the disk."""
    (folder / MANIFEST).write_bytes(_signed(contents))
    fsync_path(folder / MANIFEST)
    fsync_path(folder)


def _signed(contents: dict[str, Any]) -> bytes:
    own = hashlib.sha256(strict_json(contents).encode()).hexdigest()
    return strict_json(contents | {"sha256": own}).encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest. Raises ValueError saying what is wrong with it."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        stored = json.loads(content)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    contents = {key: value for key, value in stored.items() if key != "sha256"} if isinstance(stored, dict) else {}
    if _signed(contents) != content:  # compared as bytes: a flipped blank counts too
        raise ValueError(f"{path} does not agree with its own checksum")
    numbers = all(type(contents.get(key)) is int for key in ("step", "epoch", "processes"))
    files = contents.get("files")
    described = isinstance(files, dict) and all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values())
    if contents.get("format") != FORMAT or not numbers or not described:
        raise ValueError(f"{path}: format {contents.get('format')!r}, expected {FORMAT}")
    return contents


def verified(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that holds exactly the named files with the named bytes. Raises ValueError naming the first bad file."""
    contents = read_manifest(folder)
    files = contents["files"]
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    if odd := sorted(there ^ files.keys()):
        what = "is not in the manifest" if odd[0] in there else "is missing"
        raise ValueError(f"{folder / odd[0]} {what}")
    for name, entry in files.items():
        path = folder / name
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            raise ValueError(f"{path} has another checksum than the manifest")
    return contents


def step_folders(folder: Path) -> list[Path]:
    """The folders step_N, oldest first."""
    found = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def latest(folder: Path) -> Path | None:
    """The newest checkpoint below folder that verifies, None where there is none at all; links are never trusted.

    Damaged ones are passed over with a warning that names the file. Raises RunFolderError where all are damaged.
    """
    faults = []
    for path in reversed(step_folders(folder)):
        try:
            if step_name(verified(path)["step"]) != path.name:
                raise ValueError(f"{path} holds another step than its name says")
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        for fault in faults:
            log.warning("damaged checkpoint passed over: %s; %s is used", fault, path.name)
        return path
    if faults or any(folder.glob("epoch_*")):
        found = "; ".join(faults) or "the epoch_* folders are there, no step_* is"
        advice = "resume=never starts afresh, init_from= takes weights over"
        raise RunFolderError(f"{folder} holds no checkpoint that can be read: {found}. {advice}")
    return None


def recover(folder: Path) -> Path | None:
    """latest, after what a kill or a fault has left behind is put right. For the folder's one writer.

    Damaged checkpoints newer than it become .bad-step_N: they must not count among the keep_last newest.
    """
    for old in folder.glob(".old-step_*"):  # a kill between the two renames of replace
        home = folder / old.name.removeprefix(".old-")
        if home.exists():
            shutil.rmtree(old)
        else:
            old.rename(home)
    found = latest(folder)
    for path in step_folders(folder):
        if found is not None and path.name > found.name:
            put_aside(path)
    return found


def put_aside(path: Path) -> None:
    """Renames a damaged checkpoint to .bad-step_N, kept for a look and never read."""
    bad = path.with_name(f".bad-{path.name}")
    shutil.rmtree(bad, ignore_errors=True)
    path.rename(bad)


def replace(temporary: Path, step: int) -> None:
    """Gives a whole folder its name. One of that name goes away in two renames; recover knows the state between them."""
    home = temporary.with_name(step_name(step))
    old = temporary.with_name(f".old-{home.name}")
    if home.exists():
        shutil.rmtree(old, ignore_errors=True)
        home.rename(old)
        phase("swap", step)
    temporary.rename(home)
    fsync_path(home.parent)
    shutil.rmtree(old, ignore_errors=True)
    phase("rename", step)


def newest_position(checkpoints: Path) -> tuple[int, int] | None:
    """(epoch, step) of the newest whole checkpoint, None where there is none."""
    folder = latest(checkpoints) if checkpoints.is_dir() else None
    return None if folder is None else (verified(folder)["epoch"], verified(folder)["step"])
