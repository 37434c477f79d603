"""What a classifier is worth beside: a linear head on its frozen features, and the nearest training picture, which learns nothing."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from mmexpert.evaluators.base import Collected
from mmexpert.evaluators.rows import gather_rows
from mmexpert.types import ConfigError

_SIDE = 32  # cells a side


def linear_probe(train: Collected, scored: Collected) -> dict[str, float]:
    """probe_acc, probe_balanced_acc: logistic regression on standardised query features [n, D] of the training part, not augmented."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.query.features.numpy(), train.label.numpy())
    return _scores("probe", probe.predict(scored.query.features.numpy()), scored.label.numpy())


def nearest_picture(loaders: Any, part: str) -> dict[str, float]:
    """nearest_acc, nearest_balanced_acc: the class of the training picture with the least squared distance, on means of 32 x 32 cells,
    standardised per picture. Raises ConfigError for data without pictures."""
    (known, classes), (asked, truth) = _cells(loaders, "train"), _cells(loaders, part)
    nearest = KNeighborsClassifier(1, algorithm="brute").fit(known, classes)
    return _scores("nearest", nearest.predict(asked), truth)


def _cells(loaders: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a part as rows [n, C * 32 * 32], in order of their ids, each once, and their classes [n]."""
    rows = []
    for batch in loaders.part(part):
        if "image" not in batch:
            raise ConfigError(f"evaluator.nearest_neighbour needs pictures, batches hold {', '.join(sorted(batch))}: set it to []")
        cells = F.adaptive_avg_pool2d(batch["image"].float().cpu(), _SIDE).flatten(1)
        cells = (cells - cells.mean(1, keepdim=True)) / cells.std(1, keepdim=True).clamp(min=1e-6)
        rows.append({"id": batch["id"].cpu(), "cells": cells, "label": batch["label"].cpu()})
    gathered = [row for rank in gather_rows(rows) for row in rank]
    ids, cells, labels = (torch.cat([row[name] for row in gathered]).numpy() for name in ("id", "cells", "label"))
    _, first = np.unique(ids, return_index=True)  # the last batch of a rank may repeat rows
    return cells[first], labels[first]


def _scores(name: str, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    recalls = [float((predicted[truth == k] == k).mean()) for k in np.unique(truth)]
    return {f"{name}_acc": float((predicted == truth).mean()), f"{name}_balanced_acc": float(np.mean(recalls))}
