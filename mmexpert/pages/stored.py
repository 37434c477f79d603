"""A run as its files tell it. Nothing here is trusted: what is missing is None or empty, what is damaged is an error with its name."""

import csv
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.status import flat
from mmexpert.types import RunFolderError

_MOST_MEMBERS, _MOST_BYTES = 64, 64 << 20  # declared by thumbnails.npz: a few kB can unpack to anything


@dataclass(frozen=True)
class StoredRun:
    """A run folder, or a fold of one. label: how a page names it. short: how a column does, where several stand side by side."""

    folder: Path
    label: str
    short: str

    def json(self, name: str) -> Any:
        """A JSON file's content, {} where there is none. Raises RunFolderError for a damaged one."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, OSError) as error:
            raise RunFolderError(
                f"{path} is damaged ({error}): run `python -m mmexpert.report` after the run's command has mended it"
            ) from error

    def rows(self, name: str) -> list[dict[str, str]]:
        """A CSV file's rows by column, empty where there is none; the apostrophe before what looks like a formula is taken off."""
        path = self.folder / name
        if not path.is_file():
            return []
        with open(path, encoding="utf-8", newline="") as file:
            return [{_cell(key): _cell(value) for key, value in row.items() if key is not None} for row in csv.DictReader(file)]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        return self.json("metrics.json")

    @cached_property
    def protocol(self) -> dict[str, dict[str, Any]]:
        """How each part was measured."""
        return {part: told for part, told in self.metrics.get("protocol", {}).items() if isinstance(told, dict)}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """cv_summary.json of a run with folds."""
        return self.json("cv_summary.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """Resolved configuration by dotted key."""
        return flat(self.json("config.json").get("config", {}))

    @cached_property
    def overrides(self) -> list[str]:
        """What the command line said."""
        return self.json("config.json").get("overrides", [])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch."""
        return self.json("history.json") or []

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The logged training steps of metrics.jsonl; a last line that a kill cut short is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        try:
            return [row for row in map(json.loads, lines) if any(name.startswith("lr/") for name in row)]
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged ({error})") from error

    @cached_property
    def folds(self) -> list["StoredRun"]:
        """Its folds that have begun, by number."""
        found = [path for path in self.folder.glob("fold_*") if path.is_dir() and path.name.rpartition("_")[2].isdigit()]
        ordered = sorted(found, key=lambda path: int(path.name.rpartition("_")[2]))
        return [StoredRun(path, name, name) for path in ordered for name in [path.name.replace("_", " ")]]

    @cached_property
    def thumbnails(self) -> dict[str, np.ndarray]:
        """uint8 [n, h, w] or [n, h, w, 3] by view; empty where there are none. Raises RunFolderError for what is no such file."""
        path = self.folder / "thumbnails.npz"
        if not path.is_file():
            return {}
        try:
            with zipfile.ZipFile(path) as members:
                entries = members.infolist()
            if len(entries) > _MOST_MEMBERS or sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_MEMBERS} arrays or {_MOST_BYTES} bytes")
            with np.load(path, allow_pickle=False) as stored:
                views = {name: stored[name] for name in stored.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise RunFolderError(f"{path} is damaged ({error}): remove it, and the report comes without pictures") from error
        if any(view.dtype != np.uint8 or not (view.ndim == 3 or view.ndim == 4 and view.shape[3] == 3) for view in views.values()):
            raise RunFolderError(f"{path} does not hold uint8 pictures [n, h, w] or [n, h, w, 3]: remove it")
        return views


def open_stored(folder: Path) -> StoredRun:
    """The run in a folder. Raises RunFolderError where there is none."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", "status.json", "metrics.json")):
        raise RunFolderError(
            f"{folder} is no run folder: it holds neither config.json nor status.json; name one such as outputs/radar/default"
        )
    path = folder.resolve()
    label = f"{path.parent.name}/{path.name}"
    return StoredRun(folder, label, label)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else ""
    return text[1:] if text[:1] == "'" and text[1:2] in ("=", "+", "-", "@", "\t", "\r") else text
