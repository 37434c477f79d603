"""Composed retrieval, FashionIQ (arXiv 1905.12794) and CIRR (arXiv 2108.04024): full-gallery recall, recall in the group, three means.

Ranks and ties as metrics/ranks.py: pessimistic, fp64 where fp32 can not tell. Figures are percent, hits are counts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmexpert.metrics.ranks import Ranking, rank_features, unit
from mmexpert.metrics.retrieval import direction_metrics, hubness, recall
from mmexpert.types import ConfigError, DataError

FASHIONIQ_K = (10, 50)
CIRR_K = (1, 5, 10, 50)
GROUP_K = (1, 2, 3)
COMBINE = ("sum", "normalised_sum", "text", "image")
_TIED = 1e-9
_ROWS = 2**22  # fp64 cells of a block of group features


def combined(how: str, reference: Tensor, text: Tensor) -> Tensor:
    """Query features [B, D] without learned parts, from raw reference and text features [B, D]: sum (of the raw ones: CLIP4Cir's),
    normalised_sum, text or image alone. Raises ConfigError."""
    if how == "sum":
        return reference + text
    if how == "normalised_sum":
        return unit(reference, "reference") + unit(text, "text")
    if how not in COMBINE:
        raise ConfigError(f"evaluator.combine={how}: choose {', '.join(COMBINE)}")
    return text if how == "text" else reference


@dataclass(frozen=True)
class ComposedRanks:
    """Ranks of the targets of Nq queries in one gallery; group_rank is None where there are no groups."""

    ranking: Ranking
    gallery: int
    group_rank: Tensor | None  # float64 [Nq]

    @property
    def rank(self) -> Tensor:
        """Rank of each query's target, float64 [Nq], from 1."""
        return self.ranking.rank


def rank_targets(query: Tensor, gallery: Tensor, target: Tensor, reference: Tensor | None, ties: str = "pessimistic") -> Ranking:
    """Ranks of the gallery rows target [Nq] by cosine of query [Nq, D] and gallery [Ng, D]; reference: rows [Nq] that are left out,
    unless they are the target."""
    exclude = None if reference is None else reference[:, None]
    return rank_features(query, gallery, target, torch.arange(len(gallery)), ties, exclude=exclude)


def group_ranks(query: Tensor, gallery: Tensor, target: Tensor, reference: Tensor, members: Tensor, ties: str = "pessimistic") -> Tensor:
    """Ranks float64 [Nq] of the targets among the other members of their group, reference out; members: gallery rows [Nq, 6].

    All in fp64 from the fp32 features, which is what the full gallery's second look decides by. Raises DataError where a group lacks
    the target or the reference.
    """
    for rows, role in ((target, "target"), (reference, "reference")):
        lacking = ~(members == rows[:, None]).any(1)
        if bool(lacking.any()):
            raise DataError(f"query {int(lacking.nonzero()[0, 0])}: its {role} is not among the members of its group")
    wide_query, wide_gallery = unit_fp64(query), unit_fp64(gallery)
    ranks = []
    for rows in torch.arange(len(query)).split(max(1, _ROWS // (members.shape[1] * query.shape[1]))):
        scores = torch.einsum("qd,qmd->qm", wide_query[rows], wide_gallery[members[rows]])
        is_target = members[rows] == target[rows, None]
        best = scores.masked_fill(~is_target, -torch.inf).amax(1)
        rival = ~is_target & (members[rows] != reference[rows, None])
        difference = scores - best[:, None]
        weight = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties]
        ahead, tied = (rival & (difference > _TIED)).sum(1), (rival & (difference.abs() <= _TIED)).sum(1)
        ranks.append(1 + ahead.double() + weight * tied.double())
    return torch.cat(ranks)


def unit_fp64(features: Tensor) -> Tensor:
    """fp64 rows of length 1 of what fp32 holds. Raises NonFiniteError for NaN, infinity or a zero row."""
    unit(features, "composed")
    wide = features.float().double()
    return wide / wide.norm(dim=1, keepdim=True)


def fashioniq_metrics(ranks: Mapping[str, ComposedRanks]) -> dict[str, float]:
    """CATEGORY_R@10, _R@50, _hits@K, _queries, _gallery, _mean_rank, _median_rank ..., average_R@10, average_R@50, average, three means."""
    found: dict[str, float] = {}
    for category, ranked in ranks.items():
        found |= direction_metrics(ranked.ranking, ranked.gallery, FASHIONIQ_K, category)
        found |= hubness(ranked.ranking.top, ranked.gallery, category)
    for k in FASHIONIQ_K:
        found[f"average_R@{k}"] = sum(found[f"{category}_R@{k}"] for category in ranks) / len(ranks)
    found["average"] = sum(found[f"average_R@{k}"] for k in FASHIONIQ_K) / len(FASHIONIQ_K)
    return found | three_means([found[f"{category}_R@{k}"] for category in ranks for k in FASHIONIQ_K])


def cirr_metrics(ranked: ComposedRanks) -> dict[str, float]:
    """R@1 ... R@50, Rs@1, Rs@2, Rs@3, average = (R@5 + Rs@1) / 2, three means; hits@K and Rs_hits@K, queries, gallery, ranks, hubs."""
    found = plain_metrics(ranked, CIRR_K)
    for k in GROUP_K:
        found |= {f"Rs@{k}": recall(ranked.group_rank, k), f"Rs_hits@{k}": int((ranked.group_rank <= k).sum())}
    found["average"] = (found["R@5"] + found["Rs@1"]) / 2
    return found | three_means([found[f"R@{k}"] for k in CIRR_K] + [found[f"Rs@{k}"] for k in GROUP_K])


def plain_metrics(ranked: ComposedRanks, k: Sequence[int]) -> dict[str, float]:
    """R@K, hits@K, queries, gallery, mean_rank, median_rank, MRR, hard_negative and hubness of one gallery, without a prefix."""
    found = direction_metrics(ranked.ranking, ranked.gallery, k, "") | hubness(ranked.ranking.top, ranked.gallery, "")
    return {name.removeprefix("_"): value for name, value in found.items()}


def three_means(values: Sequence[float]) -> dict[str, float]:
    """arithmetic_mean, harmonic_mean and geometric_mean of percentages; the last two are 0 where one is 0."""
    zero = min(values) <= 0
    return {
        "arithmetic_mean": sum(values) / len(values),
        "harmonic_mean": 0.0 if zero else len(values) / sum(1 / value for value in values),
        "geometric_mean": 0.0 if zero else math.exp(sum(math.log(value) for value in values) / len(values)),
    }
