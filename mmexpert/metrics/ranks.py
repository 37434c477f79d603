"""The rank of every query's best positive against the whole gallery, in blocks, the same on every machine.

Ties count against the query (pessimistic): a collapsed model ranks last. fp32 decides where |s - s+| > 2e-6; closer pairs are scored
again in fp64 from the same features, so that a rank depends on no block size, order or hardware. Never a sort, never N x N: two tiles.
Both directions count in the same blocks, since the product takes most of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.metrics.tally import CLOSE, GROUP, Again, Tally, pairs
from mmexpert.types import ConfigError, DataError, NonFiniteError

TIES = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}
"""What a rival counts that ties with the best positive."""

_ROWS, _COLUMNS = 512, 960  # of a block: it and its marks stay in the cache, and neither product nor bookkeeping is slow
_DENSE = 16  # where one pair in so many is asked for, a product is cheaper than copies of the pairs' features
_SECOND_LOOK = 2**18  # features of pairs that are scored again at once


@dataclass(frozen=True)
class Ranking:
    """Per query: rank (from 1; half ranks under ties=mean), best positive's score, best rival's score, first rows; queries kept."""

    rank: Tensor  # float64 [Nq]
    positive: Tensor  # float64 [Nq]
    rival: Tensor  # float64 [Nq]; -inf where there is no rival
    kept: Tensor  # int64 [Nq]: rows of the query side that have a positive
    top: Tensor  # int64 [Nq, min(10, Ng)]: the first rows of the gallery, the lower one where two tie


def unit(features: Tensor, role: str, ids: Sequence[str] | None = None) -> Tensor:
    """fp32 rows of length 1. Raises NonFiniteError for NaN, infinity or a zero row, naming ids where they are given."""
    return features.float() / norms(features, role, ids)[:, None].float()


def norms(features: Tensor, role: str, ids: Sequence[str] | None = None) -> Tensor:
    """fp64 lengths [N] of the rows as fp32 holds them. Raises NonFiniteError naming the role and the rows (or ids) that have none."""
    found = torch.cat([part.float().double().norm(dim=1) for part in features.split(512)] or [features.new_zeros(0).double()])
    bad = ~torch.isfinite(found.float()) | (found.float() == 0)
    if bool(bad.any()):
        rows = bad.nonzero()[:5, 0].tolist()
        first = f"at rows {rows}" if ids is None else f"of {', '.join(ids[row] for row in rows)}"
        raise NonFiniteError(f"{int(bad.sum())} {role} features are zero or not finite, the first {first}")
    return found


def rank_features(
    query: Tensor, gallery: Tensor, query_keys: Tensor, gallery_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    exclude: Tensor | None = None, allow_unanswerable: bool = False,
) -> Ranking:  # fmt: skip
    """Ranks by cosine of rows of any length query [Nq, D] and gallery [Ng, D]; exclude [Nq, E] gallery rows, -1 = none."""
    weight, there = _weight(ties), _answerable(query_keys, gallery_keys, allow_unanswerable)
    cosines = _Cosines(query, gallery)
    tally = _tally(there, len(gallery), cosines.exact)
    _sweep(cosines, (query_keys, gallery_keys), [tally], tile, exclude)
    return _ranking(tally, there, weight)


def rank_directions(
    query: Tensor, target: Tensor, query_keys: Tensor, target_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    allow_unanswerable: bool = False,
) -> tuple[Ranking, Ranking]:  # fmt: skip
    """rank_features of query against target and of target against query, from one product."""
    weight = _weight(ties)
    forth = _answerable(query_keys, target_keys, allow_unanswerable)
    back = _answerable(target_keys, query_keys, allow_unanswerable)
    cosines = _Cosines(query, target)
    tallies = [
        _tally(forth, len(target), cosines.exact),
        _tally(back, len(query), lambda rows, columns: cosines.exact(columns, rows)),
    ]
    _sweep(cosines, (query_keys, target_keys), tallies, tile, None)
    return _ranking(tallies[0], forth, weight), _ranking(tallies[1], back, weight)


def rank_scores(
    scores: Callable[[Tensor], Tensor], query_keys: Tensor, gallery_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    exclude: Tensor | None = None, allow_unanswerable: bool = False,
) -> Ranking:  # fmt: skip
    """Ranks by given scores: a function query rows [b] -> [b, Ng] fp32. Tied within 1e-6."""
    weight, there = _weight(ties), _answerable(query_keys, gallery_keys, allow_unanswerable)
    gallery = len(gallery_keys)
    tally = _tally(there, gallery, None)
    for rows in _slices(len(query_keys), tile or max(1, _ROWS * _COLUMNS // gallery)):
        given = scores(torch.arange(rows.start, rows.stop, device=query_keys.device))
        if not bool(torch.isfinite(given).all()):
            raise NonFiniteError("scores of the evaluation are not finite")
        score = F.pad(given.float(), (0, _padded(gallery) - gallery), value=-torch.inf)
        at, column = pairs(query_keys[rows], gallery_keys)
        tally.best.scatter_reduce_(0, rows.start + at, score[at, column].double(), "amax")
        _count(score, torch.empty_like(score), (rows, slice(0, gallery)), [tally], (at, column), exclude)
    return _ranking(tally, there, weight)


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products in fp32: no TF32 or bf16 inside, whatever the process is set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Cosines:
    """Scores of any rows of two sides, in fp32 by blocks and in fp64 by pairs."""

    def __init__(self, query: Tensor, gallery: Tensor) -> None:
        self.query, self.gallery = query.float(), gallery.float()  # what fp32 holds decides, whatever the features came in
        self.query_norm, self.gallery_norm = norms(self.query, "query"), norms(self.gallery, "gallery")

    def fill(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Writes the block's fp32 scores."""
        query = self.query[rows] / self.query_norm[rows, None].float()
        torch.mm(query, (self.gallery[columns] / self.gallery_norm[columns, None].float()).T, out=out)

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """fp64 [p] of pairs (query row, gallery row)."""
        # from the features and not from their fp32 unit rows, whose rounding (1e-8) would tell multiples of one vector apart
        step = max(1, _SECOND_LOOK // self.query.shape[1])  # a collapsed model ties everywhere: its pairs would not fit into memory at once
        blocks = zip(rows.split(step), columns.split(step), strict=True)
        return torch.cat([_pair_scores(self.query, self.gallery, r, c) / (self.query_norm[r] * self.gallery_norm[c]) for r, c in blocks])


def _sweep(cosines: _Cosines, keys: tuple[Tensor, Tensor], tallies: Sequence[Tally], tile: int | None, exclude: Tensor | None) -> None:
    """Counts the whole matrix block by block: for its rows, and for its columns where there is a second tally."""
    queries, gallery = (len(side) for side in keys)
    # ten columns or more, since the first rows of a first block may have to skip excluded ones
    height, width = min(tile or _ROWS, queries), min(_padded(tile or _COLUMNS), gallery)
    blocks = list(product(_slices(queries, height), _slices(gallery, width)))
    buffers = cosines.query.new_empty(2, _padded(height) * _padded(width))
    with full_precision():
        for rows, columns in blocks:  # both directions count against the best positives, which may lie in any block
            _find_best(cosines, rows, columns, pairs(keys[0][rows], keys[1][columns]), tallies, buffers[0])
        for rows, columns in blocks:
            b, c = rows.stop - rows.start, columns.stop - columns.start
            score, marks = buffers[:, : _padded(b) * _padded(c)].view(2, _padded(b), _padded(c))
            cosines.fill(rows, columns, score[:b, :c])
            score[b:], score[:, c:] = -torch.inf, -torch.inf
            _count(score, marks, (rows, columns), tallies, pairs(keys[0][rows], keys[1][columns]), exclude)


def _find_best(
    cosines: _Cosines, rows: slice, columns: slice, own: tuple[Tensor, Tensor], tallies: Sequence[Tally], buffer: Tensor
) -> None:
    """Raises the tallies' best positives to those of a block in fp64; own: its pairs of one key; buffer is overwritten."""
    at, column = own
    places = (rows.start + at, columns.start + column)[: len(tallies)]
    b, c = rows.stop - rows.start, columns.stop - columns.start
    near = torch.ones_like(at, dtype=torch.bool)
    if b * c < _DENSE * len(at):  # keys are classes, say: fp32 tells which few of so many pairs may be the best
        score = buffer[: b * c].view(b, c)
        cosines.fill(rows, columns, score)
        rough = score[at, column]
        reached = [tally.best.float().scatter_reduce(0, place, rough, "amax") for tally, place in zip(tallies, places, strict=True)]
        near = torch.stack([rough >= best[place] - CLOSE for best, place in zip(reached, places, strict=True)]).any(0)
    exact = cosines.exact(rows.start + at[near], columns.start + column[near])
    for tally, place in zip(tallies, places, strict=True):
        tally.best.scatter_reduce_(0, place[near], exact, "amax")


def _count(
    score: Tensor, marks: Tensor, block: tuple[slice, slice], tallies: Sequence[Tally], own: tuple[Tensor, Tensor], exclude: Tensor | None
) -> None:
    """Counts a block of scores, padded to whole groups, into the tallies; own: its pairs of one key."""
    rows, columns = block
    b, c = rows.stop - rows.start, columns.stop - columns.start
    if exclude is not None:
        named = exclude[rows]
        at, entry = ((named >= columns.start) & (named < columns.stop)).nonzero(as_tuple=True)
        kept = score[own]
        score[at, named[at, entry] - columns.start] = -torch.inf
        score[own] = kept  # a positive that is named among the excluded stays
    ways = ((score[:b], marks[:b], rows, columns), (score.T[:c], marks.T[:c], columns, rows))[: len(tallies)]
    for tally, (view, _, queries, gallery) in zip(tallies, ways, strict=True):
        tally.join(view, queries, gallery.start, gallery.stop - gallery.start)
    score[own] = -torch.inf
    for tally, (view, spare, queries, gallery) in zip(tallies, ways, strict=True):
        tally.count(view, spare, queries, gallery.start)


def _weight(ties: str) -> float:
    if ties not in TIES:
        raise ConfigError(f"evaluator.ties={ties}: choose {', '.join(TIES)}")
    return TIES[ties]


def _answerable(query_keys: Tensor, gallery_keys: Tensor, allow_unanswerable: bool) -> Tensor:
    """bool [Nq]: which queries have a positive. Raises DataError where some have none, unless allowed, or all."""
    there = torch.isin(query_keys, gallery_keys)
    if not allow_unanswerable and not bool(there.all()):
        raise DataError(
            f"{int((~there).sum())} queries have no positive in the gallery, the first is row {int((~there).nonzero()[0, 0])}; "
            "evaluator.allow_unanswerable=true drops and counts them"
        )
    if not bool(there.any()):
        raise DataError("no query has a positive in the gallery: there is nothing to rank")
    return there


def _tally(there: Tensor, gallery: int, again: Again | None) -> Tally:
    """Of queries whose best positives are still to be found; nothing is ahead of one that has none."""
    return Tally(torch.where(there, -torch.inf, torch.inf).double(), gallery, again)


def _ranking(tally: Tally, there: Tensor, weight: float) -> Ranking:
    rank = 1 + tally.ahead + weight * tally.tied
    return Ranking(rank[there], tally.best[there], tally.rival[there].double(), there.nonzero()[:, 0], tally.top[there])


def _pair_scores(query: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """fp64 products of single pairs. Where they are a good part of the rectangle that they span, one product is cheaper than copies."""
    if not len(rows):
        return query.new_empty(0).double()
    (top, bottom), (left, right) = (torch.stack(side.aminmax()).tolist() for side in (rows, columns))
    if (bottom - top + 1) * (right - left + 1) < _DENSE * len(rows):
        return (query[top : bottom + 1].double() @ gallery[left : right + 1].double().T)[rows - top, columns - left]
    return (query[rows].double() * gallery[columns].double()).sum(1)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _padded(length: int) -> int:
    """Whole groups."""
    return -(-length // GROUP) * GROUP
