"""What is wrong with a data set: the error that names file and record, the list of them, and the check that reads everything."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mmexpert.data.records import RecordDataset
from mmexpert.data.sampling import EVALUATION
from mmexpert.types import ConfigError, DataError

_REFUSED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)  # a file that a record names; a full disk is no record's fault
_NAMED = 10  # faults that a message spells out; the rest are counted, and listed in dropped.csv and by check_data

CODES = (
    "missing_file",
    "empty_file",
    "truncated",
    "not_an_array",
    "pickled_array",
    "wrong_shape",
    "wrong_dtype",
    "non_finite",
    "negative_amplitude",
    "zero_length",
    "too_short",
    "not_an_image",
    "undecodable",
    "too_many_pixels",
    "wrong_checksum",
    "json_syntax",
    "json_nan",
    "wrong_field",
    "wrong_interval",
    "empty_caption",
    "long_caption",
    "duplicate_id",
    "duplicate_content",
    "unknown_class",
    "class_without_text",
    "id_in_two_splits",
    "group_in_two_splits",
    "outside_root",
    "missing_modality",
    "unnamed_image",
    "constant_image",
    "no_group",
)
"""Kinds of faults; check_data prints them."""


@dataclass(frozen=True)
class Finding:
    """One line of check_data: severity error | warning, one of CODES, and what to do."""

    severity: str
    code: str
    file: str
    record: str
    advice: str


class DataFault(DataError):
    """One wrong file or record, told apart by its code. Arguments have defaults so that it survives the way back from a loader worker."""

    def __init__(self, message: str, code: str = "undecodable", file: str = "", record: str = "") -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(f"{code!r} is none of findings.CODES")
        self.code, self.file, self.record = code, file, record

    def finding(self) -> Finding:
        """The fault as a line of check_data."""
        return Finding("error", self.code, self.file, self.record, str(self))


class DataFaults(DataError):
    """All faults of a data set; the message spells out the first ten."""

    def __init__(self, message: str, faults: tuple[DataFault, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


@dataclass
class FaultList:
    """What reading a data set finds. on_error: stop (settle() raises, after everything has been read) | skip (the records are left out)."""

    name: str
    on_error: str
    faults: list[DataFault] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)  # beyond the faults: (file, record, reason)

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"dataset.on_error={self.on_error}: choose stop or skip")

    @contextmanager
    def catching(self) -> Iterator[None]:
        """A fault raised in this block is kept; what the block makes of its record is lost."""
        try:
            yield
        except DataFault as fault:
            self.faults.append(fault)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            message = f"{self.name}: {error.strerror}: {error.filename}; correct the record, or the rights of the file"
            self.faults.append(DataFault(message, "missing_file", str(error.filename)))

    def warn(self, code: str, message: str, file: str = "", record: str = "") -> None:
        """Something to look at that leaves no record out."""
        self.warnings.append(Finding("warning", code, file, record, message))

    def settle(self) -> None:
        """Raises DataFaults naming the first ten where on_error is stop."""
        if self.on_error == "stop":
            self.insist()

    def insist(self) -> None:
        """Raises DataFaults whatever on_error is: what the faults leave can not be used."""
        if not self.faults:
            return
        lines = [str(fault) for fault in self.faults[:_NAMED]]
        if len(self.faults) > _NAMED:
            lines.append(f"and {len(self.faults) - _NAMED} more")
        if len(self.faults) > 1:
            lines.insert(0, f"{self.name}: {len(self.faults)} faults")
        lines.append("Mend them, or set dataset.on_error=skip to leave these records out; they are then listed in dropped.csv")
        raise DataFaults("\n  ".join(lines), tuple(self.faults))

    def hand_over(self, dataset: RecordDataset) -> None:
        """Files the faults and warnings with a data set whose records have been taken."""
        dataset.findings = [fault.finding() for fault in self.faults] + self.warnings
        dataset.exclusions.dropped += [(fault.file, fault.record, str(fault)) for fault in self.faults] + self.dropped
        dataset.exclusions.warnings += [warning.advice for warning in self.warnings]


def deep_check(dataset: RecordDataset) -> list[Finding]:
    """Loads every record once as evaluation does; what reading found before comes first."""
    findings = list(getattr(dataset, "findings", ()))
    for index, record in enumerate(dataset.records):
        try:
            dataset[(index, EVALUATION, 0)]
        except DataFault as fault:
            findings.append(fault.finding())
        except DataError as error:
            findings.append(Finding("error", "undecodable", str(record.source), record.id, str(error)))
    return list(dict.fromkeys(findings))  # a file of several captions is one fault


def check_groups(name: str, records: list) -> None:
    """Raises DataFault where a group has records in two splits: its rows know each other."""
    owner: dict[str, str] = {}
    leaks = {r.group: r for r in records if owner.setdefault(r.group, r.split) != r.split}
    if leaks:
        group, record = next(iter(leaks.items()))
        raise DataFault(
            f"{name}: {len(leaks)} groups are in two splits, such as {group!r} in {owner[group]} and {record.split} (record {record.id}); "
            "put all records of a group into one split",
            "group_in_two_splits",
            str(record.source),
            record.id,
        )
