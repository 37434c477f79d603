"""The shapes that travel between floors, and the error classes: no logic.

Letters: B rows of a batch, D feature width, L query tokens, M target tokens, F bins, T frames, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line raises these errors before torch is worth its seconds of import
    from torch import Tensor

Batch = dict[str, Any]
"""Tensors by role: radar {range_time, doppler_time, azimuth_time, mask}, text {input_ids, attention_mask}, image, reference,
target, label, weight, text_index, id, positive_key. Evaluation batches of sets with hard captions also hold hard_text (as text),
hard_row (row of the batch) and hard_kind (index into the data set's hard_kinds)."""


@dataclass
class Encoding:
    """What an encoder makes of B inputs; neither features nor sequence are normalised."""

    features: Tensor  # [B, D]
    sequence: Tensor | None = None  # [B, L, D]
    mask: Tensor | None = None  # [B, L] bool, True = real token


@dataclass
class Pair:
    """What a model makes of a batch: row i of the query belongs to row i of the target."""

    query: Encoding
    target: Encoding
    class_logits: Tensor | None = None  # [B, K]
    target_key: Tensor | None = None  # int64 [Bt]; None = the batch's positive_key


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: names in label order, the texts of each, rows of each in the training part.

    ordered: somebody has given the order (dataset.class_order), so that a miss by two classes is worse than by one.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    counts: tuple[int, ...]
    ordered: bool = False


@dataclass(frozen=True)
class TokenCorpus:
    """The training captions as sets of tokens: captions that hold each token id, their number, ids that frame a sentence."""

    counts: tuple[int, ...]
    documents: int
    special_ids: tuple[int, ...]


class MmexpertError(Exception):
    """Base of the errors that a user can act on; exit_code is the process's exit status."""

    exit_code = 1


class ConfigError(MmexpertError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class DataError(MmexpertError):
    """A data file or record is wrong; the message names file and record."""

    exit_code = 3


class RunFolderError(MmexpertError):
    """The run folder is locked, holds another run, or lacks what was asked for."""

    exit_code = 4


class StorageError(MmexpertError):
    """Writing failed: disk full, read-only folder, input/output error."""

    exit_code = 5


class NonFiniteError(MmexpertError, FloatingPointError):
    """A loss, gradient or metric is NaN or infinite."""

    exit_code = 6


class MemoryExhaustedError(MmexpertError):
    """The device or the machine has run out of memory."""

    exit_code = 7


class ProcessError(MmexpertError):
    """The processes of a launch disagree, or one of them (a rank, a loader worker) died."""

    exit_code = 8


class SourceError(MmexpertError):
    """A pretrained model's files are missing and cannot be fetched."""

    exit_code = 9


class SweepError(MmexpertError):
    """Jobs of a sweep failed."""

    exit_code = 10
