"""Which rows of a part are queries and which are gallery, and metrics of smaller galleries cut out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmexpert.evaluators.base import Collected
from mmexpert.metrics.retrieval import rank_both, ranked_metrics
from mmexpert.types import ConfigError

_SHOWN = ("_R@", "_hits@", "_mean_rank", "_median_rank", "_MRR", "RSum")


@dataclass(frozen=True)
class Gallery:
    """A part as retrieval sees it: each item (image, clip) once on the query side, all its captions on the target side."""

    query: Tensor  # [Nq, D]
    target: Tensor  # [n, D]
    query_keys: Tensor  # [Nq]
    target_keys: Tensor  # [n]
    query_rows: Tensor  # [Nq] row of the collected part that stands for an item: its first
    owner: Tensor  # [n] item number of each target row

    @classmethod
    def of(cls, collected: Collected, records: Sequence[Any]) -> "Gallery":
        """records: the data set's; several records of one item are its captions."""
        items: dict[str, int] = {}
        rows, owner = [], []
        for row, index in enumerate(collected.ids.tolist()):
            name = records[index].item or records[index].id
            if name not in items:
                items[name] = len(items)
                rows.append(row)
            owner.append(items[name])
        first = torch.tensor(rows)
        features, keys = collected.query.features[first], collected.keys[first]
        return cls(features, collected.target.features, keys, collected.keys, first, torch.tensor(owner))

    def captions(self) -> dict[str, int]:
        """Least and most target rows of an item."""
        counts = torch.bincount(self.owner)
        return {"min": int(counts.min()), "max": int(counts.max())}

    def sliced(self, order: Tensor, size: int, roles: tuple[str, str], k: Sequence[int], ties: str) -> dict[str, float]:
        """Means over galleries of size items each, taken in the given order of items; what does not fill one is left out."""
        sums: dict[str, list[float]] = {}
        for items in order[: len(order) // size * size].split(size) if len(order) >= size else ():
            rows = torch.isin(self.owner, items).nonzero()[:, 0]
            parts = self.query[items], self.target[rows], self.query_keys[items], self.target_keys[rows]
            metrics = ranked_metrics(rank_both(*parts, roles, ties), (len(rows), len(items)), k)
            for name in (name for name in metrics if any(shown in name for shown in _SHOWN)):
                sums.setdefault(name, []).append(metrics[name])
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def small(self, size: int, roles: tuple[str, str], k: Sequence[int], ties: str) -> dict[str, float]:
        """galleryN_...: galleries of N items in a fixed random order; nothing where the part has fewer."""
        order = torch.randperm(len(self.query), generator=torch.Generator().manual_seed(0))
        return {f"gallery{size}_{name}": value for name, value in self.sliced(order, size, roles, k, ties).items()}

    def folds(self, size: int, roles: tuple[str, str], k: Sequence[int], ties: str) -> dict[str, float]:
        """foldsN_...: N items each, in id order ("COCO 1K" protocol). Raises ConfigError where the items do not divide."""
        if len(self.query) % size:
            raise ConfigError(f"evaluator.folds_of={size}: the part has {len(self.query)} items, not a multiple")
        order = torch.arange(len(self.query))
        return {f"folds{size}_{name}": value for name, value in self.sliced(order, size, roles, k, ties).items()}
