"""What one direction counts while the scores pass by in blocks: rivals ahead of the best positive and tied with it, the best rival, the
first rows.

A query sees the gallery's blocks in ascending order. Counts are sums and the rest are maxima, so that the size of blocks changes nothing.
Shapes: b queries and P gallery rows of a block, padded with -inf to whole groups; a block may be a transposed view, nothing is copied.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 32  # neighbours of the gallery, of whose best score it depends whether they are searched for first rows; blocks have whole groups
_TOP = 10  # first rows kept
CLOSE, _TIED = 2e-6, 1e-9  # fp32 band that is looked at again; what counts as equal then
_TIED_SCORES = 1e-6  # of given scores, which have no second look
_LOOK_ROWS = 32  # rows with close pairs, copied at once

Again = Callable[[Tensor, Tensor], Tensor]  # (query rows [p], gallery rows [p]) -> fp64 scores [p]


class Tally:
    """Counts of all queries of a direction. best: fp64 [Nq], score of the best positive, to be known before its row is counted (inf where
    there is none); gallery: rows; again: scores close pairs in fp64, None = no second look."""

    def __init__(self, best: Tensor, gallery: int, again: Again | None) -> None:
        self.best, self.again = best, again
        self.ahead, self.tied = torch.zeros_like(best), torch.zeros_like(best)
        self.rival = torch.full_like(best, -torch.inf, dtype=torch.float32)
        self.top = best.new_zeros((len(best), min(_TOP, gallery)), dtype=torch.long)  # the first rows so far, and their scores
        self.top_score = torch.full_like(self.top, -torch.inf, dtype=torch.float32)

    def join(self, score: Tensor, rows: slice, first: int, size: int) -> None:
        """Takes the first rows of a block [b, P] that begins at gallery row first and has size real ones; its positives are still in it."""
        seen, shown = min(_TOP, first), min(_TOP, first + size)
        # a score equal to the tenth so far is of a higher row: it loses
        at, column = _above(score, self.top_score[rows, -1]) if seen else _in_best_groups(score)
        new = at.bincount(minlength=len(score))
        place = seen + torch.arange(len(at), device=at.device) - (new.cumsum(0) - new)[at]
        values = score.new_full((len(score), seen + int(new.max())), -torch.inf)
        columns = torch.full_like(values, first + size, dtype=torch.long)  # of an empty place: behind all real ones
        values[:, :seen], columns[:, :seen] = self.top_score[rows, :seen], self.top[rows, :seen]
        values[at, place], columns[at, place] = score[at, column], first + column
        chosen = _order(values, columns).topk(shown, dim=1).indices
        self.top[rows, :shown], self.top_score[rows, :shown] = columns.gather(1, chosen), values.gather(1, chosen)

    def count(self, score: Tensor, marks: Tensor, rows: slice, first: int) -> None:
        """Counts the rivals of a block [b, P] whose positives are -inf now; marks [b, P] is overwritten."""
        best, band = self.best[rows].float()[:, None], CLOSE if self.again is not None else _TIED_SCORES
        lower, upper = best - band, best + band
        self.rival[rows] = torch.maximum(self.rival[rows], score.amax(1))
        # as fp32, since a sum of bool is slow
        ahead = torch.gt(score, upper, out=marks).sum(1).double()
        tied = torch.ge(score, lower, out=marks).sum(1).double() - ahead
        self.ahead[rows] += ahead
        if self.again is None:
            self.tied[rows] += tied
            return
        for part in tied.nonzero()[:, 0].split(_LOOK_ROWS):
            # by the same two limits: a difference, rounded otherwise, would leave a pair on the edge to neither
            place, column = ((score[part] >= lower[part]) & (score[part] <= upper[part])).nonzero(as_tuple=True)
            row = rows.start + part[place]
            difference = self.again(row, first + column) - self.best[row]
            self.ahead.index_add_(0, row, (difference > _TIED).double())
            self.tied.index_add_(0, row, (difference.abs() <= _TIED).double())


def pairs(query_keys: Tensor, gallery_keys: Tensor) -> tuple[Tensor, Tensor]:
    """(query row, gallery row) of all that have one key, by query row: a flat list and no mask."""
    ordered, order = gallery_keys.sort(stable=True)
    query_keys = query_keys.contiguous()  # a column of a table, say: searchsorted warns
    start = torch.searchsorted(ordered, query_keys)
    count = torch.searchsorted(ordered, query_keys, right=True) - start
    at = torch.repeat_interleave(count)
    first = start - count.cumsum(0) + count
    return at, order[first[at] + torch.arange(len(at), device=at.device)]


def _in_best_groups(score: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of the scores among which are the first ten of each row, by row; few, but 320 a row where all tie.

    The ten best elements lie in the ten groups of neighbours with the best maxima (of equals the first group), and none is below these.
    """
    maxima = _group_maxima(score)
    number = torch.arange(maxima.shape[1], device=score.device)
    best = _order(maxima, number).topk(min(_TOP, len(number)), dim=1).indices
    least = maxima.gather(1, best[:, -1:]) if len(number) >= _TOP else maxima.new_full((len(maxima), 1), -torch.inf)
    near = score.unflatten(1, (-1, GROUP))[torch.arange(len(best), device=best.device)[:, None], best]
    at, entry, place = (near >= least[:, :, None]).nonzero(as_tuple=True)
    return at, best[at, entry] * GROUP + place


def _above(score: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of all scores above the limit [b] of their row, by row."""
    at, group = (_group_maxima(score) > limit[:, None]).nonzero(as_tuple=True)
    entry, place = (score.unflatten(1, (-1, GROUP))[at, group] > limit[at, None]).nonzero(as_tuple=True)
    return at[entry], group[entry] * GROUP + place


def _group_maxima(score: Tensor) -> Tensor:
    """The best score of each group [b, P / 32], in the memory order of the block: across it a maximum takes twenty times as long."""
    return torch.amax(score.unflatten(1, (-1, GROUP)), 2, out=torch.empty_like(score[:, ::GROUP]))


def _order(values: Tensor, columns: Tensor) -> Tensor:
    """int64 numbers in the order of fp32 values, of equal ones the lower column ahead: topk alone takes any of those that tie."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: -0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count down
    return (rising.long() << 32) - columns
