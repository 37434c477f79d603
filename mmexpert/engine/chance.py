"""The contrastive loss of a model that tells nothing apart, and the warning where training stays there."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

log = logging.getLogger(__name__)
_NEAR = 0.02  # share of the chance level


def contrastive_rows(trainer: Mapping[str, Any]) -> int:
    """Rows that are contrasted with each other in training, over all processes: accumulation adds none, but for accumulate=features."""
    whole = trainer.get("accumulate") == "features"
    return trainer["batch_size"] if whole else trainer["batch_size"] // trainer["accumulation"]


def chance_loss(loss: nn.Module, rows: int) -> float | None:
    """loss_clip at equal scores: ln(rows), in nats. None for losses that are no plain softmax over the rows of a batch.

    Those are a sigmoid of each pair, which has a bias, and positives summed inside the logarithm, where it hangs on their number.
    """
    biased = any(name.rpartition(".")[2] == "logit_bias" for name, _ in loss.named_parameters())
    summed = any(getattr(part, "form", "out") != "out" for part in loss.modules())
    if biased or summed or rows < 2 or "loss_clip" not in loss.term_weights:
        return None
    return math.log(rows)


def warn_of_chance(row: Mapping[str, Any], chance: float | None, rows: int) -> None:
    """Warns where the mean loss_clip of an epoch's row is within 2 % of chance."""
    mean = row.get("train/loss_clip")
    if chance is not None and mean is not None and abs(mean - chance) <= _NEAR * chance:
        log.warning(
            "epoch %d: mean loss_clip %.4f is within 2 %% of chance, ln(%d) = %.4f: the model tells nothing apart yet; if it stays so, "
            "look at optimizer.lr and at the pairs of the data set (mmexpert.check_data)", row["epoch"], mean, rows, chance,
        )  # fmt: skip
