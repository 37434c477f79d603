"""JSON of strangers: what Python's reader lets through, or answers with errors other than its own, is one kind of error here."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair; whether its other half is there, only the value tells


def plain_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What a JSON object becomes where nothing more is asked of it."""
    return dict(pairs)


def not_a_number(name: str) -> float:
    """What NaN and Infinity become where nothing more is asked of them."""
    return float(name)


def parsed_json(
    text: str, to_object: Callable[..., dict[str, Any]] = plain_object, to_constant: Callable[[str], Any] = not_a_number
) -> Any:
    """The value of a text; to_object and to_constant are json.loads's object_pairs_hook and parse_constant.

    Raises ValueError: syntax (JSONDecodeError), nesting too deep, a number of more digits than Python converts, half a surrogate pair
    (no file can be written with it, nor any file be named so: it would end a run far from here).
    """
    try:
        value = json.loads(text, object_pairs_hook=to_object, parse_constant=to_constant)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise ValueError(f"{half!r} is half a character (a surrogate without its pair); write the character itself as UTF-8") from error
    return value
