"""Pictures with captions from files of yours: five file forms, one data set (spec/retrieval.md section 1)."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.data.findings import DataFault, FaultList, Finding
from mmexpert.data.image_files import check_ending
from mmexpert.data.image_text_formats import Row, read_rows
from mmexpert.data.paths import inside
from mmexpert.data.picture_cache import Decoding, PictureCache
from mmexpert.data.pictures import SUFFIXES, open_picture
from mmexpert.data.records import Record, RecordDataset, normalize_caption
from mmexpert.data.scenes import caption_records, check_captions, drawn_caption, warn_of_flips
from mmexpert.data.splits import hash_split
from mmexpert.types import ConfigError

_FEW_PAIRS, _ADVISED_PAIRS = 50, 1000  # of the source: least, and advised, for training
_MANY_IMAGES, _LARGE_SHARE = 50, 0.05  # a component of equal captions beyond both is no accident
_LONG_CAPTION = 77  # tokens of CLIP's text tower; a caption has at least as many tokens as words


@dataclass(frozen=True)
class Picture:
    """An image of the data set with all that its rows say. name: path relative to root, with `/`: its id."""

    name: str
    path: Path
    captions: tuple[str, ...]
    split: str
    row: Row


@dataclass(kw_only=True, eq=False)
class ImageText(RecordDataset):
    """index: auto | folders | a file's name. columns: names of image, caption, split and id in the file. split: shares by hash, where
    the file tells none: {valid, test, seed}. captions of training: random (an item is an image, one caption an epoch) | first | all
    (an item is a pair); evaluation takes all. The constructor reads all headers; deep_check() decodes every image.

    Raises DataError and ConfigError before anything is trained.
    """

    root: str
    index: str
    columns: dict[str, str]
    split: dict[str, Any]
    captions: str
    positives: str
    exif: bool
    transform: Any
    cache: str
    cache_dir: str
    seed: int
    on_error: str
    allow_outside: bool

    unit_length, pad_to, max_length = 1, "batch", 1  # what collate asks of clips; pictures have none

    def __post_init__(self) -> None:
        check_captions(self.captions)
        if self.positives not in ("instance", "text"):
            raise ConfigError(f"dataset.positives={self.positives}: choose instance or text")
        hash_split("", self.split["valid"], self.split["test"], self.split["seed"])  # raises for shares that are none
        root, faults = Path(self.root), FaultList("image_text", self.on_error)
        pictures = merged(self._located(read_rows(root, self.index, self.columns, faults), root, faults), faults)
        pictures = parted(pictures, self.split, faults)
        faults.settle()  # after all rows: one run names them all
        if not any(picture.split == "train" for picture in pictures):
            faults.insist()
            raise DataFault(f"dataset.root={root}: no image is left for training", "wrong_field", str(root))
        self.paths = {picture.name: picture.path for picture in pictures}
        records = [expanded for picture in pictures for expanded in caption_records(_record(picture), self.captions)]
        super().__init__("image_text", records, self.positives)
        warn(pictures, faults)
        if self.positives == "text":
            warn_of_components(self, faults)
        faults.hand_over(self)
        warn_of_flips(self)
        self.pictures_kept = PictureCache(self.cache, self.cache_dir, self.paths, Decoding(self._pixels, [self.exif], "|u1"))

    def sample(self, record: Record, epoch: int, repeat: int) -> dict[str, Any]:
        """{'image': float32 [3, S, S], 'text'}."""
        text, rng = drawn_caption(record, self.captions, self.seed, epoch, repeat)
        return {"image": self.transform(Image.fromarray(self.pictures_kept(record.source)), rng), "text": text}

    def _pixels(self, name: str) -> np.ndarray:
        """uint8 [H, W, 3] of a file."""
        return np.asarray(open_picture(self.paths[name], name, self.exif))

    def deep_check(self) -> list[Finding]:
        """Every image decoded once."""
        findings = list(self.findings)
        for name, path in self.paths.items():
            try:
                self.transform(open_picture(path, name, self.exif), None)
            except DataFault as fault:
                findings.append(fault.finding())
        return findings

    def _located(self, rows: Iterable[Row], root: Path, faults: FaultList) -> list[Picture]:
        """The rows whose image is there and opens, each as a picture."""
        checked: dict[Path, DataFault | None] = {}
        pictures = []
        for row in rows:
            with faults.catching():
                path = self._path(row, root)
                if path not in checked:
                    checked[path] = _header_fault(path, row)
                if checked[path] is not None:
                    raise row.fault(checked[path].code, str(checked[path]))
                pictures.append(Picture(_name(path, row, root), path, row.captions, row.split, row))
        return pictures

    def _path(self, row: Row, root: Path) -> Path:
        """The image of a row: looked for below root, then beside the index. Raises DataFault."""
        if "\\" in row.image or "\0" in row.image:
            raise row.fault("missing_file", "is no path here; part folders with /")
        places = dict.fromkeys(Path(os.path.normpath(folder / row.image)) for folder in (root, row.file.parent))
        there = [place for place in places if place.is_file()]
        if not there:
            raise row.fault("missing_file", f"the image is missing; looked for {' and '.join(map(str, places))}")
        if len({place.resolve() for place in there}) > 1:
            both = " and ".join(map(str, there))
            raise row.fault("duplicate_content", f"{both} are both there; write the path relative to dataset.root, or remove one")
        if there[0].suffix.lower() not in SUFFIXES:
            raise row.fault("not_an_image", f"its name ends with none of {', '.join(SUFFIXES)}")
        return inside(there[0], (root, row.file.parent), self.allow_outside, row.where)


def merged(pictures: Sequence[Picture], faults: FaultList) -> list[Picture]:
    """One picture per file, sorted by name; captions in file order, each once. An image in two splits goes to faults."""
    rows: dict[Path, list[Picture]] = defaultdict(list)
    for picture in pictures:
        rows[picture.path.resolve()].append(picture)
    found, repeats = [], 0
    for same in rows.values():
        with faults.catching():
            first, splits = same[0], {picture.split: picture for picture in same if picture.split}
            if len(splits) > 1:
                one, other = list(splits.values())[:2]
                text = f"is in {other.split} and, by {one.row.where}, in {one.split}; remove it from one of them"
                raise other.row.fault("id_in_two_splits", text)
            captions = [caption for picture in same for caption in picture.captions]
            kept = tuple(dict.fromkeys(captions))
            repeats += len(captions) - len(kept)
            found.append(replace(first, captions=kept, split=next(iter(splits), "")))
    if repeats:
        faults.warn("duplicate_content", f"{faults.name}: {repeats} captions repeat another one of the same image and were left out")
    return sorted(found, key=lambda picture: picture.name)


def parted(pictures: Sequence[Picture], shares: dict[str, Any], faults: FaultList) -> list[Picture]:
    """Every picture with a split: its own, else by the hash of its name; where no picture is in valid, some of train go there."""
    told = {picture.split for picture in pictures} - {""}
    valid, test, seed = shares["valid"], shares["test"], shares["seed"]
    if not told:
        return [replace(picture, split=hash_split(picture.name, valid, test, seed)) for picture in pictures]
    usable = []
    for picture in pictures:
        with faults.catching():
            if not picture.split:
                raise picture.row.fault("wrong_field", "has no split, others have; write train, val or test for each image, or for none")
            usable.append(picture)
    if "valid" in told:
        return usable
    return [replace(p, split=hash_split(p.name, valid, 0.0, seed)) if p.split == "train" else p for p in usable]


def warn(pictures: Sequence[Picture], faults: FaultList) -> None:
    """What to look at before a long run: few pairs, long captions, captions of several images, equal files in two splits."""
    pairs = sum(len(picture.captions) for picture in pictures if picture.split == "train")
    if pairs < _FEW_PAIRS:
        message = f"{faults.name}: {pairs} training pairs, at least {_FEW_PAIRS} are needed to learn anything, {_ADVISED_PAIRS} advised"
        faults.warn("too_short", message)
    words = [len(caption.split()) for picture in pictures for caption in picture.captions]
    if long := sum(count > _LONG_CAPTION for count in words):
        share = f"{100 * long / len(words):.1f} % of the captions have more than {_LONG_CAPTION} words, the longest {max(words)}"
        faults.warn("long_caption", f"{faults.name}: {share}; a text tower of {_LONG_CAPTION} tokens truncates them")
    images = Counter(caption for picture in pictures for caption in {normalize_caption(text) for text in picture.captions})
    if shared := [caption for caption, count in images.items() if count > 1]:
        most = max(shared, key=images.__getitem__)
        message = f"{faults.name}: {len(shared)} captions occur with several images, such as {most!r} with {images[most]}"
        faults.warn("duplicate_content", f"{message}; dataset.positives=text counts these as positives")
    for one, other in equal_files(pictures):
        message = f"{other.path}: has the bytes of {one.path}, and they are in {other.split} and {one.split}; remove one"
        faults.warn("duplicate_content", message, str(other.path), other.name)


def warn_of_components(dataset: ImageText, faults: FaultList) -> None:
    """A warning where captions in common tie more than max(50, 5 %) of the images together: they are all positives of each other."""
    images: dict[int, set[str]] = defaultdict(set)
    captions: dict[int, Counter[str]] = defaultdict(Counter)
    for record, key in zip(dataset.records, dataset.keys.tolist(), strict=True):
        images[key].add(record.source)
        captions[key].update({normalize_caption(caption) for caption in record.captions})
    largest = max(images, key=lambda key: len(images[key]))
    if len(images[largest]) > max(_MANY_IMAGES, _LARGE_SHARE * len(dataset.paths)):
        caption = captions[largest].most_common(1)[0][0]
        message = f"{faults.name}: {len(images[largest])} images are positives of each other through captions such as {caption!r}"
        faults.warn("duplicate_content", f"{message}; make captions more telling, or set dataset.positives=instance")


def equal_files(pictures: Sequence[Picture]) -> list[tuple[Picture, Picture]]:
    """Pairs of pictures of different splits whose files have equal bytes; only files of equal size are read."""
    by_size: dict[int, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_size[picture.path.stat().st_size].append(picture)
    pairs = []
    for same in by_size.values():
        first: dict[bytes, Picture] = {}
        for picture in same if len({picture.split for picture in same}) > 1 else ():
            twin = first.setdefault(hashlib.sha256(picture.path.read_bytes()).digest(), picture)
            if twin.split != picture.split:
                pairs.append((twin, picture))
    return pairs


def _record(picture: Picture) -> Record:
    size = picture.path.stat().st_size
    return Record(id=picture.name, split=picture.split, group=picture.name, captions=picture.captions, source=picture.name, size=size)


def _header_fault(path: Path, row: Row) -> DataFault | None:
    try:
        check_ending(path, row.image)
    except DataFault as fault:
        return fault
    return None


def _name(path: Path, row: Row, root: Path) -> str:
    """Path relative to root, else to the index's folder, else whole."""
    for folder in (root, row.file.parent):
        if path.is_relative_to(os.path.normpath(folder)):
            return path.relative_to(os.path.normpath(folder)).as_posix()
    return path.as_posix()
