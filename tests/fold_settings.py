"""Settings of cross-validations for tests that change a few of them."""

import functools

from sklearn.model_selection import GroupKFold

from mmexpert.engine.folds import CvSettings


def group_settings(**changed):
    """Five folds by group, the last epoch's weights."""
    plain = {
        "method": "group", "splitter": functools.partial(GroupKFold, shuffle=True), "n_splits": 5, "n_repeats": 1, "seed": 0, "inner_val": 0.0,
        "selection": "last", "fold": None, "fractions": None, "small_classes": "error", "same_init": False, "headline": None,
        "over": "groups", "max_folds": 50, "file": None, "workers": 1, "refit": False, "inner_splits": None, "grid": None,
    }  # fmt: skip
    return CvSettings(**plain | changed)
