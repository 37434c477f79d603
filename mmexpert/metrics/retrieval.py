"""Retrieval metrics of a full gallery, both directions; percent where it says R@K, see metrics/ranks.py for ranks and ties."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmexpert.metrics.ranks import Ranking, rank_directions, unit

_EFFECTIVE_RANK_ROWS = 4096
_HUBS_FROM = 20  # smaller galleries have no hubs worth a number
HISTOGRAM_BINS = 60  # over [-1, 1]


def direction_metrics(ranking: Ranking, gallery: int, k: Sequence[int], name: str) -> dict[str, float]:
    """NAME_R@K in percent, _hits@K, _mean_rank, _median_rank, _MRR, _queries, _gallery, _hard_negative."""
    rank = ranking.rank
    found: dict[str, float] = {}
    for limit in k:
        found |= {f"{name}_R@{limit}": recall(rank, limit), f"{name}_hits@{limit}": int((rank <= limit).sum())}
    ordered = rank.sort().values
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    found |= {f"{name}_mean_rank": float(rank.mean()), f"{name}_median_rank": float(median), f"{name}_MRR": float((1 / rank).mean())}
    rivals = ranking.rival[torch.isfinite(ranking.rival)]
    if len(rivals):
        found[f"{name}_hard_negative"] = float(rivals.mean())
    return found | {f"{name}_queries": len(rank), f"{name}_gallery": gallery}


def recall(rank: Tensor, k: int) -> float:
    """Percent of queries whose rank is at most k."""
    return 100 * int((rank <= k).sum()) / len(rank)


def recall_sum(rankings: Iterable[Ranking]) -> float:
    """RSum: R@1, R@5 and R@10 of all directions added, whatever other limits are reported; 0..600 with two directions."""
    return sum(recall(ranking.rank, k) for ranking in rankings for k in (1, 5, 10))


def hubness(top: Tensor, gallery: int, name: str) -> dict[str, float]:
    """NAME_hub_share, _hub_skew, _unreached from the first 10 rows of each query [Nq, 10]; nothing for galleries up to 20."""
    if gallery <= _HUBS_FROM:
        return {}
    first = torch.bincount(top[:, 0], minlength=gallery)
    often = torch.bincount(top.flatten(), minlength=gallery).double()
    spread = often.std(correction=0)
    skew = float((((often - often.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    return {
        f"{name}_hub_share": int(first.max()) / len(top),
        f"{name}_hub_skew": skew,
        f"{name}_unreached": float((often == 0).double().mean()),
    }


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the singular values over their sum) of unit rows, of the first 4,096."""
    values = torch.linalg.svdvals(features[:_EFFECTIVE_RANK_ROWS].double())
    share = values / values.sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def similarity_metrics(
    query: Tensor, gallery: Tensor, query_keys: Tensor, gallery_keys: Tensor
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Means and deviations of the cosine of unit rows over all pairs of equal and of different key; and their histograms of 60 bins
    over [-1, 1]."""
    sums = torch.zeros(2, 3, dtype=torch.float64)  # negatives, positives: count, sum, sum of squares
    histograms = torch.zeros(2, HISTOGRAM_BINS, dtype=torch.long)
    for rows in torch.arange(len(query)).split(512):
        scores = (query[rows] @ gallery.T).double()
        positive = query_keys[rows, None] == gallery_keys
        for which, chosen in ((0, scores[~positive]), (1, scores[positive])):
            sums[which] += torch.stack([torch.tensor(float(len(chosen))), chosen.sum(), (chosen**2).sum()]).double()
            bins = ((chosen + 1) / 2 * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
            histograms[which] += torch.bincount(bins, minlength=HISTOGRAM_BINS)
    found: dict[str, float] = {}
    for which, name in ((1, "positive"), (0, "negative")):
        count, total, squares = sums[which].tolist()
        if count:
            mean = total / count
            found |= {f"{name}_similarity": mean, f"{name}_std": math.sqrt(max(0.0, squares / count - mean**2))}
    if len(found) == 4:
        found["similarity_gap"] = found["positive_similarity"] - found["negative_similarity"]
    return found, {"negative": histograms[0].tolist(), "positive": histograms[1].tolist()}


def chance_recall(query_keys: Tensor, gallery_keys: Tensor, k: int) -> float:
    """R@K in percent of a random order: 1 - C(Ng - m, K) / C(Ng, K), averaged over queries with m positives, m > 0."""
    positives = Counter(gallery_keys.tolist())
    gallery, limit = len(gallery_keys), min(k, len(gallery_keys))
    answers = Counter(positives[key] for key in query_keys.tolist() if key in positives)
    total = math.comb(gallery, limit)
    return 100 * sum(n * (1 - math.comb(gallery - m, limit) / total) for m, n in answers.items()) / max(1, answers.total())


def rank_both(
    query: Tensor, target: Tensor, query_keys: Tensor, target_keys: Tensor, roles: tuple[str, str], ties: str = "pessimistic",
    allow_unanswerable: bool = False,
) -> dict[str, Ranking]:  # fmt: skip
    """Rankings by cosine in both directions, by direction name."""
    forth, back = rank_directions(query, target, query_keys, target_keys, ties, allow_unanswerable=allow_unanswerable)
    return {f"{roles[0]}_to_{roles[1]}": forth, f"{roles[1]}_to_{roles[0]}": back}


def ranked_metrics(rankings: dict[str, Ranking], galleries: Sequence[int], k: Sequence[int]) -> dict[str, float]:
    """What the ranks of both directions say, and RSum; galleries: rows of each direction's gallery."""
    found: dict[str, float] = {}
    for (name, ranking), gallery in zip(rankings.items(), galleries, strict=True):
        found |= direction_metrics(ranking, gallery, k, name) | hubness(ranking.top, gallery, name)
    return found | {"RSum": recall_sum(rankings.values())}


def retrieval_metrics(
    query: Tensor, target: Tensor, query_keys: Tensor, target_keys: Tensor, roles: tuple[str, str], k: Sequence[int] = (1, 5, 10),
    ties: str = "pessimistic", allow_unanswerable: bool = False,
) -> tuple[dict[str, float], dict[str, Ranking]]:  # fmt: skip
    """All metrics of pooled features query [Nq, D] and target [Nt, D], both directions, and the two rankings by direction name.

    Raises NonFiniteError for a zero or non-finite row, DataError for a query without a positive (unless allowed: it is left out).
    """
    unit_query, unit_target = unit(query, roles[0]), unit(target, roles[1])  # here, so that an error names the role
    rankings = rank_both(query, target, query_keys, target_keys, roles, ties, allow_unanswerable)
    found = ranked_metrics(rankings, (len(target), len(query)), k)
    found |= similarity_metrics(unit_query, unit_target, query_keys, target_keys)[0]
    found |= {f"{roles[0]}_effective_rank": effective_rank(unit_query), f"{roles[1]}_effective_rank": effective_rank(unit_target)}
    return found, rankings
