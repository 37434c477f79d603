"""Which images a folder holds and what is said of each: class folders (layout A), or a metadata.csv (layout B)."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.paths import inside
from mmexpert.data.radiographs import SUFFIXES

METADATA = "metadata.csv"
_SPLITS = ("train", "valid", "test")
_KNOWN = ("file", "id", "split", "text", "sha256", "side")  # beside the label and group columns, which keys name


@dataclass(frozen=True)
class Row:
    """One image. file: relative to root, with `/`; where: file and line for messages. group, split, text, sha256, side: "" = not told."""

    file: str
    path: Path
    id: str
    label: str
    where: str
    group: str = ""
    split: str = ""
    text: str = ""
    sha256: str = ""
    side: str = ""
    extra: dict[str, str] = field(default_factory=dict)  # columns that mean nothing here, for the predictions

    def fault(self, code: str, message: str) -> DataFault:
        """The fault of this row, naming its line and id."""
        return DataFault(f"{self.where} (id {self.id}): {message}", code, str(self.path), self.id)


@dataclass(frozen=True)
class ImageIndex:
    """rows: all images. columns: the columns of metadata.csv, none in layout A."""

    rows: list[Row]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """label: the column of the class. group: the column of the patient, None = no groups."""

    label: str
    group: str | None


def read_index(root: Path, metadata: str | None, columns: Columns, allow_outside: bool, faults: FaultList) -> ImageIndex:
    """The images of a folder: by its metadata.csv, or by `metadata` (from here, else from root), else by class folders."""
    if not root.is_dir():
        raise DataFault(
            f"dataset.root={root}: there is no such folder; it should hold <class>/**/*.png or a {METADATA}", "missing_file", str(root)
        )
    path = root / METADATA
    if metadata is not None:
        path = next((path for path in (Path(metadata), root / metadata) if path.is_file()), None)
        if path is None:
            message = f"dataset.metadata={metadata}: there is no such file, here or in {root}"
            raise DataFault(message, "missing_file", str(metadata))
    if not path.is_file():
        return ImageIndex(list(_class_folders(root, allow_outside, faults)), ())
    index = _read_csv(path, root, columns, allow_outside, faults)
    named = {row.file for row in index.rows}
    unnamed = [file for file in image_files(root) if file.relative_to(root).as_posix() not in named]
    if unnamed:
        message = f"{root}: {len(unnamed)} images are not in {path.name} and stay out, such as {unnamed[0].relative_to(root)}"
        faults.warn("unnamed_image", message, str(unnamed[0]))
    return index


def image_files(root: Path) -> list[Path]:
    """Images below a folder, sorted by their path as text; hidden files and folders stay out."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    return sorted(shown, key=lambda path: path.relative_to(root).as_posix())


def _class_folders(root: Path, allow_outside: bool, faults: FaultList) -> Iterator[Row]:
    """Layout A: root/<class>/**/image."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    stray = [path for path in image_files(root) if path.parent == root]
    if stray:
        message = f"{root}: {len(stray)} images lie in no class folder and stay out, such as {stray[0].name}"
        faults.warn("unnamed_image", message, str(stray[0]))
    if not folders:
        message = f"dataset.root={root}: no {METADATA} and no class folders; lay images out as <class>/<image>"
        raise DataFault(message, "missing_file", str(root))
    for folder in folders:
        files = image_files(folder)
        if not files:
            message = f"{folder}: the class folder holds no image ({', '.join(SUFFIXES)}); remove it or fill it"
            faults.faults.append(DataFault(message, "missing_file", str(folder), folder.name))
        for path in files:
            file = path.relative_to(root).as_posix()
            with faults.catching():
                inside(path, (root,), allow_outside, file)
                yield Row(file, path, file, folder.name, str(path))


def _read_csv(path: Path, root: Path, columns: Columns, allow_outside: bool, faults: FaultList) -> ImageIndex:
    """Layout B. Raises DataFault for what spoils the whole table; faults of rows are collected."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataFault(f"{path}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8", "undecodable", str(path)) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = tuple(reader.fieldnames or ())
        _check_header(header, path, columns)
        for cells in reader:
            with faults.catching():
                row = _row(cells, f"{path}, line {reader.line_num}", path, root, columns)
                inside(row.path, (root,), allow_outside, row.id)
                rows.append(row)
    except csv.Error as error:
        raise DataFault(
            f"{path}, line {reader.reader.line_num}: {error}; quote cells that hold commas or quotes", "undecodable", str(path)
        ) from error
    return ImageIndex(_unique(rows, faults), header)


def _check_header(header: tuple[str, ...], path: Path, columns: Columns) -> None:
    there = ", ".join(header) or "none"
    double = [name for name in header if header.count(name) > 1]
    if double:
        raise DataFault(f"{path}: the column {double[0]!r} is there twice; rename one", "wrong_field", str(path))
    for name, key in (("file", "file (the image, relative to root)"), (columns.label, "dataset.label_column")):
        if name not in header:
            raise DataFault(f"{path}: no column {name!r}, which is {key}; there are {there}", "wrong_field", str(path))


def _row(cells: dict[Any, Any], where: str, path: Path, root: Path, columns: Columns) -> Row:
    """The row of a line. Raises DataFault."""
    file = (cells.get("file") or "").strip()
    if None in cells or None in cells.values():
        found = "more" if None in cells else "fewer"
        raise DataFault(f"{where}: {found} cells than columns; quote cells that hold commas", "wrong_field", str(path), file)
    cells = {name: value.strip() for name, value in cells.items()}
    if not file:
        raise DataFault(f"{where}: the file is empty; name an image relative to {root}", "wrong_field", str(path))
    if "\\" in file or "\0" in file:
        raise DataFault(f"{where}: the file {file!r} is no path here; part folders with /", "missing_file", str(path), file)
    row = Row(
        file=file,
        path=root / file,
        id=cells.get("id") or file,
        label=cells[columns.label],
        where=where,
        group=cells.get(columns.group, "") if columns.group else "",
        split=cells.get("split", ""),
        text=cells.get("text", ""),
        sha256=cells.get("sha256", "").lower(),
        side=cells.get("side", ""),
        extra={name: value for name, value in cells.items() if name not in (*_KNOWN, columns.label, columns.group)},
    )
    if not row.label:
        raise row.fault("wrong_field", f"the label (column {columns.label!r}) is empty; write the class or remove the line")
    if columns.group in cells and not row.group:
        raise row.fault("wrong_field", f"the group (column {columns.group!r}) is empty; write the patient, each alone where unknown")
    if "split" in cells and row.split not in _SPLITS:
        raise row.fault("wrong_field", f"the split {row.split!r} is unknown; write {', '.join(_SPLITS)}")
    return row


def _unique(rows: list[Row], faults: FaultList) -> list[Row]:
    """Rows without those that repeat an id or a file."""
    kept: dict[str, Row] = {}
    files: dict[str, Row] = {}
    for row in rows:
        twin = kept.get(row.id) or files.get(row.file)
        if twin is None:
            kept[row.id] = files[row.file] = row
            continue
        with faults.catching():
            what = "id" if twin.id == row.id else f"file {row.file!r}"
            code = "id_in_two_splits" if twin.split != row.split else "duplicate_id"
            raise row.fault(code, f"the {what} is that of {twin.where} too; give each its own")
    return list(kept.values())
