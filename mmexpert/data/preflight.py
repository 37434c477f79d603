"""Are all pictures of a run there? Asked before the first step, by one listing of each folder and not by a look at each file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmexpert.data.findings import DataFault, DataFaults

_NAMED = 10


def find_pictures(wanted: Mapping[str, Sequence[Path]]) -> tuple[dict[str, Path], list[str]]:
    """(path of each picture by name, sorted names that are nowhere). wanted: candidates by name, the first that is there counts."""
    folders: dict[Path, frozenset[str]] = {}
    found: dict[str, Path] = {}
    for name, candidates in wanted.items():
        for path in candidates:
            if path.parent not in folders:
                folders[path.parent] = _listing(path.parent)
            if path.name in folders[path.parent]:
                found[name] = path
                break
    return found, sorted(set(wanted) - set(found))


def _listing(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def write_missing(names: Sequence[str], file: Path) -> None:
    """All missing names, one a line; replaced in one step, since several runs may name the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    os.replace(temporary, file)


def missing_pictures(missing: Sequence[str], wanted: Mapping[str, Sequence[Path]], where: str, file: Path) -> DataFaults:
    """The error of missing pictures: count, folder and pattern (where), first 10 names, the file that lists all, and the remedy."""
    shown = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    faults = tuple(
        DataFault(f"{wanted[name][0]}: there is no such picture", "missing_file", str(wanted[name][0]), name) for name in missing
    )
    return DataFaults(
        f"{len(missing)} of {len(wanted)} pictures are not in {where}: {shown}; all of them are listed in {file}. Fetch them or correct "
        "dataset.image_root; dataset.allow_missing=true goes on without them, and marks every result as partial",
        faults,
    )
