"""Several losses at once, written in YAML alone: `loss=composite`."""

import math
from typing import Any

from torch import Tensor, nn

from mmexpert.losses.base import Loss
from mmexpert.losses.tiling import Tiling
from mmexpert.types import Batch, ConfigError, Pair, TokenCorpus


class CompositeLoss(nn.Module):
    """terms: {name: {weight: 0.., loss: a loss}}; loss_total = sum of weight times each loss's own weighted terms.

    Raises ConfigError where two losses log one name.
    """

    def __init__(self, terms: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        if not terms:
            raise ConfigError("loss.terms is empty: name one loss or more")
        self.losses = nn.ModuleDict({name: term["loss"] for name, term in terms.items()})
        self.needs = tuple(dict.fromkeys(need for loss in self.losses.values() for need in loss.needs))
        self.term_weights: dict[str, float] = {}
        for name, term in terms.items():
            if not isinstance(term["weight"], (int, float)) or not 0 <= term["weight"] < math.inf:
                raise ConfigError(f"loss.terms.{name}.weight={term['weight']}: 0 or more")
            for key, weight in term["loss"].term_weights.items():
                if key in self.term_weights:
                    raise ConfigError(f"loss.terms.{name}: another term logs {key} too; leave one of them out")
                self.term_weights[key] = term["weight"] * weight

    @property
    def logit_scale(self) -> Tensor:
        """The scale of the first loss that contrasts."""
        return self._first().logit_scale

    def forward(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor | None = None) -> dict[str, Tensor]:
        """The contrastive terms of all losses."""
        return {name: value for loss in self.losses.values() for name, value in loss(query, target, keys, target_keys).items()}

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """The contrastive terms of given scores."""
        return {name: value for loss in self.losses.values() for name, value in loss.from_scores(scores, positives).items()}

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """Class and token terms of all losses."""
        return {name: value for loss in self.losses.values() for name, value in loss.class_loss(pair, batch).items()}

    def see_corpus(self, corpus: TokenCorpus | None) -> None:
        """Handed to every loss."""
        for loss in self.losses.values():
            loss.see_corpus(corpus)

    def see_keys(self, keys: Tensor, rows: int) -> None:
        """Handed to every loss."""
        for loss in self.losses.values():
            loss.see_keys(keys, rows)

    def tile(self, tiling: Tiling) -> None:
        """Said to every loss."""
        for loss in self.losses.values():
            loss.tile(tiling)

    def for_scores(self) -> Loss:
        """The contrastive form of the first loss that contrasts."""
        return self._first().for_scores()

    def clamp_(self) -> None:
        """Every loss's scale."""
        for loss in self.losses.values():
            loss.clamp_()

    def _first(self) -> Loss:
        return next((loss for loss in self.losses.values() if "loss_clip" in loss.term_weights), next(iter(self.losses.values())))
