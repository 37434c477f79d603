"""Which images are of one patient, by column or file name; and images of equal bytes, which must not straddle folds unseen."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.image_index import METADATA, Columns, ImageIndex, Row
from mmexpert.data.radiographs import pixel_digest
from mmexpert.types import ConfigError

KINDS = ("error", "merge", "warn")
_BLOCK = 1 << 20
_USUAL = "group"  # the column that may be absent; another name is a promise that it is there


def grouped(index: ImageIndex, columns: Columns, pattern: str | None, faults: FaultList) -> tuple[list[Row], str]:
    """Rows with their groups, and how those were found: declared | none declared (dataset.group_column=null) | unknown.

    pattern: a regular expression on the file name whose first bracket is the group; goes before the column. Where nothing tells, each
    image is its own group, which is a warning. Raises ConfigError for a pattern without bracket, DataFault for a column that is not
    there.
    """
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"dataset.group_from={pattern}: no regular expression ({error})") from error
        if not compiled.groups:
            raise ConfigError(rf"dataset.group_from={pattern}: its first bracket is the group, and it has none; such as '^(P\d+)_'")
        return list(_matched(index.rows, compiled, faults)), "declared"
    if columns.group is None:
        return [replace(row, group=row.id) for row in index.rows], "none declared"
    if columns.group in index.columns:
        return index.rows, "declared"
    if columns.group != _USUAL:
        there = ", ".join(index.columns) or "none: there is no metadata.csv"
        raise DataFault(f"dataset.group_column={columns.group}: there is no such column; there are {there}", "wrong_field")
    faults.warn(
        "no_group",
        f"nothing says which images are of one patient: each counts as its own, and a grouped cv (group, stratified_group, repeated, "
        f"nested, leave_one_group_out) will refuse them. {group_remedy(columns.group)}",
    )
    return [replace(row, group=row.id) for row in index.rows], "unknown"


def group_remedy(column: str) -> str:
    """The three ways to say which images are of one patient."""
    return (
        f"Give {METADATA} a column {column!r}; or set dataset.group_from to a regular expression on the file name whose first bracket is "
        r"the patient, such as '^(P\d+)_'; or set dataset.group_column=null, which declares each image its own patient"
    )


def _matched(rows: Iterable[Row], pattern: re.Pattern, faults: FaultList) -> Iterable[Row]:
    for row in rows:
        with faults.catching():
            match = pattern.search(row.path.name)
            if match is None or not match[1]:
                raise row.fault("wrong_field", f"dataset.group_from={pattern.pattern} finds no group in {row.path.name!r}")
            yield replace(row, group=match[1])


def digest(path: Path) -> str:
    """SHA-256 of a file, read in blocks: a film can be larger than what one wants in memory at once."""
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def check_sums(rows: Iterable[Row], faults: FaultList) -> tuple[list[Row], dict[str, str]]:
    """Rows whose file has the sha256 that they name, if any; and the digests of the files that were read, by id.

    The sha256 of the stored pixels will do as well: sets that were unpacked from an array name that one.
    """
    kept, known = [], {}
    for row in rows:
        with faults.catching():
            if row.sha256:
                known[row.id] = digest(row.path)
                if row.sha256 != known[row.id] and row.sha256 != pixel_digest(row.path, row.id):
                    found = f"{known[row.id][:12]}..., the sha256 column says {row.sha256[:12]}..., which its pixels do not have either"
                    raise row.fault("wrong_checksum", f"{row.path} has the sha256 {found}; copy the file again")
            kept.append(row)
    return kept, known


def settle_duplicates(rows: list[Row], kind: str, known: dict[str, str], faults: FaultList) -> list[Row]:
    """Rows after the rule of dataset.duplicates: error (left out and reported) | merge (their groups become one) | warn.

    Equal bytes under two labels are an error under each rule. known: digests by id; the rest is read only where two sizes are equal.
    """
    if kind not in KINDS:
        raise ConfigError(f"dataset.duplicates={kind}: choose {', '.join(KINDS)}")
    sizes: dict[int, list[Row]] = {}
    for row in rows:
        sizes.setdefault(row.path.stat().st_size, []).append(row)
    twins: dict[str, list[Row]] = {}
    for row in (row for same in sizes.values() if len(same) > 1 for row in same):
        twins.setdefault(known.get(row.id) or digest(row.path), []).append(row)
    out: set[str] = set()
    merged: dict[str, str] = {}
    for first, *others in twins.values():
        for row in others:
            with faults.catching():
                if row.label != first.label:
                    if first.id not in out:  # which label is wrong nobody knows: neither stays under on_error=skip
                        faults.dropped.append((str(first.path), first.id, f"{row.path} has its bytes under another label"))
                    out |= {first.id, row.id}
                    message = f"{row.path} ({row.label}) has the bytes of {first.path} ({first.label}); one image has one label, remove one"
                    raise row.fault("duplicate_content", message)
                _settle(first, row, kind, merged, out, faults)
    kept = [row for row in rows if row.id not in out]
    return [replace(row, group=_root(row.group, merged)) for row in kept]


def _settle(first: Row, row: Row, kind: str, merged: dict[str, str], out: set[str], faults: FaultList) -> None:
    """Two images of equal bytes and label. Raises DataFault under `error`."""
    one, other = _root(first.group, merged), _root(row.group, merged)
    if one == other:
        return
    message = f"{row.path} (group {row.group}) has the bytes of {first.path} (group {first.group})"
    if kind == "merge":
        merged[max(one, other)] = min(one, other)
    elif kind == "warn":
        faults.warn("duplicate_content", f"{message}: folds may part them", str(row.path), row.id)
    else:
        out.add(row.id)
        raise row.fault("duplicate_content", f"{message}; give them one group, or set dataset.duplicates=merge")


def _root(group: str, merged: dict[str, str]) -> str:
    while group in merged:
        group = merged[group]
    return group
