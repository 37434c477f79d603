"""Full-gallery retrieval: every sample of a part once, both directions, with the chance line."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.evaluators.base import Collected, Evaluation, collect, further_columns, part_losses
from mmexpert.evaluators.examples import retrieval_examples
from mmexpert.evaluators.galleries import Gallery
from mmexpert.evaluators.scores import check_rank_by, fused, score_name, sequence_scores
from mmexpert.metrics.ranks import Ranking, norms, rank_scores, unit
from mmexpert.metrics.retrieval import chance_recall, rank_both, ranked_metrics, retrieval_metrics, similarity_metrics
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)


class RetrievalEvaluator:
    """k: limits of R@K. ties: pessimistic | optimistic | mean. rank_by: auto (fused where there is a similarity) | pooled | sequence |
    fused. small_gallery: also galleries of so many items, keys galleryN_..., or None. folds_of: also the items cut in id order, keys
    foldsN_..., or None. ablate_views: also with each view of the query alone, keys only_VIEW_...."""

    def __init__(
        self,
        k: list[int],
        ties: str,
        rank_by: str,
        small_gallery: int | None,
        folds_of: int | None,
        ablate_views: bool,
        allow_unanswerable: bool,
    ) -> None:
        check_rank_by(rank_by)
        if ties not in ("pessimistic", "optimistic", "mean"):
            raise ConfigError(f"evaluator.ties={ties}: choose pessimistic, optimistic or mean")
        if not k or min(k) < 1:
            raise ConfigError(f"evaluator.k={k}: one or more limits of at least 1")
        for name, size in (("small_gallery", small_gallery), ("folds_of", folds_of)):
            if size is not None and size < 2:
                raise ConfigError(f"evaluator.{name}={size}: 2 or more items, or null")
        self.k, self.ties, self.rank_by, self.allow_unanswerable = k, ties, rank_by, allow_unanswerable
        self.small_gallery, self.folds_of, self.ablate_views = small_gallery, folds_of, ablate_views
        self._told: set[str] = set()

    def __call__(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str) -> Evaluation:
        """Encodes the part, ranks it and reports; objective is the unwrapped module in evaluation mode."""
        chosen = score_name(self.rank_by, objective.similarity)
        collected = collect(objective, loaders, accelerator, part)
        roles = (objective.model.query, objective.model.target)
        for role, side in zip(roles, (collected.query, collected.target), strict=True):
            norms(side.features, role, [loaders.dataset.records[i].id for i in collected.ids.tolist()])  # here an error can name ids
        gallery = Gallery.of(collected, loaders.dataset.records)
        self._warn_small(part, min(len(gallery.query), len(gallery.target)))
        metrics, rankings = retrieval_metrics(
            gallery.query, gallery.target, gallery.query_keys, gallery.target_keys, roles, self.k, self.ties, self.allow_unanswerable
        )
        scores = None
        if objective.similarity is not None:
            metrics, rankings, scores = self._all_scores(objective, collected, gallery, roles, chosen, (metrics, rankings))
        for size, cut in ((self.small_gallery, gallery.small), (self.folds_of, gallery.folds)):
            if size:
                metrics |= cut(size, roles, self.k, self.ties)
        if self.ablate_views:
            metrics |= self._ablated(objective, loaders, accelerator, part, roles)
        metrics |= hard_metrics(collected, loaders.dataset.hard_kinds, chosen)
        metrics |= part_losses(objective, collected, loaders.batch_size)
        protocol = self._protocol(gallery, loaders, part, chosen, rankings)
        tables = _tables(gallery, rankings)
        tables["examples"] = partial(retrieval_examples, loaders.dataset, collected.ids.tolist(), gallery, rankings, scores, chosen)
        return Evaluation(metrics, protocol, tables, _predictions(collected, gallery, rankings, roles, loaders))

    def _warn_small(self, part: str, rows: int) -> None:
        if max(self.k) >= rows and part not in self._told:
            self._told.add(part)
            log.warning("%s part: a gallery of %d rows makes R@%d 100 whatever the model does", part, rows, max(self.k))

    def _all_scores(
        self, objective: nn.Module, collected: Collected, gallery: Gallery, roles: tuple[str, str], chosen: str,
        pooled: tuple[dict[str, float], dict[str, Ranking]],
    ) -> tuple[dict[str, float], dict[str, Ranking], Tensor | None]:  # fmt: skip
        """Metrics under every score: the chosen one's by plain names, recalls of the others with the score's name before theirs; ranks
        by the chosen one; its scores [Nq, n], None for cosines of pooled features."""
        found, rankings = pooled
        sequence = sequence_scores(objective, collected.query, gallery.query_rows, collected.target)
        cosines = unit(gallery.query, roles[0]) @ unit(gallery.target, roles[1]).T
        both = fused(cosines, sequence, objective.sequence_weight)
        by_score = {"pooled": (dict(found), rankings)}
        for name, scores in (("sequence", sequence), ("fused", both)):
            ranked = self._rank_matrix(scores, gallery, roles)
            by_score[name] = ranked_metrics(ranked, (len(gallery.target), len(gallery.query)), self.k), ranked
        found = found | by_score[chosen][0]
        for name, (metrics, _) in by_score.items():
            if name != chosen:
                found |= {f"{name}_{key}": value for key, value in metrics.items() if "_R@" in key or key == "RSum"}
        return found, by_score[chosen][1], {"pooled": None, "sequence": sequence, "fused": both}[chosen]

    def _rank_matrix(self, scores: Tensor, gallery: Gallery, roles: tuple[str, str]) -> dict[str, Ranking]:
        rankings = {}
        for matrix, names, keys in (
            (scores, roles, (gallery.query_keys, gallery.target_keys)),
            (scores.T, roles[::-1], (gallery.target_keys, gallery.query_keys)),
        ):
            rankings[f"{names[0]}_to_{names[1]}"] = rank_scores(
                lambda rows, matrix=matrix: matrix[rows], *keys, self.ties, allow_unanswerable=self.allow_unanswerable
            )
        return rankings

    def _ablated(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str, roles: tuple[str, str]) -> dict[str, float]:
        """Recalls with one view of the query alone: only_VIEW_..., by pooled scores."""
        batches = loaders.part(part)
        views = [name for name in next(iter(batches))[roles[0]] if name != "mask"]
        found: dict[str, float] = {}
        for view in views if len(views) > 1 else []:
            gallery = Gallery.of(collect(objective, loaders, accelerator, part, view), loaders.dataset.records)
            parts = gallery.query, gallery.target, gallery.query_keys, gallery.target_keys
            rankings = rank_both(*parts, roles, self.ties, self.allow_unanswerable)
            metrics = ranked_metrics(rankings, (len(gallery.target), len(gallery.query)), self.k)
            found |= {f"only_{view}_{name}": value for name, value in metrics.items() if "_R@" in name or name == "RSum"}
        return found

    def _protocol(self, gallery: Gallery, loaders: Any, part: str, chosen: str, rankings: dict[str, Ranking]) -> dict[str, Any]:
        forth, back = rankings
        sides = {forth: (gallery.query_keys, gallery.target_keys), back: (gallery.target_keys, gallery.query_keys)}
        return {
            "part": part,
            "dataset": loaders.dataset.name,
            "precision": "fp32 scores, fp64 where two are within 2e-6",
            "ties": self.ties,
            "rank_by": chosen,
            "k": list(self.k),
            "folds_of": self.folds_of,
            "small_gallery": self.small_gallery,
            "queries": len(gallery.query),
            "gallery": len(gallery.target),
            "captions": gallery.captions(),
            "unanswerable": {name: len(keys[0]) - len(rankings[name].kept) for name, keys in sides.items()},
            "directions": [forth, back],
            "chance": {f"{name}_R@{k}": chance_recall(*keys, k) for name, keys in sides.items() for k in self.k},
        }


def hard_metrics(collected: Collected, kinds: tuple[str, ...], chosen: str) -> dict[str, float]:
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


def _tables(gallery: Gallery, rankings: dict[str, Ranking]) -> dict[str, Any]:
    query, target = unit(gallery.query, "query"), unit(gallery.target, "target")
    sizes = (len(target), len(query))
    return {
        "similarity_histogram": similarity_metrics(query, target, gallery.query_keys, gallery.target_keys)[1],
        "ranks": {name: ranking.rank.tolist() for name, ranking in rankings.items()},
        "n10": {
            name: torch.bincount(ranking.top.flatten(), minlength=size).tolist()
            for (name, ranking), size in zip(rankings.items(), sizes, strict=True)
        },
    }


def _predictions(
    collected: Collected, gallery: Gallery, rankings: dict[str, Ranking], roles: tuple[str, str], loaders: Any
) -> list[dict[str, Any]]:
    """A row a target: its rank in each direction, None where it was no query; the query side's stands at its item's first record."""
    forth, back = rankings.values()
    at = gallery.query_rows[forth.kept].tolist()
    forth_ranks, back_ranks = (dict(zip(rows, r.rank.tolist(), strict=True)) for rows, r in ((at, forth), (back.kept.tolist(), back)))
    rows = []
    for row, index in enumerate(collected.ids.tolist()):
        record = loaders.dataset.records[index]
        ranks = {f"rank_{roles[0]}_to_{roles[1]}": forth_ranks.get(row), f"rank_{roles[1]}_to_{roles[0]}": back_ranks.get(row)}
        row_of_it = {"id": record.id, "group": record.group, **ranks, "gallery": len(collected.ids)}
        rows.append(row_of_it | further_columns(loaders.dataset, record))
    return rows
