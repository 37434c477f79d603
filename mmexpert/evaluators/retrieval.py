"""Full-gallery retrieval: every sample of a part once, both directions, with the chance line."""

from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.evaluators.base import Collected, Evaluation, collect, part_losses
from mmexpert.metrics.ranks import Ranking, rank_scores, unit
from mmexpert.metrics.retrieval import chance_recall, direction_metrics, hubness, retrieval_metrics, similarity_metrics
from mmexpert.types import ConfigError

_SCORE_ROWS = 32  # query rows a block of the similarity


class RetrievalEvaluator:
    """k: limits of R@K. ties: pessimistic | optimistic | mean. rank_by: auto (fused where there is a similarity) | pooled | sequence |
    fused. small_gallery: also galleries of so many samples, keys galleryN_..., or None."""

    def __init__(self, k: list[int], ties: str, rank_by: str, small_gallery: int | None, allow_unanswerable: bool) -> None:
        if rank_by not in ("auto", "pooled", "sequence", "fused"):
            raise ConfigError(f"evaluator.rank_by={rank_by}: choose auto, pooled, sequence or fused")
        if not k or min(k) < 1:
            raise ConfigError(f"evaluator.k={k}: one or more limits of at least 1")
        self.k, self.ties, self.rank_by = k, ties, rank_by
        self.small_gallery, self.allow_unanswerable = small_gallery, allow_unanswerable

    def __call__(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str) -> Evaluation:
        """Encodes the part, ranks it and reports; objective is the unwrapped module in evaluation mode."""
        collected = collect(objective, loaders, accelerator, part)
        roles = (objective.model.query, objective.model.target)
        query, query_rows = _each_item_once(collected, loaders)
        query_keys = collected.keys[query_rows]
        chosen = self._score_name(objective)
        metrics, rankings = retrieval_metrics(
            query, collected.target.features, query_keys, collected.keys, roles, self.k, self.ties, self.allow_unanswerable
        )
        if chosen != "pooled":
            metrics, rankings = self._ranked_by(objective, collected, roles, chosen, metrics)
        metrics |= self._small_galleries(collected, roles)
        metrics |= _hard_metrics(collected, loaders.dataset.hard_kinds, chosen)
        metrics |= part_losses(objective, collected, loaders.batch_size)
        protocol = self._protocol(query_keys, collected, loaders, part, chosen, roles)
        tables = _tables(query, collected, query_keys, rankings)
        return Evaluation(metrics, protocol, tables, _predictions(collected, query_rows, rankings, roles, loaders))

    def _score_name(self, objective: nn.Module) -> str:
        if objective.similarity is None:
            if self.rank_by in ("sequence", "fused"):
                raise ConfigError(f"evaluator.rank_by={self.rank_by} needs a similarity: choose similarity=..., or rank_by=pooled")
            return "pooled"
        return "fused" if self.rank_by == "auto" else self.rank_by

    def _ranked_by(
        self, objective: nn.Module, collected: Collected, roles: tuple[str, str], chosen: str, pooled: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, Ranking]]:
        """Metrics under all scores: the chosen one's by plain names, the others with the score's name before theirs."""
        scores = {"sequence": sequence_scores(objective, collected)}
        cosine = unit(collected.query.features, roles[0]) @ unit(collected.target.features, roles[1]).T
        weight = objective.sequence_weight
        scores["fused"] = (cosine + weight * scores["sequence"]) / (1 + weight)
        found = {f"pooled_{name}": value for name, value in pooled.items() if "_R@" in name or name == "RSum"}
        plain = {name: value for name, value in pooled.items() if "_R@" not in name and name != "RSum"}
        rankings: dict[str, Ranking] = {}
        for name, matrix in scores.items():
            metrics, ranked = self._from_matrix(matrix, collected.keys, roles)
            if name == chosen:
                plain, rankings = plain | metrics, ranked
            else:
                found |= {f"{name}_{key}": value for key, value in metrics.items() if "_R@" in key or key == "RSum"}
        return plain | found, rankings

    def _from_matrix(self, scores: Tensor, keys: Tensor, roles: tuple[str, str]) -> tuple[dict[str, float], dict[str, Ranking]]:
        found: dict[str, float] = {}
        rankings = {}
        for matrix, (a, b) in ((scores, roles), (scores.T, roles[::-1])):
            name = f"{a}_to_{b}"
            rankings[name] = rank_scores(lambda rows, matrix=matrix: matrix[rows], keys, keys, self.ties)
            found |= direction_metrics(rankings[name], matrix.shape[1], self.k, name) | hubness(rankings[name].top, matrix.shape[1], name)
        found["RSum"] = sum(value for key, value in found.items() if "_R@" in key and key.rsplit("@", 1)[1] in ("1", "5", "10"))
        return found, rankings

    def _small_galleries(self, collected: Collected, roles: tuple[str, str]) -> dict[str, float]:
        """Mean over galleries of small_gallery samples, in a fixed random order; a rest is left out."""
        size = self.small_gallery
        if not size or len(collected.ids) < size:
            return {}
        order = torch.randperm(len(collected.ids), generator=torch.Generator().manual_seed(0))
        sums: dict[str, list[float]] = {}
        for rows in order[: len(order) // size * size].split(size):
            query, target, keys = collected.query.features[rows], collected.target.features[rows], collected.keys[rows]
            metrics, _ = retrieval_metrics(query, target, keys, keys, roles, self.k, self.ties)
            for key in (name for name in metrics if "_R@" in name):
                sums.setdefault(f"gallery{size}_{key}", []).append(metrics[key])
        return {key: sum(values) / len(values) for key, values in sums.items()}

    def _protocol(
        self, query_keys: Tensor, collected: Collected, loaders: Any, part: str, chosen: str, roles: tuple[str, str]
    ) -> dict[str, Any]:
        forth, back = f"{roles[0]}_to_{roles[1]}", f"{roles[1]}_to_{roles[0]}"
        chance = {f"{forth}_R@{k}": chance_recall(query_keys, collected.keys, k) for k in self.k}
        chance |= {f"{back}_R@{k}": chance_recall(collected.keys, query_keys, k) for k in self.k}
        return {
            "part": part,
            "dataset": loaders.dataset.name,
            "precision": "fp32 scores, fp64 where two are within 2e-6",
            "ties": self.ties,
            "rank_by": chosen,
            "k": list(self.k),
            "queries": len(query_keys),
            "gallery": len(collected.ids),
            "directions": [forth, back],
            "chance": chance,
        }


def sequence_scores(objective: nn.Module, collected: Collected) -> Tensor:
    """Similarity scores [n, n] in blocks of query rows: only the scores are kept."""
    device = next(objective.parameters()).device
    place = lambda e, rows: type(e)(*(None if x is None else x[rows].to(device) for x in (e.features, e.sequence, e.mask)))  # noqa: E731
    everything = place(collected.target, slice(None))
    with torch.no_grad():
        rows_of_blocks = torch.arange(len(collected.ids)).split(_SCORE_ROWS)
        blocks = [objective.similarity(place(collected.query, rows), everything).float().cpu() for rows in rows_of_blocks]
    return torch.cat(blocks)


def _each_item_once(collected: Collected, loaders: Any) -> tuple[Tensor, Tensor]:
    """Query features of each item once: several records of one item are its captions."""
    seen: dict[str, int] = {}
    for row, index in enumerate(collected.ids.tolist()):
        record = loaders.dataset.records[index]
        seen.setdefault(record.item or record.id, row)
    rows = torch.tensor(list(seen.values()))
    return collected.query.features[rows], rows


def _hard_metrics(collected: Collected, kinds: tuple[str, ...], chosen: str) -> dict[str, float]:
    """hard_KIND: percent of captions scored above their hard form (ties are misses; chance 50), by every score that exists."""
    found: dict[str, float] = {}
    if collected.hard is None:
        return found
    for number, kind in enumerate(kinds):
        rows = collected.hard["kind"] == number
        if not bool(rows.any()):
            continue
        for score in ("pooled", "sequence", "fused"):
            if score in collected.hard:
                prefix = "" if score == chosen else f"{score}_"
                found[f"{prefix}hard_{kind}"] = 100 * float((collected.hard[score][rows] > 0).double().mean())
    return found


def _tables(query: Tensor, collected: Collected, query_keys: Tensor, rankings: dict[str, Ranking]) -> dict[str, Any]:
    histograms = similarity_metrics(unit(query, "query"), unit(collected.target.features, "target"), query_keys, collected.keys)[1]
    galleries = (len(collected.ids), len(query))
    return {
        "similarity_histogram": histograms,
        "ranks": {name: ranking.rank.tolist() for name, ranking in rankings.items()},
        "n10": {
            name: torch.bincount(ranking.top.flatten(), minlength=gallery).tolist()
            for (name, ranking), gallery in zip(rankings.items(), galleries, strict=True)
        },
    }


def _predictions(
    collected: Collected, query_rows: Tensor, rankings: dict[str, Ranking], roles: tuple[str, str], loaders: Any
) -> list[dict[str, Any]]:
    """A row a target: its rank in each direction; the query side's stands at its item's first record."""
    back = rankings[f"{roles[1]}_to_{roles[0]}"]
    forth = dict(zip(query_rows.tolist(), rankings[f"{roles[0]}_to_{roles[1]}"].rank.tolist(), strict=False))
    rows = []
    for row, rank in zip(back.kept.tolist(), back.rank.tolist(), strict=True):
        record = loaders.dataset.records[int(collected.ids[row])]
        rows.append(
            {
                "id": record.id,
                "group": record.group,
                f"rank_{roles[0]}_to_{roles[1]}": forth.get(row),
                f"rank_{roles[1]}_to_{roles[0]}": rank,
                "gallery": len(collected.ids),
            }
        )
    return rows
