"""A model folder for others: without paths of the machine that trained it, and looked through before it is uploaded."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmexpert.engine.export import MADE_BY, origin
from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.secrets import mask_text, masked
from mmexpert.types import ConfigError, RunFolderError

log = logging.getLogger(__name__)
Config = dict[str, Any]

_NEEDED = ("_target_", "views", "normalize", "max_length", "min_length", "unit_length", "short", "pad_to", "transform", "exif")
"""Keys of the data set that a loaded model reads, or its card tells; roots, split files and caches are none of them."""
_OWN_FILES = re.compile(r"(config\.json|classes\.json|README\.md|model\.safetensors|(tokenizer|backbone_[a-z]+)/[\w.\-]+)")
_NOT_READ = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # word pieces, which may look like anything
_PATH = re.compile(r"(?<![\w:/.<])(?:~|/[\w.\-]+|[A-Za-z]:\\[\w.\-]+)(?:[/\\][\w.\-=,]+)+")
_KEY = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_\-]{20,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|glpat-[\w\-]{20,})")
"""Forms of keys that common services give out."""


def save_shared(source: Path, folder: Path) -> Path:
    """Copies a model folder without what loading does not need: paths of data, caches and sources. Whole, or not there.

    Raises RunFolderError where something other than a model lies at the place.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "model.safetensors").exists())):
        raise RunFolderError(f"{folder}: holds something other than a model; choose another folder")
    if folder.resolve() == source.resolve():
        raise RunFolderError(f"{folder} is the model itself; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{word}-{folder.name}") for word in ("tmp", "old"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=lambda _, names: [name for name in names if name.startswith(".")])
    stored = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
    write_atomic(temporary / "config.json", strict_json(_shared(stored, temporary), indent=1))
    for path in (*temporary.glob("tokenizer/tokenizer_config.json"), *temporary.glob("backbone_*/config.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        content = {key: value for key, value in content.items() if key not in ("name_or_path", "_name_or_path")}
        write_atomic(path, strict_json(content, indent=1))
    card = (temporary / "README.md").read_text(encoding="utf-8")
    if MADE_BY not in card:  # of an older version
        write_atomic(temporary / "README.md", card + origin(source.parent))
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def push_model(source: Path, name: str, private: bool) -> str:
    """Uploads a shared copy of a model folder to the hub as `name` (USER/NAME); returns the address.

    Raises ConfigError for a name of another form, for a file that is not a model's, and where a secret or a path is found.
    """
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", name):
        raise ConfigError(f"push: {name!r} is no USER/NAME")
    with tempfile.TemporaryDirectory() as place:
        folder = save_shared(source, Path(place) / "model")
        if found := list(faults(folder)):
            raise ConfigError(f"push: nothing is sent: {'; '.join(found[:5])}. Change or remove it in {source}")
        files = [path.relative_to(folder).as_posix() for path in _files(folder)]
        log.info("to %s (%s), %d files:", name, "private" if private else "public", len(files))
        for file in files:
            log.info("  %s, %d bytes", file, (folder / file).stat().st_size)
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=files, commit_message="mmexpert model")
    return f"https://huggingface.co/{name}"


def faults(folder: Path) -> Iterator[str]:
    """What a model folder holds that no other person should get: foreign files, secrets, paths of a machine; the secret is not told."""
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not _OWN_FILES.fullmatch(name):
            yield f"{name} is no file of a model"
        elif path.suffix in (".json", ".md", ".txt") or path.stat().st_size < 1_000_000 and path.suffix != ".safetensors":
            yield from (f"{name} holds {fault}" for fault in _faults_of(path))


def _faults_of(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if mask_text(text) != text:
        yield "a secret of the environment, or an address with a password"
    if _KEY.search(text):
        yield "what looks like a key of a service"
    if path.name in _NOT_READ:
        return
    values = [text]
    if path.suffix == ".json":
        content = json.loads(text)
        # a tokenizer's cls_token is none; what is under the name of one elsewhere is
        if path.parent.name != "tokenizer" and masked(content) != content:
            yield "a value under the name of a secret"
        values = list(_strings(content))
    for value in values:
        if found := _PATH.search(value):
            yield f"the path {found[0]}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inner)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _shared(config: Config, folder: Path) -> Config:
    """The stored configuration with other files' names taken out: all that they gave lies in the folder."""
    encoders = {role: _own_source(role, node, folder) if node else node for role, node in config["encoder"].items()}
    dataset = {key: config["dataset"][key] for key in _NEEDED if key in config["dataset"]}
    nulled = {"model": "towers", "combiner": "weights"}
    parts = {name: config[name] | {key: None} for name, key in nulled.items() if config.get(name) and key in config[name]}
    return config | {"encoder": encoders, "dataset": dataset} | parts


def _own_source(role: str, node: Config, folder: Path) -> Config:
    """A tower's node whose name and weights are no paths: the backbone's folder stands for them when the model is loaded."""
    local = {key: None for key in ("weights",) if node.get(key) and _is_path(node[key])}
    if node.get("name") and _is_path(node["name"]):
        local["name"] = Path(node["name"]).name if (folder / f"backbone_{role}").is_dir() else node["name"]
    return node | local


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", ".")) or Path(value).exists())
