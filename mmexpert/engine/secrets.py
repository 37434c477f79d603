"""Values that no file, log line or tracker may hold. Imports the standard library only."""

import os
import re
from typing import Any

SECRET = re.compile(r"(^|[._\-])(token|secret|password|passwd|credentials?)$|(api|access|private)_?key$", re.IGNORECASE)
"""Keys and environment variables whose values are secret, told by their last word."""

_LEAST = 8  # characters; shorter values would be found in innocent words


def masked(value: Any, key: str = "") -> Any:
    """The same nested data with *** for values of secret keys and for values of environment variables so named."""
    if isinstance(value, dict):
        return {name: masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(inner, key) for inner in value]
    if isinstance(value, str):
        return "***" if SECRET.search(key) and value else mask_text(value)
    return value


def mask_text(text: str) -> str:
    """A text without secrets of the environment (values of 8 characters and more) and without user:password@ of addresses."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST and SECRET.search(name):
            text = text.replace(value, "***")
    return re.sub(r"(https?://)[^/@\s]+@", r"\1", text)
