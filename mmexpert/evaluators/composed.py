"""Composed retrieval: every query of a part against the gallery of its category, FashionIQ's or CIRR's figures."""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.evaluators.base import Collected, Evaluation, part_losses
from mmexpert.evaluators.composed_files import composed_tables, ranks_rows
from mmexpert.evaluators.rows import gather_rows
from mmexpert.metrics.composed import (
    CIRR_K,
    COMBINE,
    FASHIONIQ_K,
    GROUP_K,
    ComposedRanks,
    cirr_metrics,
    combined,
    fashioniq_metrics,
    group_ranks,
    rank_targets,
)
from mmexpert.metrics.retrieval import recall
from mmexpert.types import Batch, ConfigError, DataError, Encoding

log = logging.getLogger(__name__)
PROTOCOLS = ("fashioniq", "cirr")


@dataclass(frozen=True)
class Composed:
    """An encoded part, fp32 on the CPU: pictures sorted by id (position in the split's names), queries by index of their record."""

    picture_ids: Tensor  # int64 [Ng]
    pictures: Tensor  # [Ng, D], raw
    ids: Tensor  # int64 [Nq]
    query: Tensor  # [Nq, D]
    reference: Tensor  # int64 [Nq] row of pictures
    target: Tensor | None  # int64 [Nq] row of pictures; None where the split keeps it secret
    members: Tensor | None  # int64 [Nq, 6] rows of pictures


class ComposedEvaluator:
    """protocol: auto (cirr where queries have groups) | fashioniq (reference in the gallery) | cirr (reference out, recall in the group).

    combine: auto (a run's own combiner; sum for a feature file) | sum | normalised_sum | text | image. ties: pessimistic | optimistic |
    mean.
    """

    def __init__(self, protocol: str, combine: str, ties: str) -> None:
        for name, value, choices in (
            ("protocol", protocol, ("auto", *PROTOCOLS)),
            ("combine", combine, ("auto", *COMBINE)),
            ("ties", ties, ("pessimistic", "optimistic", "mean")),
        ):
            if value not in choices:
                raise ConfigError(f"evaluator.{name}={value}: choose {', '.join(choices)}")
        self.protocol, self.combine, self.ties = protocol, combine, ties

    def __call__(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str) -> Evaluation:
        """Encodes the gallery once, composes the queries, ranks; objective is the unwrapped module in evaluation mode."""
        dataset = loaders.dataset
        if part == "train" or not hasattr(dataset, "galleries"):
            raise ConfigError(
                f"evaluator=composed ranks the valid or test queries of a composed data set, not {part} of {dataset.name}: choose another "
                "part, or evaluator=retrieval"
            )
        encoded = encode_part(objective.model, loaders.gallery(part), loaders.part(part), self.combine, accelerator.autocast)
        check_complete(encoded, loaders.parts[part], len(dataset.pictures(part)))
        if encoded.target is None:
            raise DataError(
                f"{dataset.name}: the split of the {part} part keeps its targets secret; python -m mmexpert.submit writes the files"
            )
        protocol = self.protocol
        if protocol == "auto":
            protocol = "fashioniq" if encoded.members is None else "cirr"
        ranks, order = self._ranks(encoded, dataset, part, protocol)
        metrics = fashioniq_metrics(ranks) if protocol == "fashioniq" else cirr_metrics(next(iter(ranks.values())))
        metrics |= edit_recalls(dataset, encoded.ids[order], torch.cat([ranked.rank for ranked in ranks.values()]))
        if self.combine == "auto":
            metrics |= part_losses(objective, _as_pairs(encoded), loaders.batch_size)
        metrics |= dataset.partial(part)
        told = self._protocol(objective.model, dataset, part, protocol, ranks)
        tables = composed_tables(encoded, dataset, part, ranks, order)
        return Evaluation(metrics, told, tables, ranks_rows(encoded, dataset, part, ranks, order))

    def _ranks(self, encoded: Composed, dataset: Any, part: str, protocol: str) -> tuple[dict[str, ComposedRanks], Tensor]:
        """Ranks by category, each in its own gallery, and the rows of the queries in the order in which these ranks hold them."""
        galleries = dataset.galleries(part)
        if protocol == "cirr" and len(galleries) != 1:
            raise ConfigError(f"evaluator.protocol=cirr has one gallery, {dataset.name} has {len(galleries)}: choose fashioniq")
        names = list(galleries)
        category = torch.tensor([names.index(dataset.records[i].source.category) for i in encoded.ids.tolist()])
        found, order = {}, []
        for number, name in enumerate(names):
            rows = (category == number).nonzero()[:, 0]
            if not len(rows):
                raise DataError(f"{dataset.name}: the category {name} has no {part} query left")
            there = torch.searchsorted(encoded.picture_ids, torch.from_numpy(galleries[name]))  # rows of its gallery in pictures
            place = torch.full((len(encoded.picture_ids),), -1)
            place[there] = torch.arange(len(there))
            gallery, query = encoded.pictures[there], encoded.query[rows]
            reference, target = place[encoded.reference[rows]], place[encoded.target[rows]]
            groups = None
            if protocol == "cirr":
                if encoded.members is None:
                    raise ConfigError(
                        f"evaluator.protocol=cirr needs the groups of CIRR, which {dataset.name} does not have: choose fashioniq"
                    )
                groups = group_ranks(query, gallery, target, reference, place[encoded.members[rows]], self.ties)
            ranking = rank_targets(query, gallery, target, reference if protocol == "cirr" else None, self.ties)
            found[name or "all"] = ComposedRanks(ranking, len(gallery), groups)
            order.append(rows)
        return found, torch.cat(order)

    def _protocol(self, model: nn.Module, dataset: Any, part: str, protocol: str, ranks: dict[str, ComposedRanks]) -> dict[str, Any]:
        k = CIRR_K if protocol == "cirr" else FASHIONIQ_K
        shown = [f"R@{n}" for n in k] if protocol == "cirr" else [f"{name}_R@{n}" for name in ranks for n in k]
        sizes = {name: ranked.gallery - (protocol == "cirr") for name, ranked in ranks.items()}
        chance = {f"R@{n}" if protocol == "cirr" else f"{name}_R@{n}": 100 * min(1, n / size) for name, size in sizes.items() for n in k}
        if protocol == "cirr":
            shown += [f"Rs@{n}" for n in GROUP_K]
            chance |= {f"Rs@{n}": 20.0 * n for n in GROUP_K}
        return {
            "part": part,
            "dataset": dataset.name,
            "protocol": protocol,
            **dataset.told(part),
            "categories": [name for name in ranks if name != "all"],
            "gallery_sizes": {name: ranked.gallery for name, ranked in ranks.items()},
            "queries": sum(len(ranked.rank) for ranked in ranks.values()),
            "reference": "left out of the gallery" if protocol == "cirr" else "in the gallery",
            "combiner": type(getattr(model, "combiner", model)).__name__ if self.combine == "auto" else self.combine,
            "weights": {role: getattr(encoder, "weights", None) for role, encoder in getattr(model, "encoders", {}).items()},
            "precision": "fp32 scores, fp64 where two are within 2e-6",
            "ties": self.ties,
            "k": list(k),
            "chance": chance,
            "shown": [*shown, "average", "arithmetic_mean", "harmonic_mean", "geometric_mean"],
            "partial": False,
        } | dataset.partial(part)


def encode_part(
    model: nn.Module, gallery: Iterable[Batch], queries: Iterable[Batch], combine: str, autocast: Any = None
) -> Composed:  # fmt: skip
    """All pictures, then all queries, whose reference features are looked up among the pictures; gathered over ranks, each id once.

    combine: auto = model.compose(reference features [B, D], text batch); otherwise metrics.composed.combined of the towers' features.
    """
    place = autocast or _no_autocast
    rows = []
    for batch in gallery:
        with torch.no_grad(), place():
            rows.append({"id": batch["id"].cpu(), "features": model.encode_gallery(batch).float().cpu()})
    pictures = _sorted(rows)
    ids, features = pictures["id"], pictures["features"]
    rows = []
    for batch in queries:
        reference = features[_rows(ids, batch["reference_key"].cpu())].to(batch["id"].device)
        with torch.no_grad(), place():
            if combine == "auto":
                query = model.compose(reference, batch["text"])
            else:
                query = combined(combine, reference, model.encode("text", batch["text"]).features.float())
        kept = {name: batch[name].cpu() for name in ("id", "reference_key", "positive_key", "members") if name in batch}
        rows.append(kept | {"features": query.float().cpu()})
    found = _sorted(rows)
    keys = {name: _rows(ids, found[name]) for name in ("reference_key", "positive_key", "members") if name in found}
    return Composed(
        ids, features, found["id"], found["features"], keys["reference_key"], keys.get("positive_key"), keys.get("members")
    )  # fmt: skip


def check_complete(encoded: Composed, queries: Iterable[int], pictures: int) -> None:
    """Raises DataError where a query or a picture was not encoded: a smaller gallery raises recall."""
    if encoded.ids.tolist() != sorted(queries) or len(encoded.picture_ids) != pictures:
        raise DataError(f"{len(encoded.ids)} queries and {len(encoded.picture_ids)} of {pictures} pictures were encoded: some are missing")


def edit_recalls(dataset: Any, ids: Tensor, rank: Tensor) -> dict[str, float]:
    """EDIT_R@1 of sets whose queries name their edit; empty for others. ids: record of each rank."""
    edits = [getattr(dataset.records[i].source, "edit", "") for i in ids.tolist()]
    return {f"{edit}_R@1": recall(rank[torch.tensor([e == edit for e in edits])], 1) for edit in sorted(set(edits)) if edit}


def _no_autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", enabled=False)


def _sorted(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The columns of all ranks' batches, sorted by id, each id once (samplers pad with repeats)."""
    everything = [row for rank in gather_rows(rows) for row in rank]
    columns = {name: torch.cat([row[name] for row in everything]) for name in everything[0]}
    order = columns["id"].sort(stable=True).indices
    ids = columns["id"][order]
    order = order[torch.cat([torch.ones(1, dtype=torch.bool), ids[1:] != ids[:-1]])]
    return {name: column[order] for name, column in columns.items()}


def _rows(ids: Tensor, keys: Tensor) -> Tensor:
    """Row of each picture id among the sorted ids. Raises DataError for an id that is not there."""
    rows = torch.searchsorted(ids, keys).clamp(max=len(ids) - 1)
    if not bool((ids[rows] == keys).all()):
        raise DataError(f"the picture {int(keys[ids[rows] != keys][0])} of a query is not in the gallery")
    return rows


def _as_pairs(encoded: Composed) -> Collected:
    """Queries and their targets as a collected part, for its loss."""
    return Collected(encoded.ids, encoded.target, Encoding(encoded.query), Encoding(encoded.pictures[encoded.target]))
