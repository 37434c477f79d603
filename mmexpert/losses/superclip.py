"""Contrastive loss plus cross-entropy over class texts: the source's "SuperCLIP" (not the NeurIPS 2025 method, arXiv 2512.14480)."""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.gather import processes
from mmexpert.types import Batch, ConfigError, Pair


class SuperClipLoss(ClipLoss):
    """loss_total = contrastive_loss_weight loss_clip + class_loss_weight loss_class.

    Weights are 0 or more, not both 0; without class logits (model/head=none) there is no class term.
    """

    def __init__(
        self,
        temperature: float,
        learn_scale: bool,
        form: str,
        directions: str,
        contrastive_loss_weight: float,
        class_loss_weight: float,
    ) -> None:
        super().__init__(temperature, learn_scale, form, directions)
        if min(contrastive_loss_weight, class_loss_weight) < 0 or contrastive_loss_weight + class_loss_weight == 0:
            raise ConfigError("loss.contrastive_loss_weight and loss.class_loss_weight are 0 or more, and not both 0")
        self.term_weights = {"loss_clip": contrastive_loss_weight, "loss_class": class_loss_weight}

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """loss_class = sum_i w_i CE(z_i, y_i) / sum_i w_i over the rows of all ranks, w = batch['weight'] or 1."""
        if pair.class_logits is None:
            return {}
        losses = F.cross_entropy(pair.class_logits.float(), batch["label"], reduction="none")
        weight = batch["weight"] if "weight" in batch else torch.ones_like(losses)
        total = weight.sum()
        if processes() > 1:
            dist.all_reduce(total)
        return {"loss_class": (weight * losses).sum() * processes() / total}  # DDP takes the mean over ranks
