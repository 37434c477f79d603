"""examples.json and thumbnails.npz of a run: what its report shows of the evaluation, so that the report needs no model and no data."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.evaluators.base import Evaluation
from mmexpert.evaluators.examples import Examples
from mmexpert.types import MmexpertError

log = logging.getLogger(__name__)
FILE, PICTURES = "examples.json", "thumbnails.npz"
_MOST_PICTURES, _MOST_BYTES, _MOST_TEXT = 120, 4 << 20, 600  # pictures; bytes of all; characters of a caption
_UNREADABLE = (MmexpertError, OSError, ValueError, SyntaxError, KeyError)  # Pillow raises the third and fourth for broken files


def write_examples(folder: Path, evaluation: Evaluation) -> None:
    """Draws and writes both files where the evaluator offers examples (tables["examples"]); a picture that can not be drawn is left
    out with a warning, since the run's figures are safe by now."""
    if "examples" not in evaluation.tables:
        return
    examples: Examples = evaluation.tables["examples"]()
    places, views = _thumbnails(examples)
    content = {
        "format": 1,
        "part": evaluation.protocol.get("part"),
        "gallery": evaluation.protocol.get("gallery"),
        "score": examples.score,
        "choice": examples.choice,
        "examples": [_placed_row(row, places) for row in examples.rows],
        "heat_map": examples.heat_map,
    }
    write_atomic(folder / FILE, strict_json(content))
    if views:
        file = io.BytesIO()
        np.savez_compressed(file, **views)
        write_atomic(folder / PICTURES, file.getvalue())


def _thumbnails(examples: Examples) -> tuple[dict[Any, int], dict[str, np.ndarray]]:
    """(row of each key's picture, uint8 [n, h, w] or [n, h, w, 3] by view): each picture once, as many as fit."""
    keys = dict.fromkeys(end["picture"] for row in examples.rows for end in (row["query"], *row["results"]) if "picture" in end)
    drawn: dict[Any, dict[str, np.ndarray]] = {}
    size = 0
    for key in keys:
        try:
            views = examples.picture(key)
        except _UNREADABLE as error:
            log.warning("report: no picture of %r (%s: %s)", key, type(error).__name__, error)
            continue
        first = next(iter(drawn.values()), views)
        size += sum(view.nbytes for view in views.values())
        if len(drawn) == _MOST_PICTURES or size > _MOST_BYTES:
            break
        alike = views.keys() == first.keys() and all(views[name].shape == first[name].shape for name in views)
        if views and alike:  # a grey picture among coloured ones would not stack
            drawn[key] = views
    names = next(iter(drawn.values()), {})
    return {key: place for place, key in enumerate(drawn)}, {name: np.stack([views[name] for views in drawn.values()]) for name in names}


def _placed_row(row: dict[str, Any], places: dict[Any, int]) -> dict[str, Any]:
    return row | {"query": _placed(row["query"], places), "results": [_placed(result, places) for result in row["results"]]}


def _placed(end: dict[str, Any], places: dict[Any, int]) -> dict[str, Any]:
    """One end of an example with the row of its picture, None where it has none; long texts are cut."""
    short = {name: value[:_MOST_TEXT] if isinstance(value, str) else value for name, value in end.items() if name != "picture"}
    return short | {"picture": places.get(end.get("picture"))}
