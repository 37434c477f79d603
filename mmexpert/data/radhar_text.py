"""Reader of RadHAR's text: one record a detected point, records parted by `---`, `key: value` lines; plain or gzipped.

Singh et al., mmNets 2019. Frames are counted by point_id, never binned by stamp: stamps come in uneven pairs.
"""

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmexpert.data.findings import DataFault

FIELDS = ("range", "velocity", "doppler_bin", "bearing", "intensity")
_STAMPS = ("secs", "nsecs")
_LONGEST_M = 11.156  # the last range bin ends here
_BINS = 16
_MOST_CORRUPT = 0.01  # share of a file's records
_MOST_BYTES = 1 << 28  # unpacked; a session of 20 s has 3 MB


@dataclass(frozen=True)
class Session:
    """points [n, 6] float64: frame (from 0), range m, velocity m/s, Doppler bin 0..15, bearing degrees (right positive), intensity dB.

    frames: number of frames; day: UTC date of the first stamp; dropped: (record number from 1, reason) of corrupt records.
    """

    points: np.ndarray
    frames: int
    day: str
    dropped: tuple[tuple[int, str], ...]


def read_session(path: Path) -> Session:
    """Parses a file. Raises DataFault naming it: unreadable, without frames, or more than 1 % corrupt records."""
    text = _text(path)
    # what follows the last `---` is a record that the recorder did not finish, unless its last line is whole
    cut_short = bool(text) and not text.endswith("\n")
    chunks = [chunk for chunk in re.split(r"^---[ \t\r]*$", text, flags=re.MULTILINE) if chunk.strip()]
    rows: list[tuple[float, ...]] = []
    dropped: list[tuple[int, str]] = []
    frame, before, first_stamp = -1, -1.0, None
    for number, chunk in enumerate(chunks, 1):
        values = _fields(chunk)
        first_stamp = values.get("secs") if first_stamp is None else first_stamp
        point = values.get("point_id")
        if point is not None:  # numbered before corrupt points go: a frame whose points all go is a frame still
            frame, before = (frame + 1 if point == 0 or point <= before else frame), point
        last = number == len(chunks) and not text.rstrip().endswith("---")
        reason = "truncated" if last and (cut_short or _absent(values)) else _fault(values, chunk)
        if reason:
            dropped.append((number, reason))
        else:
            rows.append((frame, *(values[name] for name in FIELDS)))
    if not rows:
        raise DataFault(
            f"{path}: no frame in {len(chunks)} records; it should hold records parted by ---, each with point_id, range, ...",
            "empty_file" if not text.strip() else "undecodable",
            str(path),
        )
    if len(dropped) > _MOST_CORRUPT * len(chunks):
        listed = "; ".join(f"record {number}: {why}" for number, why in dropped[:5])
        raise DataFault(
            f"{path}: {len(dropped)} of {len(chunks)} records are corrupt, more than 1 %: {listed}. Remove or replace the file",
            "undecodable",
            str(path),
            str(dropped[0][0]),
        )
    day = str(np.datetime64(int(first_stamp), "s").astype("datetime64[D]"))
    return Session(np.array(rows), frame + 1, day, tuple(dropped))


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFault(f"{path}: can not be read ({error}); is it cut short? copy it again", "truncated", str(path)) from error
    if len(data) > _MOST_BYTES:
        raise DataFault(f"{path}: more than {_MOST_BYTES >> 20} MiB of text, no RadHAR session; remove it", "undecodable", str(path))
    return data.decode("latin-1")  # any byte: one that does not belong spoils its record, not the file


def _fields(chunk: str) -> dict[str, float]:
    """Finite numbers by key."""
    fields = {}
    for line in chunk.splitlines():
        key, _, value = line.partition(":")
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            fields[key.strip()] = number
    return fields


def _absent(values: dict[str, float]) -> list[str]:
    return [name for name in ("point_id", *_STAMPS, *FIELDS) if name not in values]


def _fault(values: dict[str, float], chunk: str) -> str:
    """Why a record can not be used; empty where it can."""
    absent = _absent(values)
    if absent:
        found = re.search(rf"^\s*{absent[0]}:(.*)$", chunk, re.MULTILINE)
        return f"{absent[0]} is {found[1].strip()!r}, not a number" if found else f"{absent[0]} is missing"
    if chunk.count("point_id:") > 1:
        return "two records in one: the --- between them is lost"
    if not 0 < values["range"] < _LONGEST_M:
        return f"range {values['range']:g} m is outside 0..{_LONGEST_M} m"
    if values["doppler_bin"] not in range(_BINS):
        return f"doppler_bin {values['doppler_bin']:g} is not one of 0..{_BINS - 1}"
    return ""
