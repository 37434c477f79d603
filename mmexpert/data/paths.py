"""Names and paths that come from a data set's own files, which are not trusted: they stay below its root."""

from pathlib import Path

from mmexpert.data.findings import DataFault


def inside(path: Path, roots: tuple[Path, ...], allow_outside: bool, record: str) -> Path:
    """The path, if what it resolves to (links followed) lies below one of the roots. Raises DataFault otherwise."""
    if allow_outside or any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        return path
    raise DataFault(
        f"{path} (record {record}) leads outside {' and '.join(dict.fromkeys(map(str, roots)))}; move the file there, or set "
        "dataset.allow_outside=true if you trust this data set",
        "outside_root",
        str(path),
        record,
    )


def plain(name: str, record: str, file: Path) -> str:
    """The name, if it is a file's name and no path. Raises DataFault for separators and dots that climb."""
    if name and not any(mark in name for mark in "/\\\0") and name not in (".", ".."):
        return name
    message = f"{file}, record {record}: {name!r} is no plain file name; folders belong into filefolder"
    raise DataFault(message, "outside_root", str(file), record)
