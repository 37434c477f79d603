"""A corpus of broken data files: each spoils one file of a sound data set, and the check must report it, by name.

python scripts/broken_files.py      # prints `N broken files, N reported`
"""

import contextlib
import io
import json
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sound_sets import FAMILIES, TABLE, TEXTS, npy


@dataclass(frozen=True)
class Broken:
    """family: radar (arrays and a split file), films (pictures and a table), sessions (RadHAR). file: what is spoilt, below the root.

    spoil: whole bytes -> broken ones; None removes the file.
    """

    family: str
    name: str
    file: str
    spoil: Callable[[bytes], bytes] | None


def png(side: int, declared: int | None = None) -> bytes:
    """A grey PNG; declared: the side that its header tells instead, with a right checksum."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    if declared:
        content[16:24] = struct.pack(">II", declared, declared)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def spoilt(value: float) -> Callable[[bytes], bytes]:
    """One number of an array becomes value."""

    def spoil(content: bytes) -> bytes:
        array = np.load(io.BytesIO(content))
        array[3, 3] = value
        return npy(array)

    return spoil


def record(**changes: object) -> Callable[[bytes], bytes]:
    """The first record of a split file gets other fields; None removes one."""

    def spoil(content: bytes) -> bytes:
        records = json.loads(content)
        records[0] = {key: value for key, value in (records[0] | changes).items() if value is not None}
        return json.dumps(records).encode()

    return spoil


def row(line: int, text: str) -> Callable[[bytes], bytes]:
    """A line of a table becomes text."""

    def spoil(content: bytes) -> bytes:
        lines = content.decode().splitlines()
        lines[line] = text
        return "\n".join(lines).encode() + b"\n"

    return spoil


def bomb(_: bytes) -> bytes:
    """A zip that declares 5 GiB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("range_time.npy", "w", force_zip64=True) as member:
        member.write(npy(np.zeros((1, 1)))[:128])
    content = stream.getvalue()
    size = struct.pack("<I", 0xFFFFFFF0)
    at = content.rindex(b"PK\x01\x02") + 24
    return content[:at] + size + content[at + 4 :]


_ARRAY, _TRAIN, _FILM, _SESSION = "clips/doppler_time/000001.npy", "train.json", "fixed/P0_0.png", "Train/walk/walk_1.txt"


def _radar() -> list[Broken]:
    arrays = {
        "missing": None,
        "empty": lambda b: b"",
        "header only": lambda b: b[:128],
        "magic only": lambda b: b[:6],
        "cut in the header": lambda b: b[:40],
        "cut by one byte": lambda b: b[:-1],
        "cut in half": lambda b: b[: len(b) // 2],
        "text": lambda b: b"0.1 0.2 0.3\n" * 50,
        "a picture": lambda b: png(16),
        "a zip": lambda b: b"PK\x03\x04" + b[4:],
        "a pickle": lambda b: b"\x80\x04" + b[2:],
        "pickled objects": lambda b: npy(np.array([{"a": 1}], dtype=object), pickled=True),
        "header that is code": lambda b: b[:10] + b"__import__('os').system('true')".ljust(118) + b[128:],
        "unknown version": lambda b: b[:6] + b"\x09\x00" + b[8:],
        "transposed": lambda b: npy(np.load(io.BytesIO(b)).T.copy()),
        "another view's rows": lambda b: npy(np.ones((256, 40), np.float32)),
        "one dimension": lambda b: npy(np.ones(128, np.float32)),
        "three dimensions": lambda b: npy(np.ones((1, 128, 40), np.float32)),
        "no frames": lambda b: npy(np.ones((128, 0), np.float32)),
        "fewer frames than the other views": lambda b: npy(np.ones((128, 39), np.float32)),
        "complex": lambda b: npy(np.ones((128, 40), complex)),
        "words": lambda b: npy(np.full((128, 40), "x")),
        "dates": lambda b: npy(np.zeros((128, 40), "M8[s]")),
        "NaN": spoilt(float("nan")),
        "infinity": spoilt(float("inf")),
        "negative": spoilt(-1.0),
    }  # fmt: skip
    splits = {
        "missing": None,
        "empty": lambda b: b"",
        "cut": lambda b: b[:-20],
        "NaN": lambda b: b.replace(b'"caption 0"', b"NaN"),
        "latin-1": lambda b: b.replace(b"caption 0", b"caf\xe9"),
        "a number": lambda b: b"7",
        "nested too deeply": lambda b: b"[" * 100_000,
        "record is a list": lambda b: b"[[1, 2]]",
        "key twice": lambda b: b.replace(b'"filefolder"', b'"fileindex"', 1),
        "no captions": record(captions=None),
        "empty caption": record(captions=[" "]),
        "caption is a number": record(captions=[3]),
        "file elsewhere": record(filefolder="../../etc"),
        "absolute folder": record(filefolder="/etc"),
        "file that is a path": record(fileindex="../000001"),
        "file that is not there": record(fileindex="999999"),
        "id twice": record(fileindex="000001"),
        "class is a word": record(classid="one"),
    }  # fmt: skip
    return [Broken("radar", f"array: {name}", _ARRAY, spoil) for name, spoil in arrays.items()] + [
        Broken("radar", f"split file: {name}", _TRAIN, spoil) for name, spoil in splits.items()
    ]


def _films() -> list[Broken]:
    pictures = {
        "missing": None,
        "empty": lambda b: b"",
        "text": lambda b: b"no picture",
        "cut": lambda b: b[: len(b) // 2],
        "cut by 40 bytes": lambda b: b[:-40],
        "flipped bytes": lambda b: b[:60] + bytes(255 - x for x in b[60:80]) + b[80:],
        "too many pixels": lambda b: png(16, 20_000),
        "a page": lambda b: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }  # fmt: skip
    tables = {
        "empty": lambda b: b"",
        "no label column": row(0, "file,diagnosis,group"),
        "empty label": row(1, "fixed/P0_0.png, ,P0"),
        "file twice": row(2, "fixed/P0_0.png,fixed,P0"),
        "file outside": row(1, "../../../etc/passwd,fixed,P0"),
        "absolute file": row(1, "/etc/passwd,fixed,P0"),
        "one cell too many": row(1, "fixed/P0_0.png,fixed,P0,more"),
        "latin-1": lambda b: b.replace(b"P0\n", b"P\xe9\n", 1),
        "null byte in a file's name": lambda b: b.replace(b"P0_0.png", b"P0_0\x00.png", 1),
    }  # fmt: skip
    texts = {
        "cut": lambda b: b[:-2],
        "NaN": lambda b: b'{"fixed": NaN, "loose": "a"}',
        "a class missing": lambda b: b'{"fixed": "a"}',
        "empty text": lambda b: b'{"fixed": "", "loose": "a"}',
        "a list": lambda b: b'["fixed", "loose"]',
        "text is a number": lambda b: b'{"fixed": 3, "loose": "a"}',
    }  # fmt: skip
    named = {_FILM: ("picture", pictures), TABLE: ("table", tables), TEXTS: ("class texts", texts)}
    return [Broken("films", f"{kind}: {name}", file, spoil) for file, (kind, all_of) in named.items() for name, spoil in all_of.items()]


def _sessions() -> list[Broken]:
    spoils = {
        "empty": lambda b: b"",
        "zeros": lambda b: bytes(1000),
        "no numbers": lambda b: b.replace(b"range: 3.0", b"range: far"),
        "a table": lambda b: b"x,y,z\n1,2,3\n",
        "gzip without its suffix": lambda b: b"\x1f\x8b\x08" + b[3:60],
    }
    return [Broken("sessions", f"session: {name}", _SESSION, spoil) for name, spoil in spoils.items()]


CORPUS = [*_radar(), *_films(), *_sessions()]


def errors_of(family: str, root: Path, cache: Path) -> list[str]:
    """What check_data says of a data set. Raises what it raises."""
    from omegaconf import OmegaConf

    from mmexpert import check_data
    from mmexpert.command_line import composed
    from mmexpert.types import DataError

    cfg = composed(f"dataset={FAMILIES[family][1]}", f"dataset.root='{root}'", name="check_data")
    node = OmegaConf.to_container(cfg.dataset, resolve=True)
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(cache):  # the report is written below the working folder
            _, findings = check_data.check_config(node | ({"cache_dir": str(cache)} if "cache_dir" in node else {}), (), 0)
    except DataError as error:
        return [str(error)]
    return [f"{finding.code}: {finding.advice}" for finding in findings if finding.severity == "error"]


def reported(case: Broken, folder: Path) -> bool:
    """Whether the spoilt file is reported by its name, or its record's; anything but an error of the project is not."""
    root = folder / "data"
    FAMILIES[case.family][0](root)
    path = root / case.file
    if case.spoil is None:
        path.unlink()
    else:
        path.write_bytes(case.spoil(path.read_bytes()))
    try:
        errors = errors_of(case.family, root, folder)
    except Exception as error:  # noqa: BLE001  whatever it is, it is no report
        print(f"{case.family}, {case.name}: {type(error).__name__}: {error}")
        return False
    names = (path.name, path.stem, "passwd")
    if not any(name in error for error in errors for name in names):
        print(f"{case.family}, {case.name}: reported {errors[:2]}")
        return False
    return True


def main() -> None:
    """Prints how many are reported; exit code 1 when one is not."""
    with tempfile.TemporaryDirectory() as folder:
        found = [reported(case, Path(folder) / str(number)) for number, case in enumerate(CORPUS)]
    print(f"{len(found)} broken files, {sum(found)} reported")
    sys.exit(not all(found))


if __name__ == "__main__":
    main()
