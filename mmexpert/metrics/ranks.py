"""The rank of every query's best positive against the whole gallery, in tiles, the same on every machine.

Ties count against the query (pessimistic): a collapsed model ranks last. fp32 decides where |s - s+| > 2e-6; closer pairs are scored
again in fp64 from the same features, so that a rank depends on no block size, order or hardware.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmexpert.types import ConfigError, DataError, NonFiniteError

_CLOSE, _TIED = 2e-6, 1e-9  # fp32 band that is looked at again; what counts as equal then
_TIED_SCORES = 1e-6  # of a similarity, whose scores have no second look
_TILE_CELLS = 2**26  # 256 MB of fp32
_SECOND_LOOK = 2**23  # features of a block of pairs that is scored again


@dataclass(frozen=True)
class Ranking:
    """Per query: rank (from 1; half ranks under ties=mean), best positive's score, best rival's score, first row; queries kept."""

    rank: Tensor  # float64 [Nq]
    positive: Tensor  # float64 [Nq]
    rival: Tensor  # float64 [Nq]; -inf where there is no rival
    kept: Tensor  # int64 [Nq]: rows of the query side that have a positive
    top: Tensor  # int64 [Nq, min(10, Ng)]: the first rows of the gallery


def unit(features: Tensor, role: str) -> Tensor:
    """fp32 rows of length 1. Raises NonFiniteError for NaN, infinity or a zero row."""
    features = features.float()
    norm = features.norm(dim=1, keepdim=True)
    bad = ~torch.isfinite(norm[:, 0]) | (norm[:, 0] == 0)
    if bool(bad.any()):
        rows = bad.nonzero()[:5, 0].tolist()
        raise NonFiniteError(f"{int(bad.sum())} {role} features are zero or not finite, the first at rows {rows}")
    return features / norm


def rank_features(
    query: Tensor, gallery: Tensor, query_keys: Tensor, gallery_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    exclude: Tensor | None = None, allow_unanswerable: bool = False,
) -> Ranking:  # fmt: skip
    """Ranks by cosine of rows of any length query [Nq, D] and gallery [Ng, D]; exclude [Nq, E] gallery rows, -1 = none."""
    unit_query, unit_gallery = unit(query, "query"), unit(gallery, "gallery")
    # from the features and not from their fp32 unit rows, whose rounding (1e-8) would tell multiples of one vector apart
    wide_query, wide_gallery = _unit_fp64(query), _unit_fp64(gallery)

    def scores(rows: Tensor) -> Tensor:
        return unit_query[rows] @ unit_gallery.T

    def again(rows: Tensor, columns: Tensor) -> Tensor:
        step = max(1, _SECOND_LOOK // query.shape[1])  # a collapsed model ties everywhere: its pairs would not fit into memory at once
        blocks = zip(rows.split(step), columns.split(step), strict=True)
        return torch.cat([_pair_scores(wide_query, wide_gallery, r, c) for r, c in blocks])

    kept = answerable(query_keys, gallery_keys, allow_unanswerable)
    return _sweep(scores, again, kept, query_keys, gallery_keys, ties, tile, exclude)


def rank_scores(
    scores: Callable[[Tensor], Tensor], query_keys: Tensor, gallery_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    exclude: Tensor | None = None, allow_unanswerable: bool = False,
) -> Ranking:  # fmt: skip
    """Ranks by given scores: a function query rows [b] -> [b, Ng] fp32. Tied within 1e-6."""
    kept = answerable(query_keys, gallery_keys, allow_unanswerable)
    return _sweep(scores, None, kept, query_keys, gallery_keys, ties, tile, exclude)


def _pair_scores(query: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scores of single pairs; rows ascend. Where they are a good part of their rows' pairs, one product is cheaper than copies."""
    if not len(rows):
        return torch.empty(0, dtype=query.dtype)
    first, last = int(rows[0]), int(rows[-1])
    if (last - first + 1) * len(gallery) < 16 * len(rows):
        return (query[first : last + 1] @ gallery.T)[rows - first, columns]
    return (query[rows] * gallery[columns]).sum(1)


def _unit_fp64(features: Tensor) -> Tensor:
    wide = features.float().double()  # what fp32 holds decides, whatever the features came in
    return wide / wide.norm(dim=1, keepdim=True)


def answerable(query_keys: Tensor, gallery_keys: Tensor, allow_unanswerable: bool) -> Tensor:
    """Rows of queries that have a positive. Raises DataError where one has none, unless that is allowed."""
    there = torch.isin(query_keys, gallery_keys)
    if not allow_unanswerable and not bool(there.all()):
        raise DataError(
            f"{int((~there).sum())} queries have no positive in the gallery, the first is row {int((~there).nonzero()[0, 0])}; "
            "evaluator.allow_unanswerable=true drops and counts them"
        )
    return there.nonzero()[:, 0]


def _sweep(
    scores: Callable[[Tensor], Tensor], again: Callable[[Tensor, Tensor], Tensor] | None, kept: Tensor, query_keys: Tensor,
    gallery_keys: Tensor, ties: str, tile: int | None, exclude: Tensor | None,
) -> Ranking:  # fmt: skip
    if ties not in ("pessimistic", "optimistic", "mean"):
        raise ConfigError(f"evaluator.ties={ties}: choose pessimistic, optimistic or mean")
    if not len(kept):
        raise DataError("no query has a positive in the gallery: there is nothing to rank")
    size = tile or max(1, min(2048, _TILE_CELLS // max(1, len(gallery_keys))))
    parts = []
    for rows in kept.split(size):
        score = scores(rows)
        if not bool(torch.isfinite(score).all()):
            raise NonFiniteError("scores of the evaluation are not finite")
        positive = query_keys[rows, None] == gallery_keys
        left_out = torch.zeros_like(positive)
        if exclude is not None:
            at, column = (exclude[rows] >= 0).nonzero(as_tuple=True)
            left_out[at, exclude[rows][at, column]] = True
        parts.append(_rank_tile(score, positive, left_out & ~positive, rows, again, ties))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Ranking(columns[0], columns[1], columns[2], kept, columns[3])


def _rank_tile(
    score: Tensor, positive: Tensor, left_out: Tensor, rows: Tensor, again: Callable[[Tensor, Tensor], Tensor] | None, ties: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rank, best positive, best rival and first rows of a tile's queries."""
    best = score.masked_fill(~positive, -torch.inf).amax(1)
    rivals = score.masked_fill(positive | left_out, -torch.inf)
    band = _CLOSE if again is not None else _TIED_SCORES
    ahead = (rivals > best[:, None] + band).sum(1).double()
    close = (rivals - best[:, None]).abs() <= band
    exact = best.double()
    if again is None:
        tied = close.sum(1).double()
    else:
        exact = _exact_best(score, positive, best, rows, again)
        at, column = close.nonzero(as_tuple=True)
        difference = again(rows[at], column) - exact[at]
        ahead.index_add_(0, at, (difference > _TIED).double())
        tied = torch.zeros_like(ahead).index_add_(0, at, (difference.abs() <= _TIED).double())
    weight = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}[ties]
    order = score.masked_fill(left_out, -torch.inf)
    return 1 + ahead + weight * tied, exact, rivals.amax(1).double(), _top(order)


def _exact_best(score: Tensor, positive: Tensor, best: Tensor, rows: Tensor, again: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The best positive's score in fp64: of all positives that fp32 can not tell from the best."""
    at, column = (positive & (score >= best[:, None] - _CLOSE)).nonzero(as_tuple=True)
    values = again(rows[at], column)
    return torch.full((len(score),), -torch.inf, dtype=torch.float64).scatter_reduce_(0, at, values, "amax")


def _top(score: Tensor) -> Tensor:
    """The first 10 columns of each row, the lower column first where scores tie."""
    shown = min(10, score.shape[1])
    values, columns = score.topk(shown, dim=1)
    columns, order = columns.sort(dim=1)
    columns = columns.gather(1, values.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    # topk takes any of the columns that tie for the last place
    for row in ((score >= values[:, -1:]).sum(1) > shown).nonzero()[:, 0].tolist():
        columns[row] = score[row].sort(descending=True, stable=True).indices[:shown]
    return columns
