"""cv.small_classes=merge: classes with too few groups become one class `other`, in the run and wherever its weights are read."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

from mmexpert.data.records import RecordDataset, positive_keys
from mmexpert.engine.cv_settings import CvSettings
from mmexpert.engine.folds import classes_below
from mmexpert.types import ClassTable

log = logging.getLogger(__name__)
OTHER = "other"


def without_small(dataset: RecordDataset, settings: CvSettings) -> RecordDataset:
    """The data set with its small classes merged where settings say so, else as it is."""
    if settings.small_classes != "merge" or dataset.classes is None:
        return dataset
    small = classes_below(dataset.records, dataset, settings)
    if not small:
        return dataset
    log.warning("cv.small_classes=merge: %s are one class %r now", small, OTHER)
    return merge_classes(dataset, list(small))


def merge_classes(dataset: RecordDataset, names: Sequence[str]) -> RecordDataset:
    """The data set with the named classes as one class `other`, the last; a class of that name takes them up. It keeps all their texts.

    The classes have no order any more: `other` has no place in it.
    """
    if not names or dataset.classes is None:
        return dataset
    old = dataset.classes
    gone = {*names, *(name for name in old.names if name == OTHER)}
    kept = [name for name in old.names if name not in gone]
    label = {number: kept.index(name) if name in kept else len(kept) for number, name in enumerate(old.names)}
    merged = [number for number, name in enumerate(old.names) if name in gone]
    still = [number for number, name in enumerate(old.names) if name not in gone]
    found = copy.copy(dataset)
    found.classes = ClassTable(
        (*kept, OTHER),
        (*(old.texts[number] for number in still), tuple(text for number in merged for text in old.texts[number])),
        (*(old.counts[number] for number in still), sum(old.counts[number] for number in merged)),
    )
    found.records = [replace(record, label=label.get(record.label, record.label)) for record in dataset.records]
    found.keys = positive_keys(found.records, dataset.positives)
    found.merged = tuple(names)
    return found
