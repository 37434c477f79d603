"""Class probabilities of a part by a stored model alone: its own class texts and head, no loss, no target side."""

from typing import Any

import numpy as np
import torch
from torch import nn

from mmexpert.types import ConfigError

TEXT_SCALE = 1 / 0.07  # of cosines that no head has scaled: the losses' first scale


def class_probabilities(model: nn.Module, loaders: Any, accelerator: Any, part: str) -> tuple[list[int], np.ndarray]:
    """(indices into the data set's records, ascending; [n, K] fp64), complete on every rank. Raises ConfigError for a model without
    classes."""
    texts = None
    if getattr(model, "prompt_ids", None) is not None:
        with torch.no_grad(), accelerator.autocast():
            texts = model.class_texts()  # once: the text tower may be the dearer one
    head = getattr(model, "head", None)
    if head is None and texts is None:
        raise ConfigError("this model has no classes, whose probabilities could be averaged: evaluate it on a data set with pairs")
    found: dict[int, np.ndarray] = {}
    for batch in loaders.part(part):
        with torch.no_grad(), accelerator.autocast():
            features = model.encode(model.query, batch[model.query]).features
            if head is not None:
                logits = head(features, texts if head.needs_class_texts else None)
            else:
                logits = TEXT_SCALE * nn.functional.normalize(features.float(), dim=1) @ texts.T
        rows = torch.softmax(logits.double(), 1).cpu().numpy()
        found |= dict(zip(batch["id"].tolist(), rows, strict=True))  # samplers pad with repeats: each id once
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, found)
        found = {index: row for one in parts for index, row in one.items()}
    ids = sorted(found)
    return ids, np.array([found[index] for index in ids])
