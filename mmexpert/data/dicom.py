"""DICOM films, by pydicom (extra `dicom`): stored values to what the film shows, before any window."""

from pathlib import Path
from typing import Any

import numpy as np

from mmexpert.data.findings import DataFault
from mmexpert.types import ConfigError

_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_TAGS = ["Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation"]


def dicom_header(path: Path, record: str) -> tuple[int, int]:
    """(rows, columns). Raises DataFault: no DICOM file, several frames, colours; ConfigError where pydicom is absent."""
    dataset = _read(path, record, header=True)
    return int(dataset.Rows), int(dataset.Columns)


def read_dicom(path: Path, record: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Pixels [H, W] float32 after rescale slope and intercept, white = dense; window (centre, width) of the file, or None.

    MONOCHROME1 stores dense as dark: inverted within the range that its bits can store, so that equal densities of two files stay
    equal. Its window is turned with it. Raises DataFault and ConfigError as dicom_header does.
    """
    dataset = _read(path, record, header=False)
    try:
        pixels = np.asarray(dataset.pixel_array, np.float32)
    except (AttributeError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        raise DataFault(f"{path} (record {record}): no pixels can be read ({error}); copy it again, or store it as PNG", "truncated",
                        str(path), record) from error  # fmt: skip
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    pixels = pixels * np.float32(slope) + np.float32(intercept)
    window = _window(dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        bits = int(dataset.BitsStored)
        ends = -1 if int(dataset.PixelRepresentation) else 2**bits - 1  # lowest + highest storable value, signed or not
        mirror = slope * ends + 2 * intercept
        pixels = np.float32(mirror) - pixels
        window = None if window is None else (mirror - window[0] + 1, window[1])  # + 1: the standard's centre sits half a step off
    return pixels, window


def _window(dataset: Any) -> tuple[float, float] | None:
    """The first window of the file."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None:
        return None
    first = [value if isinstance(value, (int, float, str)) else value[0] for value in (centre, width)]
    return float(first[0]), float(first[1])


def _read(path: Path, record: str, header: bool) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ConfigError(f"{path} is a DICOM file: pip install 'mmexpert[dicom]' reads it") from error
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=header, specific_tags=_TAGS if header else None)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        code = "missing_file" if not path.exists() else "not_an_image"
        raise DataFault(f"{path} (record {record}): no DICOM file ({error}); replace or remove it", code, str(path), record) from error
    absent = [tag for tag in _TAGS if tag not in dataset and tag != "NumberOfFrames"]
    if absent:
        raise DataFault(f"{path} (record {record}): no {absent[0]} in it; it is no film, remove it", "not_an_image", str(path), record)
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        message = f"{path} (record {record}): {dataset.NumberOfFrames} frames, expected one; store each film by itself"
        raise DataFault(message, "wrong_shape", str(path), record)
    if dataset.PhotometricInterpretation not in _MONOCHROME:
        found = dataset.PhotometricInterpretation
        raise DataFault(f"{path} (record {record}): PhotometricInterpretation is {found}, expected {' or '.join(_MONOCHROME)}; "
                        "store it as grey, or as PNG", "wrong_dtype", str(path), record)  # fmt: skip
    return dataset
