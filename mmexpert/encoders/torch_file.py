"""Files of torch.save that others have made: plain containers and tensors are read, nothing of them is run."""

import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

_UNREADABLE = (
    (OSError, EOFError, UnpicklingError, RuntimeError)
    + (ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError, struct.error)  # the format before 1.6
)
"""What torch.load raises for files that are cut, damaged or no such files at all: a bit turned in a pickle asks for anything."""


def read_torch(path: Path) -> Any:
    """What the file holds, on the CPU. Raises ValueError with one line that says why it can not be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error
