"""Pairwise sigmoid loss (SigLIP, arXiv 2303.15343): every pair is its own yes-or-no question."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.losses.base import Loss, raised, require_positives
from mmexpert.losses.gather import gather, processes
from mmexpert.losses.tiled_sigmoid import sigmoid_ring, sigmoid_tiles
from mmexpert.losses.tiling import STORE_BYTES
from mmexpert.types import ConfigError

DENSE_BYTES = 2**23
_STEEPEST = 10.0  # of a bias by shares, the paper's own: where all pairs are positive it would be infinite


class SigLipLoss(Loss):
    """loss = -sum over pairs of logsigmoid(+-(scale * score + bias)) / B: the published scaling; a mean over B^2 would make the gradient
    B times smaller. There are B^2 - B negatives; what the sigmoid spares is the row normaliser.

    init_bias: first logit bias, or auto: log(q / (1 - q)) of the share q of positives that see_keys expects; NaN until then, or until
    stored weights are loaded. positive_weight: multiplies positive pairs.
    """

    def __init__(self, temperature: float, learn_scale: bool, init_bias: float | str, positive_weight: float) -> None:
        super().__init__(temperature, learn_scale)
        self.by_shares = init_bias == "auto"
        if isinstance(init_bias, str) and not self.by_shares:
            raise ConfigError(f"loss.init_bias={init_bias}: write a number, or auto")
        if not self.by_shares and not math.isfinite(init_bias) or positive_weight <= 0:
            raise ConfigError(f"loss.init_bias={init_bias} is finite, loss.positive_weight={positive_weight} above 0")
        self.logit_bias = nn.Parameter(torch.tensor(math.nan if self.by_shares else float(init_bias)), learn_scale)
        self.positive_weight = positive_weight

    def see_keys(self, keys: Tensor, rows: int) -> None:
        """Sets the bias where init_bias is auto."""
        if self.by_shares:
            with torch.no_grad():
                self.logit_bias.fill_(share_bias(keys, rows))

    def forward(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor | None = None) -> dict[str, Tensor]:
        """Own rows against the targets of all ranks."""
        one_to_one, target_keys = target_keys is None, keys if target_keys is None else target_keys
        with torch.autocast(query.device.type, enabled=False):
            query, target = self.unit_rows(query, target, keys, target_keys)
            matrix_bytes = len(query) ** 2 * processes() * query.element_size()
            if one_to_one and self.tiling.of_size(matrix_bytes, DENSE_BYTES) != "dense":
                return {"loss_clip": self._tiled(query, target, keys, matrix_bytes)}
            return self.from_row_block(query @ gather(target).T, keys[:, None] == gather(target_keys))

    def _tiled(self, query: Tensor, target: Tensor, keys: Tensor, matrix_bytes: int) -> Tensor:
        given = self.logit_scale.exp(), self.logit_bias, self.positive_weight
        if self.tiling.exchange == "ring" or self.tiling.exchange == "auto" and processes() > 1 and matrix_bytes > STORE_BYTES:
            return sigmoid_ring(query, target, keys, *given)
        return sigmoid_tiles(query, gather(target), (keys, gather(keys)), *given)

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """Loss of given scores."""
        require_positives(positives, "query")
        require_positives(positives.T, "target")
        return self._terms(scores, positives)

    def from_row_block(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """The own rows' share: pairs are independent. Further columns need no positive."""
        require_positives(positives, "query")
        return self._terms(scores, positives)

    def _terms(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        with torch.autocast(scores.device.type, enabled=False):
            logits = self.logit_scale.exp() * raised(scores) + self.logit_bias
            pairs = F.logsigmoid(torch.where(positives, logits, -logits))  # never log1p(exp(.)), which overflows
            weighted = torch.where(positives, self.positive_weight * pairs, pairs)
            return {"loss_clip": -weighted.sum() / len(scores)}


def share_bias(keys: Tensor, rows: int) -> float:
    """log(q / (1 - q)) of the expected share q of positives among the pairs of so many rows, drawn from keys [n] without replacement.

    A row is a positive of itself, and of each other row with the share of pairs of records that have one key. At most 10.
    """
    counts, records = keys.unique(return_counts=True)[1].double(), len(keys)
    others = float((counts * (counts - 1)).sum()) / max(1, records * (records - 1))
    rows = max(1, min(rows, records))
    expected = (1 + (rows - 1) * others) / rows
    return min(_STEEPEST, math.log(expected / (1 - expected))) if expected < 1 else _STEEPEST
