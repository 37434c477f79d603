"""Symmetric contrastive loss (CLIP, arXiv 2103.00020) with any number of positives a row (the mean of SupCon, arXiv 2004.11362).

A key says which rows belong together; the data set makes it (dataset.positives). forward takes features and sees all ranks; from_scores
takes a matrix that somebody else has made (a similarity, an evaluator). A target may be longer than the query: rows of its own.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.losses import tiling
from mmexpert.losses.base import Loss, raised, require_positives
from mmexpert.losses.gather import gather, max_over_ranks, processes, sum_over_ranks
from mmexpert.losses.tiled import clip_tiles
from mmexpert.types import ConfigError

_NAMED = {frozenset(["query_to_target"]): "query", frozenset(["query_to_target", "target_to_query"]): "both"}
DENSE_BYTES = 2**20  # scores of up to 512 rows: one matrix under autograd is as fast


class ClipLoss(Loss):
    """Pulls rows of one key together and all others apart. With k positives in a row the least value is log k (loss_clip_floor).

    form: out (mean over positives of the log) | in (log of their summed probability). directions: both | query (rows only), or a list
    of their logged names: [query_to_target] is query.
    """

    def __init__(self, temperature: float, learn_scale: bool, form: str, directions: str | list[str]) -> None:
        super().__init__(temperature, learn_scale)
        if not isinstance(directions, str):
            directions = _NAMED.get(frozenset(directions), directions)
        if form not in ("out", "in") or directions not in ("both", "query"):
            raise ConfigError(f"loss.form={form} is out or in; loss.directions={directions} is both, query or [query_to_target]")
        self.form, self.directions = form, directions

    def forward(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor | None = None) -> dict[str, Tensor]:
        """Own rows and own columns against all ranks; further target rows are columns of the row direction only."""
        one_to_one, target_keys = target_keys is None, keys if target_keys is None else target_keys
        with torch.autocast(query.device.type, enabled=False):  # else @ is bf16 again, where one query in three ties
            query, target = self.unit_rows(query, target, keys, target_keys)
            if one_to_one and (form := self._form_for(query)) != "dense":
                columns = gather(target), gather(keys)
                scale, both = self.logit_scale.exp(), self.directions == "both"
                return clip_tiles(query, columns[0], scale, (keys, columns[1]), both, form == "store")
            scaled = self.logit_scale.exp() * query
            rows, positives = scaled @ gather(target).T, keys[:, None] == gather(target_keys)
            if one_to_one and self._each_alone(positives):
                return self._own_terms(rows)
            columns, column_positives = rows[:, : len(query)].T, positives[:, : len(query)].T  # alone, one product serves both directions
            if processes() > 1 and self.directions == "both":
                columns = self.logit_scale.exp() * target[: len(query)] @ gather(query).T
                column_positives = target_keys[: len(query), None] == gather(keys)
            return self._terms(rows, columns, positives, column_positives)

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """Loss of given scores."""
        with torch.autocast(scores.device.type, enabled=False):
            logits = self.logit_scale.exp() * raised(scores)
            return self._terms(logits, logits.T, positives, positives.T)

    def from_row_block(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """Own rows of the scores; of the columns, whose other rows other ranks hold, only sums travel.

        Further target rows stand behind each rank's own: they are columns of the row direction only.
        """
        own = _own_columns(scores)
        with torch.autocast(scores.device.type, enabled=False):
            if processes() == 1 or self._has_own_direction():
                logits, positives = self.logit_scale.exp() * raised(gather(scores)), gather(positives.long()).bool()
                return self._terms(logits, logits[:, own].T, positives, positives[:, own].T)
            logits = self.logit_scale.exp() * raised(scores)
            there, floor = self.direction(logits, positives, "query")
            if self.directions == "query":
                return {"loss_clip": there, "loss_clip_floor": floor}
            back, back_floor = self._columns_of_all(logits[:, own], positives[:, own])
            return {"loss_clip": (there + back) / 2, "loss_clip_floor": (floor + back_floor) / 2}

    def _columns_of_all(self, logits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
        """direction() of the transposed logits of all ranks."""
        count = require_positives(sum_over_ranks(positives.sum(0))[:, None], "target")
        total = _log_sum_exp(logits)
        if self.form == "in":
            return (total - _log_sum_exp(logits.masked_fill(~positives, -torch.inf))).mean(), logits.new_zeros(())
        return (total - sum_over_ranks((logits * positives).sum(0)) / count).mean(), count.to(logits.dtype).log().mean()

    def _form_for(self, query: Tensor) -> str:
        """dense, store or recompute: tiles know the form out alone, and no direction of somebody else's."""
        if self.form != "out" or self._has_own_direction():
            return "dense"
        ranks = processes()
        return self.tiling.of_size(len(query) ** 2 * ranks * query.element_size(), DENSE_BYTES if ranks == 1 else 0)

    def _has_own_direction(self) -> bool:
        return type(self).direction is not ClipLoss.direction

    def _each_alone(self, positives: Tensor) -> bool:
        """Whether each row's only positive is its own pair, where the host may look: then both forms are the plain cross entropy."""
        if processes() > 1 or self._has_own_direction() or not tiling.free_to_read(positives):
            return False
        return int(positives.sum()) == len(positives)

    def _own_terms(self, logits: Tensor) -> dict[str, Tensor]:
        own = torch.arange(len(logits), device=logits.device)
        loss = there = F.cross_entropy(logits, own)
        terms = {"loss_query_to_target": there}
        if self.directions == "both":
            terms["loss_target_to_query"] = back = F.cross_entropy(logits.T, own)
            loss = (there + back) / 2
        return {"loss_clip": loss} | terms | {"loss_clip_floor": logits.new_zeros(()), "loss_clip_excess": loss.detach()}

    def _terms(self, rows: Tensor, columns: Tensor, row_positives: Tensor, column_positives: Tensor) -> dict[str, Tensor]:
        """rows, columns: logits of each direction."""
        there, floor = self.direction(rows, row_positives, "query")
        terms = {"loss_clip": there, "loss_query_to_target": there}
        if self.directions == "both":
            back, back_floor = self.direction(columns, column_positives, "target")
            terms |= {"loss_clip": (there + back) / 2, "loss_target_to_query": back}
            floor = (floor + back_floor) / 2
        return terms | {"loss_clip_floor": floor, "loss_clip_excess": terms["loss_clip"].detach() - floor}

    def direction(self, logits: Tensor, positives: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Mean loss of the rows of logits [R, C], and the least it can be: what every way to this loss goes through.

        side: query or target, for messages.
        """
        count = require_positives(positives, side)
        log_share = logits.log_softmax(1)
        if self.form == "in":
            return -log_share.masked_fill(~positives, -torch.inf).logsumexp(1).mean(), logits.new_zeros(())
        loss = -(log_share * positives).sum(1) / count
        return loss.mean(), count.to(logits.dtype).log().mean()


def _own_columns(scores: Tensor) -> Tensor | slice:
    """Which columns of the own rows [R, N Bt] are own pairs of some rank: of each rank's Bt the first R."""
    rows, width = len(scores), scores.shape[1] // processes()
    if processes() == 1 or width == rows:
        return slice(rows if processes() == 1 else None)
    return torch.arange(scores.shape[1], device=scores.device).unflatten(0, (processes(), width))[:, :rows].flatten()


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Of each column [C] over the rows of all ranks; -inf leaves an entry out."""
    most = max_over_ranks(logits.amax(0))
    return sum_over_ranks((logits - most).exp().sum(0)).log() + most
