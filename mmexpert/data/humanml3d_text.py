"""HumanML3D's small files: caption lines, split lists, and which ids are one motion (Guo et al., CVPR 2022)."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.paths import plain

JOINT_FPS = 20.0
SPLIT_LISTS = {"train": "train.txt", "valid": "val.txt", "test": "test.txt"}
_SHORTEST_S = 0.5
_BEYOND_S = 0.1  # so much may a sub-clip's end lie behind the clip's: the source rounds


def motion_group(name: str) -> str:
    """The motion that an id shows: mirrored (M before the number) and rotated (a letter A..H behind it) takes are the same."""
    found = re.fullmatch(r"M?(\d+)[A-H]?", name)
    return found[1] if found else name


@dataclass(frozen=True)
class CaptionLine:
    """A caption and the joint frames [begin, end) that it tells of."""

    caption: str
    begin: int
    end: int


def read_captions(path: Path, frames: int, faults: FaultList) -> list[CaptionLine]:
    """All captions of a motion of `frames` joint frames; a wrong line goes to faults, the others stay.

    Raises DataFault where the file is missing, no text, or has no line at all.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        message = f"{path}: there is no such file, its joints are there; add it, or take {path.stem} out"
        raise DataFault(message, "missing_file", str(path), path.stem) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataFault(f"{path}: can not be read as UTF-8 text ({error}); write it again", "undecodable", str(path), path.stem) from error
    if not any(lines):
        raise DataFault(f"{path}: there is no caption; write one a line, caption#tokens#start#end", "empty_caption", str(path), path.stem)
    found = []
    for number, line in enumerate(lines, 1):
        if line:
            with faults.catching():
                found.append(_caption_line(line, frames, path, number))
    return found


def _caption_line(line: str, frames: int, path: Path, number: int) -> CaptionLine:
    """One line `caption#tokens#start_s#end_s`; nan or 0.0 for both = the whole clip."""

    def fault(code: str, text: str) -> DataFault:
        return DataFault(f"{path}, line {number}: {text}", code, str(path), f"{path.stem} line {number}")

    fields = line.split("#")
    if len(fields) != 4:
        raise fault("wrong_field", f"{len(fields)} fields parted by #, expected 4: caption#tokens#start#end")
    caption = fields[0].strip()
    if not caption:
        raise fault("empty_caption", "the caption is empty; write one, or remove the line")
    try:
        start, end = (0.0 if math.isnan(float(field)) else float(field) for field in fields[2:])  # nan stands for 0 in the source
    except ValueError:
        raise fault("wrong_field", f"start {fields[2]!r} and end {fields[3]!r} must be seconds") from None
    seconds = frames / JOINT_FPS
    if start == end == 0:
        return CaptionLine(caption, 0, frames)
    if not 0 <= start < end:
        raise fault("wrong_interval", f"the sub-clip ends at {end:g} s and begins at {start:g} s; the end must come after the start")
    if end > seconds + _BEYOND_S:
        raise fault("wrong_interval", f"the sub-clip ends at {end:g} s, the motion has {seconds:g} s; correct the end")
    if end - start < _SHORTEST_S:
        raise fault("too_short", f"the sub-clip has {end - start:.2f} s, at least {_SHORTEST_S} s are needed; remove the line")
    return CaptionLine(caption, round(JOINT_FPS * start), min(round(JOINT_FPS * end), frames))


def read_split_lists(root: Path, faults: FaultList) -> dict[str, str]:
    """Split of each id in train.txt, val.txt and test.txt, those that exist; an id in two of them is a fault."""
    split_of: dict[str, str] = {}
    for split, file_name in SPLIT_LISTS.items():
        path = root / file_name
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            name = line.strip()
            if not name:
                continue
            with faults.catching():
                before = split_of.setdefault(plain(name, f"line {number}", path), split)
                if before != split:
                    message = f"{path}, line {number}: {name} is in {SPLIT_LISTS[before]} too; remove it from one of them"
                    raise DataFault(message, "id_in_two_splits", str(path), name)
    return split_of
