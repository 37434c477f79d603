"""Contrastive loss plus cross-entropy over class texts: the source's "SuperCLIP" (not the NeurIPS 2025 method, arXiv 2512.14480)."""

import logging

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from mmexpert.losses.base import raised
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.gather import processes
from mmexpert.types import Batch, ConfigError, Pair

log = logging.getLogger(__name__)


class SuperClipLoss(ClipLoss):
    """loss_total = contrastive_loss_weight loss_clip + class_loss_weight loss_class.

    Weights are 0 or more, not both 0; without class logits (model/head=none) there is no class term, which is said once.
    label_smoothing: 0..1, share of the target spread over all classes. focal_gamma: 0.., a row counts (1 - p of its class)^gamma
    (arXiv 1708.02002).
    """

    def __init__(
        self,
        temperature: float,
        learn_scale: bool,
        form: str,
        directions: str,
        contrastive_loss_weight: float,
        class_loss_weight: float,
        label_smoothing: float,
        focal_gamma: float,
    ) -> None:
        super().__init__(temperature, learn_scale, form, directions)
        if min(contrastive_loss_weight, class_loss_weight) < 0 or contrastive_loss_weight + class_loss_weight == 0:
            raise ConfigError("loss.contrastive_loss_weight and loss.class_loss_weight are 0 or more, and not both 0")
        if not 0 <= label_smoothing < 1 or focal_gamma < 0:
            raise ConfigError(f"loss.label_smoothing={label_smoothing}: 0 and above, below 1; loss.focal_gamma={focal_gamma}: 0 and above")
        self.term_weights = {"loss_clip": contrastive_loss_weight, "loss_class": class_loss_weight}
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self._told = False

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """loss_class = sum_i w_i CE(z_i, y_i) / sum_i w_i over the rows of all ranks, w = batch['weight'] or 1."""
        if pair.class_logits is None:
            self._without_class_term()
            return {}
        if "label" not in batch:
            raise KeyError(f"batch has no 'label'; it holds {', '.join(sorted(batch))}. loss=superclip needs a data set with classes")
        with torch.autocast(pair.class_logits.device.type, enabled=False):
            logits = raised(pair.class_logits)
            losses = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=self.label_smoothing)
            if self.focal_gamma:
                sure = logits.softmax(1).gather(1, batch["label"][:, None])[:, 0]
                losses = (1 - sure).clamp(min=1e-6) ** self.focal_gamma * losses  # a root has no gradient at 0
            weight = batch["weight"] if "weight" in batch else torch.ones_like(losses)
            total = weight.sum()
            if processes() > 1:
                dist.all_reduce(total)
            return {"loss_class": (weight * losses).sum() * processes() / total}  # DDP takes the mean over ranks

    def for_scores(self) -> ClipLoss:
        """The contrastive form alone."""
        return ClipLoss(self.temperature, self.logit_scale.requires_grad, self.form, self.directions)

    def _without_class_term(self) -> None:
        if not self.term_weights["loss_clip"]:
            raise ConfigError("loss.contrastive_loss_weight=0 and model/head=none leave nothing to train: choose model/head=text or linear")
        if not self._told:
            log.warning("loss=superclip has no class term without class logits and equals loss=clip: choose model/head=text or linear")
            self._told = True
