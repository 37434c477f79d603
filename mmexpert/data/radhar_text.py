"""Reader of RadHAR's text: one record a detected point, records parted by `---`, `key: value` lines; plain or gzipped.

Singh et al., mmNets 2019. Frames are counted by point_id, never binned by stamp: stamps come in uneven pairs.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmexpert.types import DataError

FIELDS = ("range", "velocity", "doppler_bin", "bearing", "intensity")
_LONGEST_M = 11.156  # the last range bin ends here
_BINS = 16
_MOST_CORRUPT = 0.01  # share of a file's records


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
    """Parses a file. Raises DataError naming it: unreadable, without frames, or more than 1 % corrupt records."""
    text = _text(path)
    rows: list[tuple[float, ...]] = []
    dropped: list[tuple[int, str]] = []
    frame, before, first_stamp, number = -1, -1, None, 0
    chunks = text.split("---")
    complete = text.rstrip().endswith("---")
    for position, chunk in enumerate(chunks):
        if not chunk.strip():
            continue
        number += 1
        values = _fields(chunk)
        if first_stamp is None:
            first_stamp = values.get("secs")
        point = _number(values.get("point_id"))
        if point is not None:  # numbered before corrupt points go: a frame whose points all go is a frame still
            frame, before = (frame + 1 if point == 0 or point <= before else frame), point
        last_and_cut = position == len(chunks) - 1 and not complete and any(name not in values for name in FIELDS)
        reason = "truncated" if last_and_cut else _fault(values, point)
        if reason:
            dropped.append((number, reason))
        else:
            rows.append((max(frame, 0), *(float(values[name]) for name in FIELDS)))
    if frame < 0 or not rows:
        raise DataError(f"{path}: no frame in {number} records; it should hold records parted by ---, each with point_id, range, ...")
    if len(dropped) > max(1, _MOST_CORRUPT * number):
        listed = "; ".join(f"record {n}: {why}" for n, why in dropped[:5])
        raise DataError(f"{path}: {len(dropped)} of {number} records are corrupt, more than 1 %: {listed}. Remove or replace the file")
    return Session(np.array(rows), frame + 1, _day(first_stamp, path), tuple(dropped))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("ascii")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can not be read ({error}); is it cut short? copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no RadHAR text, byte {error.start} is {data[error.start]:#x}; copy the file again") from error


def _fields(chunk: str) -> dict[str, str]:
    fields = {}
    for line in chunk.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields[key.strip()] = value.strip()
    return fields


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _fault(values: dict[str, str], point: float | None) -> str:
    """Why a record can not be used; empty where it can."""
    if point is None:
        return "point_id is missing or no number"
    for name in FIELDS:
        value = _number(values.get(name))
        if value is None or not np.isfinite(value):
            return f"{name} is {values.get(name, 'missing')!r}, not a number"
    distance, doppler = float(values["range"]), float(values["doppler_bin"])
    if not 0 < distance < _LONGEST_M:
        return f"range {distance:g} m is outside 0..{_LONGEST_M} m"
    if doppler != int(doppler) or not 0 <= doppler < _BINS:
        return f"doppler_bin {doppler:g} is not one of 0..{_BINS - 1}"
    return ""


def _day(stamp: str | None, path: Path) -> str:
    seconds = _number(stamp)
    if seconds is None:
        raise DataError(f"{path}: the first record has no stamp (secs)")
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
