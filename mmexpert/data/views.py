"""Radar views: names, shapes, checks, and the one way from a stored clip to what the model sees.

Columns are frames. Rows: range bins of 4.36 cm; Doppler bins of 9.46 cm/s around row 64 (above = receding); direction cosines of
1/64 around row 64 (above = the radar's right).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmexpert.types import ConfigError, DataError

VIEW_ROWS = {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
_SHORT = {"range": "range_time", "doppler": "doppler_time", "azimuth": "azimuth_time"}
_SHIFTS, _SHARES = ("range_shift", "azimuth_shift"), ("mirror", "time_mask", "row_mask")
AUGMENTATION = ("gain_db", "time_shift", *_SHIFTS, *_SHARES)
KINDS = ("db", "log1p", "none")
_TINY = 1e-12  # keeps the logarithm of an exact zero finite, far below any floor


def view_names(views: str | Sequence[str]) -> tuple[str, ...]:
    """Role names of dataset.views (`all` or a list of range, doppler, azimuth), in the fixed order."""
    wanted = list(_SHORT) if views == "all" else views
    if isinstance(wanted, str) or not wanted or any(name not in _SHORT for name in wanted):
        raise ConfigError(f"dataset.views={views!r}: write `all` or a list of range, doppler, azimuth, such as dataset.views=[doppler]")
    return tuple(role for name, role in _SHORT.items() if name in wanted)


def check_view(array: np.ndarray, view: str, where: str, decibel: bool = False) -> np.ndarray:
    """The array as float32 [F, T]. Raises DataError naming file and view: shape, NaN, infinity, negative amplitude."""
    check_shape(array.shape, view, where)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{where}: {view} has dtype {array.dtype}, expected numbers; store it as float32")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        row, frame = np.argwhere(~np.isfinite(array))[0]
        raise DataError(f"{where}: {view} holds {array[row, frame]} at row {row}, frame {frame}; mend or remove the clip")
    if not decibel and array.min() < 0:
        raise DataError(f"{where}: {view} holds the negative amplitude {array.min():.4g}; is it in dB? then dataset.stored=db")
    return array


def check_shape(shape: tuple[int, ...], view: str, where: str) -> None:
    """Raises DataError where a view's shape is not [F, T] with T >= 1."""
    rows = VIEW_ROWS[view]
    if len(shape) == 2 and shape[0] == rows and shape[1] > 0:
        return
    hint = ""
    others = [name for name, count in VIEW_ROWS.items() if name != view and len(shape) == 2 and shape[0] == count]
    if len(shape) == 2 and shape[1] == rows:
        hint = "; it looks transposed: store [rows, frames]"
    elif others:
        hint = f"; {shape[0]} rows is the shape of {others[0]}: are they swapped?"
    raise DataError(f"{where}: {view} is {list(shape)}, expected [{rows}, T] with at least one frame{hint}")


def check_lengths(views: dict[str, np.ndarray], where: str) -> None:
    """Raises DataError where the views of a clip differ in their number of frames."""
    lengths = {name: array.shape[1] for name, array in views.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: the views differ in length: {lengths}; they must show the same frames")


def normalize_view(x: np.ndarray, kind: str, floor_db: float, reference: str | float) -> np.ndarray:
    """float32 of x's shape.

    kind db: clip(20 log10(x / ref), floor_db, 0) / -floor_db + 1 in [0, 1], ref = the clip's maximum or a fixed amplitude (an all-zero
    view gives zeros); log1p: log(1 + |x|); none.
    """
    if kind == "none":
        return np.asarray(x, np.float32)
    if kind == "log1p":
        return np.log1p(np.abs(x)).astype(np.float32)
    if kind != "db":
        raise ConfigError(f"dataset.normalize.kind={kind}: choose db, log1p or none")
    return np.minimum(level_db(x, floor_db, reference), 0) / np.float32(-floor_db) + np.float32(1)


def level_db(x: np.ndarray, floor_db: float, reference: str | float) -> np.ndarray:
    """float32 20 log10(x / ref), not below floor_db; an all-zero view lies there whatever its reference."""
    ref = float(x.max()) if reference == "clip" else float(reference)
    if ref <= 0:
        return np.full(x.shape, floor_db, np.float32)
    decibel = 20 * np.log10(np.maximum(x, _TINY) / np.float32(ref), dtype=np.float32)
    return np.maximum(decibel, np.float32(floor_db))


@dataclass(frozen=True)
class Lengths:
    """Frames: longer clips than maximum are cropped, all are padded up to a multiple of unit."""

    maximum: int
    unit: int
    minimum: int

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.maximum or self.unit < 1 or self.maximum % self.unit:
            raise ConfigError(
                f"dataset.max_length={self.maximum} must be a multiple of dataset.unit_length={self.unit} and at least "
                f"dataset.min_length={self.minimum}"
            )


class ViewTransform:
    """Normalised views of a clip -> cropped, in training augmented; one time index for all views.

    augmentation: None, or any of gain_db (dB, before the floor), range_shift and azimuth_shift (rows), mirror (probability),
    time_shift (circular: true), time_mask (longest share of frames), row_mask (share of rows).
    """

    def __init__(self, normalize: dict[str, Any], lengths: Lengths, augmentation: dict[str, float] | None) -> None:
        check_augmentation(augmentation or {})
        check_normalize(normalize)
        self.normalize, self.lengths, self.augmentation = normalize, lengths, augmentation or {}

    def __call__(self, views: dict[str, np.ndarray], rng: np.random.Generator | None) -> tuple[dict[str, np.ndarray], bool]:
        """Views [F, T] of a whole stored clip -> (views [F, T'], mirrored?). rng None = evaluation: centre window, nothing random."""
        keys = self.augmentation if rng is not None else {}
        gain = 10 ** (rng.uniform(-keys["gain_db"], keys["gain_db"]) / 20) if keys.get("gain_db") else 1.0
        ready = {name: self._normalized(x, gain) for name, x in views.items()}
        frames = next(iter(ready.values())).shape[1]
        spare = max(0, frames - self.lengths.maximum)
        begin = spare // 2 if rng is None else int(rng.integers(spare + 1))
        ready = {name: x[:, begin : begin + self.lengths.maximum] for name, x in ready.items()}
        return augment(ready, keys, rng) if keys else (ready, False)

    def _normalized(self, x: np.ndarray, gain: float) -> np.ndarray:
        reference = self.normalize["reference"]
        if gain != 1.0 and reference == "clip":
            reference = float(x.max()) / gain  # louder than its own maximum: the top is clipped as a receiver's would be
        elif gain != 1.0:
            x = x * np.float32(gain)
        return normalize_view(x, self.normalize["kind"], self.normalize["floor_db"], reference)


def check_normalize(keys: dict[str, Any]) -> None:
    """Raises ConfigError for missing or unknown keys and values out of their ranges."""
    if set(keys) != {"kind", "floor_db", "reference"}:
        raise ConfigError(f"dataset.normalize needs exactly kind, floor_db and reference, it has {sorted(keys)}")
    if keys["kind"] not in KINDS:
        raise ConfigError(f"dataset.normalize.kind={keys['kind']}: choose {', '.join(KINDS)}")
    floor_db, reference = keys["floor_db"], keys["reference"]
    if not (_is_number(floor_db) and -np.inf < floor_db < 0):
        raise ConfigError(f"dataset.normalize.floor_db={floor_db}: dB below the reference, a number below 0, such as -60")
    if reference != "clip" and not (_is_number(reference) and 0 < reference < np.inf):
        raise ConfigError(f"dataset.normalize.reference={reference}: clip (its maximum), or an amplitude above 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_augmentation(keys: dict[str, float]) -> None:
    """Raises ConfigError for an unknown key or a value out of its range."""
    for key, value in keys.items():
        if key not in AUGMENTATION:
            raise ConfigError(f"dataset.augmentation.{key}: there is no such key; there are {', '.join(AUGMENTATION)}")
        if not isinstance(value, (int, float)):
            raise ConfigError(f"dataset.augmentation.{key}={value!r}: a number is needed; 0 turns it off")
        if key in _SHIFTS and not (0 <= value < 128 and value == int(value)):
            raise ConfigError(f"dataset.augmentation.{key}={value}: whole rows, 0..127")
        if key in _SHARES and not 0 <= value <= 1:
            raise ConfigError(f"dataset.augmentation.{key}={value}: a share or probability, 0..1")
        if key == "time_shift" and value not in (0, 1):
            raise ConfigError(f"dataset.augmentation.time_shift={value}: 0 or 1, a circular shift by any number of frames")
        if key == "gain_db" and not 0 <= value < np.inf:
            raise ConfigError(f"dataset.augmentation.gain_db={value}: dB up and down, 0 or more")


def augment(views: dict[str, np.ndarray], keys: dict[str, float], rng: np.random.Generator) -> tuple[dict[str, np.ndarray], bool]:
    """Shifts, mirror and masks of normalised views; the same frames are masked in all of them."""
    views = dict(views)
    for view, key in (("range_time", "range_shift"), ("azimuth_time", "azimuth_shift")):
        if keys.get(key):
            most = int(keys[key])
            shift = int(rng.integers(-most, most + 1))
            if view in views:
                views[view] = shift_rows(views[view], shift)
    mirrored = bool(keys.get("mirror")) and rng.random() < keys["mirror"]
    if mirrored and "azimuth_time" in views:
        views["azimuth_time"] = mirror_azimuth(views["azimuth_time"])
    frames = next(iter(views.values())).shape[1]
    if keys.get("time_shift"):
        shift = int(rng.integers(frames))
        views = {name: np.roll(x, shift, axis=1) for name, x in views.items()}
    if keys.get("time_mask"):
        length = int(rng.uniform(0, keys["time_mask"]) * frames)
        begin = int(rng.integers(frames - length + 1))
        views = {name: _silenced(x, slice(None), slice(begin, begin + length)) for name, x in views.items()}
    if keys.get("row_mask"):
        views = {name: _silenced(x, rng.random(len(x)) < keys["row_mask"], slice(None)) for name, x in views.items()}
    return views, mirrored


def shift_rows(x: np.ndarray, shift: int) -> np.ndarray:
    """Rows moved up by shift; what comes in is zero."""
    moved = np.zeros_like(x)
    if shift >= 0:
        moved[shift:] = x[: len(x) - shift]
    else:
        moved[:shift] = x[-shift:]
    return moved


def mirror_azimuth(x: np.ndarray) -> np.ndarray:
    """Left and right exchanged: row k -> 128 - k for rows 1..127; row 0 (u = -1) has no partner and stays."""
    return np.concatenate([x[:1], x[:0:-1]])


def _silenced(x: np.ndarray, rows: Any, frames: Any) -> np.ndarray:
    x = x.copy()
    x[rows, frames] = 0
    return x
