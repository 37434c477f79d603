"""Arrays on disk that may be damaged or hostile: .npy, and members of .npz and .safetensors. Headers are read without the numbers.

Nothing is unpickled. NumPy raises ValueError, EOFError or OSError for the same damage, depending on where a file was cut; here it is a
DataFault that names the file.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from mmexpert.data.findings import DataFault
from mmexpert.types import DataError

Header = tuple[tuple[int, ...], np.dtype]
_MOST_MEMBERS, _MOST_BYTES = 64, 4 << 30  # declared by an .npz: a few kB can unpack to anything
_DAMAGE = (
    *(ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error),
    *(tokenize.TokenError, SyntaxError, OverflowError, TypeError, RecursionError, NotImplementedError, RuntimeError),  # of spoilt headers
)
_SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "U8": "u1", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}


@dataclass(frozen=True)
class ArrayFile:
    """One array: a .npy file (member ""), or a member of an .npz or .safetensors file, of the record that errors name."""

    path: Path
    member: str
    record: str

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.path}{f', member {self.member}' if self.member else ''} (record {self.record})"

    def header(self) -> Header:
        """Shape and dtype. Raises DataFault: missing, empty, cut short, pickled or no array."""
        with self._named():
            return _READERS[self.path.suffix][0](self)

    def array(self) -> np.ndarray:
        """The numbers, as stored. Raises DataFault as header()."""
        self.header()  # first: it tells a pickle from a short file
        with self._named():
            return _READERS[self.path.suffix][1](self)

    def members(self) -> tuple[str, ...]:
        """Names of the arrays in an .npz or .safetensors file."""
        with self._named():
            return _READERS[self.path.suffix][2](self)

    def fault(self, code: str, text: str) -> DataFault:
        """The error of this array."""
        return DataFault(f"{self.where}: {text}", code, str(self.path), self.record)

    @contextmanager
    def coded(self, code: str) -> Iterator[None]:
        """Gives the DataError of a check of this array, such as those of views.py, its code, file and record."""
        try:
            yield
        except DataError as error:
            raise DataFault(str(error), code, str(self.path), self.record) from error

    @contextmanager
    def _named(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except FileNotFoundError as error:
            raise self.fault("missing_file", "there is no such file; add it, or take the record out") from error
        except (*_DAMAGE, SafetensorError) as error:
            size = self.path.stat().st_size if self.path.is_file() else 0
            if size == 0:
                raise self.fault("empty_file", "the file is empty; write it again") from error
            raise self.fault("truncated", f"can not be read ({error}); it is damaged or cut short: write it again") from error


def _stream_header(file: ArrayFile, stream: BinaryIO, size: int) -> Header:
    """Header of the .npy content of a stream of size bytes."""
    start = stream.read(6)
    if start[:1] == b"\x80":
        raise file.fault("pickled_array", "is a pickle, which could run code when read; store it with numpy.save as numbers")
    if start != npy.MAGIC_PREFIX[: len(start)]:
        raise file.fault("not_an_array", f"is no NumPy array (it begins with {start!r}); store it with numpy.save")
    version = tuple(stream.read(2))  # NumPy's own read_magic would take a cut file for a foreign one
    if len(version) < 2:
        raise EOFError("no header")
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise file.fault("not_an_array", f"has the .npy version {version}, which is not for arrays of numbers; store it as float32")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise file.fault("pickled_array", "holds Python objects, which could run code when read; store it as float32")
    # numpy.load would find this only when the numbers are read, in the middle of an epoch
    needed = stream.tell() + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise file.fault("truncated", f"has {size} bytes of the {needed} that its header declares; copy it again")
    return shape, dtype


def _npy_header(file: ArrayFile) -> Header:
    with file.path.open("rb") as stream:
        return _stream_header(file, stream, file.path.stat().st_size)


def _npy_array(file: ArrayFile) -> np.ndarray:
    return np.load(file.path, allow_pickle=False)


def _npz_members(file: ArrayFile) -> tuple[str, ...]:
    with zipfile.ZipFile(file.path) as archive:
        infos = archive.infolist()
    declared = sum(info.file_size for info in infos)
    if len(infos) > _MOST_MEMBERS or declared > _MOST_BYTES:
        raise file.fault("undecodable", f"declares {len(infos)} members of {declared} bytes; at most {_MOST_MEMBERS} and 4 GiB are read")
    return tuple(info.filename.removesuffix(".npy") for info in infos)


def _npz_header(file: ArrayFile) -> Header:
    _require_member(file, _npz_members(file))
    with zipfile.ZipFile(file.path) as archive, archive.open(f"{file.member}.npy") as stream:
        return _stream_header(file, stream, archive.getinfo(f"{file.member}.npy").file_size)


def _npz_array(file: ArrayFile) -> np.ndarray:
    with np.load(file.path, allow_pickle=False) as archive:
        return archive[file.member]


def _safetensors_members(file: ArrayFile) -> tuple[str, ...]:
    from safetensors import safe_open

    with safe_open(file.path, "np") as tensors:
        return tuple(tensors.keys())


def _safetensors_header(file: ArrayFile) -> Header:
    from safetensors import safe_open

    _require_member(file, _safetensors_members(file))
    with safe_open(file.path, "np") as tensors:
        part = tensors.get_slice(file.member)
        dtype = _SAFETENSORS.get(part.get_dtype())
        if dtype is None:
            raise file.fault("wrong_dtype", f"has dtype {part.get_dtype()}, expected numbers that NumPy knows; store it as F32")
        return tuple(part.get_shape()), np.dtype(dtype)


def _safetensors_array(file: ArrayFile) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(file.path, "np") as tensors:
        return tensors.get_tensor(file.member)


def _require_member(file: ArrayFile, members: tuple[str, ...]) -> None:
    if file.member not in members:
        held = ", ".join(members) or "nothing"
        raise file.fault("missing_modality", f"holds {held}; add {file.member}, or leave it out of dataset.views")


def _one_member(file: ArrayFile) -> tuple[str, ...]:
    return ("",)


_READERS = {
    ".npy": (_npy_header, _npy_array, _one_member),
    ".npz": (_npz_header, _npz_array, _npz_members),
    ".safetensors": (_safetensors_header, _safetensors_array, _safetensors_members),
}
