"""The rank of every query's best positive against the whole gallery, in tiles, the same on every machine.

Ties count against the query (pessimistic): a collapsed model ranks last. fp32 decides where |s - s+| > 2e-6; closer pairs are scored
again in fp64 from the same features, so that a rank depends on no block size, order or hardware. Never a sort, never N x N: one tile
and one copy of the gallery.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmexpert.types import ConfigError, DataError, NonFiniteError

TIES = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}
"""What a rival counts that ties with the best positive."""

_CLOSE, _TIED = 2e-6, 1e-9  # fp32 band that is looked at again; what counts as equal then
_TIED_SCORES = 1e-6  # of a similarity, whose scores have no second look
_TILE_ROWS, _TILE_CELLS = 160, 2**26  # fewer rows make the product slow, which packs the gallery anew for each tile; 256 MB of fp32
_COUNTED_ROWS = 32  # of a tile, counted at once: they stay in a core's cache
_SECOND_LOOK = 2**19  # features of a block of pairs that is scored again
_TOP, _GROUP = 10, 32  # first rows kept; columns of a group, of which only the ten best are searched for them

Fill = Callable[[Tensor, Tensor], object]  # (query rows [b], out [b, P]): writes their scores
Again = Callable[[Tensor, Tensor], Tensor]  # (query rows [p], gallery rows [p]) -> fp64 [p]


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
    query, gallery = query.float(), gallery.float()  # what fp32 holds decides, whatever the features came in
    query_norm, gallery_norm = norms(query, "query"), norms(gallery, "gallery")
    width = _padded(len(gallery))
    table = torch.zeros(width, gallery.shape[1], device=gallery.device)
    torch.div(gallery, gallery_norm[:, None].float(), out=table[: len(gallery)])

    def fill(rows: Tensor, out: Tensor) -> None:
        torch.mm(query[rows] / query_norm[rows, None].float(), table.T, out=out)

    def again(rows: Tensor, columns: Tensor) -> Tensor:
        # from the features and not from their fp32 unit rows, whose rounding (1e-8) would tell multiples of one vector apart
        step = max(1, _SECOND_LOOK // query.shape[1])  # a collapsed model ties everywhere: its pairs would not fit into memory at once
        blocks = zip(rows.split(step), columns.split(step), strict=True)
        return torch.cat([_pair_scores(query, gallery, r, c) / (query_norm[r] * gallery_norm[c]) for r, c in blocks])

    positives = _Positives(query_keys, gallery_keys, exclude, allow_unanswerable)
    with full_precision():
        return _sweep(fill, again, positives, ties, tile)


def rank_scores(
    scores: Callable[[Tensor], Tensor], query_keys: Tensor, gallery_keys: Tensor, ties: str = "pessimistic", tile: int | None = None,
    exclude: Tensor | None = None, allow_unanswerable: bool = False,
) -> Ranking:  # fmt: skip
    """Ranks by given scores: a function query rows [b] -> [b, Ng] fp32. Tied within 1e-6."""

    def fill(rows: Tensor, out: Tensor) -> None:
        given = scores(rows)
        if not bool(torch.isfinite(given).all()):
            raise NonFiniteError("scores of the evaluation are not finite")
        out[:, : len(gallery_keys)] = given

    return _sweep(fill, None, _Positives(query_keys, gallery_keys, exclude, allow_unanswerable), ties, tile)


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products in fp32: no TF32 or bf16 inside, whatever the process is set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Positives:
    """Which gallery rows answer or leave out which query: keys are sorted once, so that a tile has a flat list of pairs and no mask."""

    def __init__(self, query_keys: Tensor, gallery_keys: Tensor, exclude: Tensor | None, allow_unanswerable: bool) -> None:
        ordered, self.order = gallery_keys.sort(stable=True)
        self.start = torch.searchsorted(ordered, query_keys)
        self.count = torch.searchsorted(ordered, query_keys, right=True) - self.start
        self.exclude, self.gallery = exclude, len(gallery_keys)
        there = self.count > 0
        if not allow_unanswerable and not bool(there.all()):
            raise DataError(
                f"{int((~there).sum())} queries have no positive in the gallery, the first is row {int((~there).nonzero()[0, 0])}; "
                "evaluator.allow_unanswerable=true drops and counts them"
            )
        self.kept = there.nonzero()[:, 0]
        if not len(self.kept):
            raise DataError("no query has a positive in the gallery: there is nothing to rank")

    def pairs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(place in rows, gallery row) of every positive of these queries."""
        count = self.count[rows]
        at = torch.repeat_interleave(count)
        first = self.start[rows] - count.cumsum(0) + count
        return at, self.order[first[at] + torch.arange(len(at), device=at.device)]

    def left_out(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """(place in rows, gallery row) of what is excluded."""
        if self.exclude is None:
            return None
        named = self.exclude[rows]
        at, entry = (named >= 0).nonzero(as_tuple=True)
        return at, named[at, entry]


def _sweep(fill: Fill, again: Again | None, positives: _Positives, ties: str, tile: int | None) -> Ranking:
    if ties not in TIES:
        raise ConfigError(f"evaluator.ties={ties}: choose {', '.join(TIES)}")
    width, kept = _padded(positives.gallery), positives.kept
    size = min(len(kept), tile or max(1, min(_TILE_ROWS, _TILE_CELLS // width)))
    score, marks = (torch.empty(rows, width, device=kept.device) for rows in (size, min(size, _COUNTED_ROWS)))
    parts = []
    for rows in kept.split(size):
        block = score[: len(rows)]
        fill(rows, block)
        block[:, positives.gallery :] = -torch.inf
        parts.append(_rank_tile(block, marks, rows, positives, again, TIES[ties]))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return Ranking(columns[0], columns[1], columns[2], kept, columns[3])


def _rank_tile(
    score: Tensor, marks: Tensor, rows: Tensor, positives: _Positives, again: Again | None, tie: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rank, best positive, best rival and first rows of a tile's queries; score [b, P] and marks are overwritten."""
    at, column = positives.pairs(rows)
    own = score[at, column]
    if (left_out := positives.left_out(rows)) is not None:
        score[left_out] = -torch.inf
        score[at, column] = own  # a positive that is named among the excluded stays
    best = own.new_full((len(rows),), -torch.inf).scatter_reduce_(0, at, own, "amax")
    top = _top(score, min(_TOP, positives.gallery))
    score[at, column] = -torch.inf
    rival = score.amax(1)
    band = _CLOSE if again is not None else _TIED_SCORES
    ahead = _counted(torch.gt, score, best + band, marks)
    tied = _counted(torch.ge, score, best - band, marks) - ahead
    exact = best.double()
    if again is not None:
        near = own >= (best - band)[at]  # positives that fp32 can not tell from the best
        exact.fill_(-torch.inf).scatter_reduce_(0, at[near], again(rows[at[near]], column[near]), "amax")
        unsure, tied = tied.nonzero()[:, 0], torch.zeros_like(tied)
        for part in unsure.split(_COUNTED_ROWS):
            close = (score[part] - best[part, None]).abs_() <= band
            place, rival_row = close.nonzero(as_tuple=True)
            place = part[place]
            difference = again(rows[place], rival_row) - exact[place]
            ahead.index_add_(0, place, (difference > _TIED).double())
            tied.index_add_(0, place, (difference.abs() <= _TIED).double())
    return 1 + ahead + tie * tied, exact, rival.double(), top


def _counted(compare: Callable[..., Tensor], score: Tensor, limit: Tensor, marks: Tensor) -> Tensor:
    """fp64 [b]: how many scores of each row compare true with its limit. marks [rows at once, P]: as fp32, since a sum of bool is slow."""
    blocks = zip(score.split(len(marks)), limit[:, None].split(len(marks)), strict=True)
    return torch.cat([compare(part, bound, out=marks[: len(part)]).sum(1) for part, bound in blocks]).double()


def _pair_scores(query: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """fp64 products of single pairs; rows ascend. Where they are a good part of their rows' pairs, one product is cheaper than copies."""
    if not len(rows):
        return query.new_empty(0).double()
    first, last = int(rows[0]), int(rows[-1])
    if (last - first + 1) * len(gallery) < 16 * len(rows):
        return (query[first : last + 1].double() @ gallery.double().T)[rows - first, columns]
    return (query[rows].double() * gallery[columns].double()).sum(1)


def _top(score: Tensor, shown: int) -> Tensor:
    """The first columns of each row, the lower column first where scores tie.

    The ten best elements lie in the ten groups of neighbours with the best maxima (of equals the first group), so only these are searched.
    """
    rows, width = score.shape
    groups = score.view(rows, -1, _GROUP).amax(2)
    best = _order(groups, torch.arange(groups.shape[1], device=score.device)).topk(min(shown, groups.shape[1]), dim=1).indices
    columns = (best[:, :, None] * _GROUP + torch.arange(_GROUP, device=score.device)).flatten(1)
    chosen = _order(score.gather(1, columns), columns).topk(shown, dim=1).indices
    return columns.gather(1, chosen)


def _order(values: Tensor, columns: Tensor) -> Tensor:
    """int64 numbers in the order of fp32 values, of equal ones the lower column ahead: topk alone takes any of those that tie."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down
    return (rising.long() << 32) - columns


def _padded(gallery: int) -> int:
    """Columns of a tile: whole groups."""
    return -(-gallery // _GROUP) * _GROUP
