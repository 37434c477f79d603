"""Symmetric contrastive loss (CLIP, arXiv 2103.00020) with any number of positives a row (the mean of SupCon, arXiv 2004.11362).

A key says which rows belong together; the data set makes it (dataset.positives). forward takes features and sees all ranks; from_scores
takes a matrix that somebody else has made (a similarity, an evaluator). A target may be longer than the query: rows of its own.
"""

import torch
from torch import Tensor

from mmexpert.losses.base import Loss, raised, require_positives
from mmexpert.losses.gather import gather
from mmexpert.types import ConfigError

_NAMED = {frozenset(["query_to_target"]): "query", frozenset(["query_to_target", "target_to_query"]): "both"}


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
        target_keys = keys if target_keys is None else target_keys
        with torch.autocast(query.device.type, enabled=False):  # else @ is bf16 again, where one query in three ties
            query, target = self.unit_rows(query, target, keys, target_keys)
            rows = query @ gather(target).T
            columns = target[: len(query)] @ gather(query).T if self.directions == "both" else None
            row_positives = keys[:, None] == gather(target_keys)
            column_positives = target_keys[: len(query), None] == gather(keys)
            return self._terms(rows, columns, row_positives, column_positives)

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """Loss of given scores."""
        with torch.autocast(scores.device.type, enabled=False):
            scores = raised(scores)
            columns = scores.T if self.directions == "both" else None
            return self._terms(scores, columns, positives, positives.T)

    def _terms(self, rows: Tensor, columns: Tensor | None, row_positives: Tensor, column_positives: Tensor) -> dict[str, Tensor]:
        scale = self.logit_scale.exp()
        there, floor = self.direction(scale * rows, row_positives, "query")
        terms = {"loss_clip": there, "loss_query_to_target": there}
        if columns is not None:
            back, back_floor = self.direction(scale * columns, column_positives, "target")
            terms |= {"loss_clip": (there + back) / 2, "loss_target_to_query": back}
            floor = (floor + back_floor) / 2
        return terms | {"loss_clip_floor": floor, "loss_clip_excess": terms["loss_clip"].detach() - floor}

    def direction(self, logits: Tensor, positives: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Mean loss of the rows of logits [R, C], and the least it can be: what every way to this loss goes through.

        side: query or target, for messages.
        """
        require_positives(positives, side)
        log_share = logits.log_softmax(1)
        count = positives.sum(1)
        if self.form == "in":
            return -log_share.masked_fill(~positives, -torch.inf).logsumexp(1).mean(), torch.zeros((), device=logits.device)
        loss = -(log_share * positives).sum(1) / count
        return loss.mean(), count.to(logits.dtype).log().mean()
