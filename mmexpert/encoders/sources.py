"""Where pretrained models come from: a local folder, the local hub cache, then the hub, if it answers."""

import os
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from mmexpert.types import SourceError

CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files of which a usable copy has one each."""

_PATIENCE_S = 1.0


def find_source(name: str, key: str, otherwise: str, files: Sequence[Sequence[str]]) -> str:
    """What `from_pretrained` should be given for a name: a folder of this machine, or the hub name where the hub answers.

    key: where the name was written. otherwise: the choice that needs no download. files: groups of which one file each must be there.
    Raises SourceError within about a second where they are neither here nor can be fetched: never 26 s of retries, never a random
    start in place of weights.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        lacking = [group for group in files if not any((folder / file).exists() for file in group)]
        if not lacking:
            return str(folder.resolve())
        why = f"the folder is there, but it holds no {' or '.join(lacking[0])}"
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        why = "there is no such folder, and a hub name is written owner/model"
    elif (snapshot := cached(name, files)) is not None:
        return str(snapshot)  # its folder, not its name: with a name transformers would still ask the hub for news
    elif offline := [variable for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(variable)]:
        why = f"there is no such folder, the hub cache has not all of the model's files, and {offline[0]} is set"
    elif behind_proxy() or hub_answers():
        return name
    else:
        why = f"there is no such folder, the hub cache has not all of the model's files, and {hub_address()[0]} does not answer"
    raise SourceError(missing(name, key, otherwise, why))


def missing(name: str, key: str, otherwise: str, why: str) -> str:
    """What to tell a user who asked for a pretrained model that is not to be had."""
    return (
        f"{key}={name}: {why}. Three ways on: (1) name a local folder with its config.json, weights and tokenizer; (2) {otherwise}; "
        f"(3) on a machine with network: `hf download {name} --local-dir FOLDER`, then {key}=FOLDER"
    )


def cached(name: str, files: Sequence[Sequence[str]]) -> Path | None:
    """The folder of the local hub cache that holds a model, None where one of its files is missing."""
    from huggingface_hub import try_to_load_from_cache

    found = None
    for group in files:
        paths = [path for file in group if isinstance(path := try_to_load_from_cache(name, file), str)]
        if not paths:
            return None
        found = Path(paths[0]).parent
    return found


def hub_address() -> tuple[str, int]:
    """Host and port of the hub, or of the mirror that HF_ENDPOINT names."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    return address.hostname or "huggingface.co", address.port or (80 if address.scheme == "http" else 443)


def behind_proxy() -> bool:
    """Whether connections go through a proxy: then one of our own would say nothing."""
    return bool({"https", "http", "all"} & set(getproxies()))


def hub_answers() -> bool:
    """Whether a connection to the hub opens within a second; in a thread, since name resolution obeys no timeout."""
    opened: list[bool] = []

    def knock() -> None:
        """Notes whether the connection opens."""
        try:
            socket.create_connection(hub_address(), timeout=_PATIENCE_S).close()
            opened.append(True)
        except OSError:
            opened.append(False)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return opened == [True]


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
