"""Image-text data sets as they lie on disk: JSON, JSONL, CSV, TSV, Karpathy's JSON, or two folders; all become rows (spec/retrieval.md 1).

A row is what one record says: an image as it is written there, its captions, perhaps a split. Which file that is, image_text.py finds out.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.parsed_json import parsed_json
from mmexpert.data.pictures import SUFFIXES
from mmexpert.data.radar_text_index import read_json
from mmexpert.types import ConfigError

SPLITS = {
    **{"train": "train", "restval": "train"},
    **{"valid": "valid", "val": "valid", "validation": "valid", "dev": "valid"},
    "test": "test",
}
"""Names of splits in files and folders -> parts; restval is Karpathy's."""
COLUMNS = ("image", "caption", "split", "id")
_SYNONYMS = {"image": ("image_path", "image", "filename"), "caption": ("caption", "captions"), "split": ("split",), "id": ("id",)}
_FILES = ("data.json", "data.jsonl", "data.csv", "data.tsv")
FOLDERS = "folders"


@dataclass(frozen=True)
class Row:
    """One record. image: as written; split: a part, "" = not told; where: file and line, row or index, for messages."""

    image: str
    captions: tuple[str, ...]
    split: str
    file: Path
    where: str

    def fault(self, code: str, text: str) -> DataFault:
        """The error of this record."""
        return DataFault(f"{self.where} ({self.image}): {text}", code, str(self.file), self.image)


def read_rows(root: Path, index: str, columns: dict[str, str], faults: FaultList) -> list[Row]:
    """All sound rows of a data set; wrong ones go to faults. Raises DataFault for what spoils it as a whole, ConfigError for keys.

    index: auto (what is there), folders, or the name of a file, relative to root.
    """
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ConfigError(f"dataset.columns.{unknown[0]}: there are {', '.join(COLUMNS)}")
    if not root.is_dir():
        raise DataFault(
            f"dataset.root={root}: there is no such folder; give the one that holds the pictures (dataset=scenes needs none)",
            "missing_file",
            str(root),
        )
    if index == "auto":
        index = _found(root)
    if index == FOLDERS:
        return list(_folder_rows(root, faults))
    path = root / index
    if not path.is_file():
        raise DataFault(f"dataset.index={index}: there is no such file in {root}", "missing_file", str(path))
    if path.suffix.lower() not in _READERS:
        raise ConfigError(f"dataset.index={index}: its name ends with {', '.join(_READERS)}, or it is {FOLDERS}")
    return list(_READERS[path.suffix.lower()](path, columns, faults))


def _found(root: Path) -> str:
    """The one form that lies in root. Raises DataFault where there is none or more than one."""
    there = [name for name in _FILES if (root / name).is_file()] + [FOLDERS] * bool(_folder_pairs(root))
    if len(there) == 1:
        return there[0]
    if there:
        message = f"dataset.root={root}: it holds {', '.join(there)}; say which one by dataset.index={there[0]}"
    else:
        message = f"dataset.root={root}: none of {', '.join(_FILES)} is there, nor images/ beside captions/; name one by dataset.index="
    raise DataFault(message, "missing_file" if not there else "duplicate_content", str(root))


def _json_rows(path: Path, columns: dict[str, str], faults: FaultList) -> Iterator[Row]:
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    karpathy = isinstance(images, list) and bool(images) and all(isinstance(image, dict) and "sentences" in image for image in images)
    if karpathy:
        yield from _rows(((f"images[{i}]", _of_karpathy(image)) for i, image in enumerate(images)), path, columns, faults)
    elif isinstance(content, list):
        yield from _rows(((f"record {i}", fields) for i, fields in enumerate(content)), path, columns, faults)
    else:
        expected = 'a list of {"image_path", "caption"}, or Karpathy\'s {"images": [{"filename", "split", "sentences"}]}'
        raise DataFault(f"{path}: is {type(content).__name__}, expected {expected}", "wrong_field", str(path))


def _of_karpathy(image: dict[str, Any]) -> dict[str, Any]:
    """An image of Karpathy's JSON with the usual keys; what is not as expected stays, for _row to name."""
    sentences = image["sentences"]
    captions = [s.get("raw") if isinstance(s, dict) else s for s in sentences] if isinstance(sentences, list) else sentences
    folder, name = image.get("filepath") or "", image.get("filename")
    told = {"image": f"{folder}/{name}" if folder and isinstance(name, str) else name, "caption": captions, "split": image.get("split")}
    return {key: value for key, value in told.items() if value is not None}


def _jsonl_rows(path: Path, columns: dict[str, str], faults: FaultList) -> Iterator[Row]:
    def records() -> Iterator[tuple[str, Any]]:
        """(line, object) of each line that holds one; the others go to faults."""
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                with faults.catching():
                    try:
                        fields = parsed_json(line)
                    except ValueError as error:
                        message = f"{path}, line {number}: no JSON object ({error}); one record a line"
                        raise DataFault(message, "json_syntax", str(path), f"line {number}") from error
                    yield f"line {number}", fields

    return _rows(records(), path, columns, faults)


def _table_rows(path: Path, columns: dict[str, str], faults: FaultList) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)

    def records() -> Iterator[tuple[str, Any]]:
        """(line, cells by column) of each row of as many cells as columns; an empty split is none."""
        for cells in reader:
            where = f"line {reader.line_num}"
            with faults.catching():
                if None in cells or None in cells.values():
                    found = "more" if None in cells else "fewer"
                    message = f"{path}, {where}: {found} cells than columns; quote cells that hold the delimiter"
                    raise DataFault(message, "wrong_field", str(path), where)
                yield where, {name: value for name, value in cells.items() if value or name != columns.get("split")}

    try:
        header = reader.fieldnames or []
        for key in ("image", "caption"):
            if not any(name in header for name in _names(key, columns)):
                there = ", ".join(header) or "none"
                message = f"{path}: no column {columns.get(key, key)!r}; there are {there}; map it by dataset.columns.{key}="
                raise DataFault(message, "wrong_field", str(path))
        yield from _rows(records(), path, columns, faults)
    except csv.Error as error:
        message = f"{path}, line {reader.reader.line_num}: {error}; quote cells that hold the delimiter or quotes"
        raise DataFault(message, "undecodable", str(path)) from error


def _rows(records: Iterable[tuple[str, Any]], path: Path, columns: dict[str, str], faults: FaultList) -> Iterator[Row]:
    """Checked rows of (place in the file, fields)."""
    count = 0
    for where, fields in records:
        count += 1
        with faults.catching():
            yield _row(path, where, fields, columns)
    if not count and not faults.faults:
        raise DataFault(f"{path}: holds no record", "wrong_field", str(path))


def _row(path: Path, where: str, fields: Any, columns: dict[str, str]) -> Row:
    """The row of one record. Raises DataFault for a missing key, a wrong type, an empty caption, an unknown split."""

    def fault(code: str, text: str) -> DataFault:
        return DataFault(f"{path}, {where}: {text}", code, str(path), where)

    if not isinstance(fields, dict):
        raise fault("wrong_field", f"is {type(fields).__name__}, expected an object with image and caption")
    found = {key: next((name for name in _names(key, columns) if fields.get(name) is not None), None) for key in COLUMNS}
    for key in ("image", "caption"):
        if found[key] is None:
            expected = " or ".join(dict.fromkeys(map(repr, _names(key, columns))))
            raise fault("wrong_field", f"there is no {expected}; it has {', '.join(map(str, fields)) or 'nothing'}")
    image, captions = fields[found["image"]], fields[found["caption"]]
    if not isinstance(image, str) or not image.strip():
        raise fault("wrong_field", f"{found['image']} is {image!r}, expected the path of a file")
    captions = captions if isinstance(captions, list) else [captions]
    if any(not isinstance(caption, str) for caption in captions):
        raise fault("wrong_field", f"{found['caption']} holds {captions!r}, expected a sentence or a list of them")
    if not captions or any(not caption.strip() for caption in captions):
        raise fault("empty_caption", f"{image}: a caption is empty; write it, or take the record out")
    split = fields[found["split"]] if found["split"] else ""
    if split and (not isinstance(split, str) or split.strip().lower() not in SPLITS):
        raise fault("wrong_field", f"{image}: the split {split!r} is unknown; write {', '.join(SPLITS)}")
    name = f", id {fields[found['id']]}" if found["id"] else ""
    part = SPLITS[split.strip().lower()] if split else ""
    return Row(image.strip(), tuple(caption.strip() for caption in captions), part, path, f"{path}, {where}{name}")


def _names(key: str, columns: dict[str, str]) -> list[str]:
    """The names by which a key is looked for: the configured one first."""
    return [*([columns[key]] if columns.get(key) else []), *_SYNONYMS[key]]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataFault(f"{path}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8", "undecodable", str(path)) from error


def _folder_pairs(root: Path) -> list[tuple[Path, str]]:
    """(folder with images/ and captions/, its part): root itself, or train/, val/, test/ below it."""
    below = [(folder, SPLITS[folder.name]) for folder in sorted(root.iterdir()) if folder.name in SPLITS]
    return [(folder, part) for folder, part in [(root, ""), *below] if (folder / "images").is_dir() and (folder / "captions").is_dir()]


def _folder_rows(root: Path, faults: FaultList) -> Iterator[Row]:
    """images/STEM.EXT beside captions/STEM.txt, a caption per non-empty line."""
    pairs = _folder_pairs(root)
    if not pairs:
        raise DataFault(f"dataset.root={root}: no images/ beside captions/, nor train/ with both", "missing_file", str(root))
    for folder, part in pairs:
        texts = {path.stem: path for path in sorted((folder / "captions").iterdir()) if path.suffix.lower() == ".txt"}
        images: dict[str, Path] = {}
        for path in sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in SUFFIXES):
            name = path.relative_to(root).as_posix()
            with faults.catching():
                if images.setdefault(path.stem, path) != path:
                    text = f"{path}: {images[path.stem].name} has the same stem, so both would have one caption file; rename one"
                    raise DataFault(text, "duplicate_id", str(path), name)
                if path.stem not in texts:
                    text = f"{path}: there is no {folder / 'captions' / path.stem}.txt; write its captions, a line each"
                    raise DataFault(text, "missing_file", str(path), name)
                captions = tuple(line.strip() for line in _text(texts[path.stem]).split("\n") if line.strip())
                if not captions:
                    raise DataFault(f"{texts[path.stem]}: holds no caption", "empty_caption", str(texts[path.stem]), name)
                yield Row(name, captions, part, texts[path.stem], str(texts[path.stem]))
        for stem in sorted(set(texts) - set(images)):
            with faults.catching():
                text = f"{texts[stem]}: there is no image {folder / 'images' / stem}.*; add it, or remove the captions"
                raise DataFault(text, "missing_file", str(texts[stem]), stem)


_READERS: dict[str, Callable[[Path, dict[str, str], FaultList], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
}
