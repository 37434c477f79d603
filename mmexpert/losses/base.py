"""What every loss is. Shapes: B rows of this rank, N rows of all ranks, D width; row = query, column = target."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.losses import tiling
from mmexpert.losses.gather import gather
from mmexpert.losses.tiling import Tiling
from mmexpert.types import Batch, ConfigError, Pair, TokenCorpus

MAX_SCALE = 100.0


class Loss(nn.Module):
    """Holds the scale of its term (logit_scale = log of it); the objective sums the terms by term_weights.

    temperature: first scale = 1 / temperature, 0.01..1. learn_scale: whether it learns. needs: what class_loss reads of a batch.
    """

    needs: tuple[str, ...] = ("label",)
    tiling = Tiling()

    def __init__(self, temperature: float, learn_scale: bool) -> None:
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise ConfigError(f"loss.temperature={temperature}: 0.01..1")
        self.temperature = temperature
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)), learn_scale)  # a logarithm: stays positive
        self.term_weights = {"loss_clip": 1.0}

    def forward(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor | None = None) -> dict[str, Tensor]:
        """query [B, D], target [Bt, D] of any length; keys int64 [B], equal where rows belong together; target_keys [Bt], None = keys."""
        raise NotImplementedError

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """scores [Bq, Bt] in [-1, 1]; positives [Bq, Bt] bool, one or more in every row and column.

        The matrix is taken as whole: no other rank is asked. Half precision is raised to fp32, fp64 stays.
        """
        raise NotImplementedError

    def from_row_block(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """from_scores of the matrix [N R, C] of which each rank holds its own rows [R, C]; the mean over ranks is the loss.

        Further target rows stand behind each rank's own R columns and need no positive. Here every rank gathers the whole matrix, them
        included; a loss that knows better sends less.
        """
        return self.from_scores(gather(scores), gather(positives.long()).bool())

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """Terms of class logits; none here."""
        return {}

    def see_corpus(self, corpus: TokenCorpus | None) -> None:
        """Called once before training with the training part's tokens, None without a text tower; most losses do not look."""

    def see_keys(self, keys: Tensor, rows: int) -> None:
        """Called once before training with the training part's keys int64 [n] and the rows of a batch; most losses do not look."""

    def tile(self, tiling: Tiling) -> None:
        """Says how the loss is computed (losses/tiled.py); what it is stays the same."""
        self.tiling = tiling

    def for_scores(self) -> "Loss":
        """A fresh loss of the same contrastive form, with a scale of its own, for the scores of a similarity."""
        return deepcopy(self)

    def clamp_(self) -> None:
        """Keeps the scale in 1..100: after the step, since a clamp inside forward has no gradient at its bound and can stick."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(MAX_SCALE))

    def unit_rows(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides normalised in fp32 (fp64 stays), autocast or not.

        Raises ValueError where rows and keys differ in number; in training RuntimeError where neither side carries a gradient: such
        features come from a gather without one, and only the scale would learn.
        """
        if len(query) != len(keys) or len(target) != len(target_keys):
            raise ValueError(f"{len(query)} query and {len(target)} target rows, but {len(keys)} and {len(target_keys)} keys")
        if self.training and torch.is_grad_enabled() and not (query.requires_grad or target.requires_grad):
            raise RuntimeError("features carry no gradient: Accelerator.gather has none; pass the local rows")
        return F.normalize(raised(query), dim=1, eps=1e-6), F.normalize(raised(target), dim=1, eps=1e-6)


def raised(x: Tensor) -> Tensor:
    """The same numbers in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def require_positives(positives: Tensor, side: str) -> Tensor:
    """Positives of each row, int64. Raises ValueError naming the first row of a side (query, target) without one.

    Only on the CPU: elsewhere the look would stall the device; there such a row makes the loss NaN, which stops the run.
    """
    count = positives.sum(1)
    if tiling.free_to_read(positives) and not int(count.min()):
        raise ValueError(f"{side} row {int(count.argmin())} has no positive: its key occurs nowhere on the other side")
    return count
