"""Where pretrained models come from: a local folder, the local hub cache, then the hub, if it answers."""

import os
import socket
import threading
from pathlib import Path

from mmexpert.types import SourceError

_HUB = ("huggingface.co", 443)
_PATIENCE_S = 1.0


def find_source(name: str) -> str:
    """What `from_pretrained` should be given for a name: the folder itself, or the hub name.

    Raises SourceError within about a second where the files are neither here nor can be fetched: never 26 s of retries, never a
    random start in place of weights.
    """
    if Path(name).is_dir():
        return str(Path(name).resolve())
    if cached(name):
        return name
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise SourceError(_missing(name, "HF_HUB_OFFLINE is set"))
    behind_proxy = any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy"))
    if not behind_proxy and not hub_answers():
        raise SourceError(_missing(name, "the hub does not answer"))
    return name


def cached(name: str) -> bool:
    """Whether the local hub cache holds the model's configuration."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # a path that is no folder is no hub name either
        return False


def hub_answers() -> bool:
    """Whether a connection to the hub opens within a second; in a thread, since name resolution obeys no timeout."""
    opened: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection(_HUB, timeout=_PATIENCE_S).close()
            opened.append(True)
        except OSError:
            opened.append(False)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return opened == [True]


def _missing(name: str, why: str) -> str:
    return (
        f"encoder.text.name={name}: there is no such folder, the hub cache has no such model, and {why}. Three ways on: (1) name a local "
        f"folder with its config.json, weights and tokenizer; (2) encoder/text=scratch, which needs no download; (3) on a machine with "
        f"network: `hf download {name} --local-dir FOLDER`, then encoder.text.name=FOLDER"
    )
