"""Class heads: query features -> class logits [B, K]. The class texts are buffers, so that a saved model classifies without its data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.types import ClassTable, ConfigError

MAX_SCALE = 100.0


@dataclass(frozen=True)
class ClassPrompts:
    """The tokenised texts of all classes, class by class: P prompts of M tokens."""

    input_ids: Tensor  # [P, M]
    attention_mask: Tensor  # [P, M]
    owner: Tensor  # [P] class of each prompt

    @classmethod
    def of(cls, classes: ClassTable, tokenizer: Callable[[list[str]], dict[str, Tensor]]) -> ClassPrompts:
        """Prompts of a class table. Raises ConfigError where a class has no text."""
        silent = [name for name, texts in zip(classes.names, classes.texts, strict=True) if not texts]
        if silent:
            raise ConfigError(f"dataset.class_texts: class {silent[0]!r} has no text, expected one or more")
        texts = [text for texts in classes.texts for text in texts]
        owner = [k for k, texts in enumerate(classes.texts) for _ in texts]
        tokens = tokenizer(texts)
        return cls(tokens["input_ids"], tokens["attention_mask"], torch.tensor(owner))


def class_features(prompts: Tensor, owner: Tensor, classes: int) -> Tensor:
    """prompts [P, D] -> [K, D]: per class the normalised mean of normalised prompts (prompt ensemble)."""
    wide = F.normalize(prompts.float(), dim=1)
    sums = torch.zeros(classes, wide.shape[1], device=wide.device).index_add(0, owner, wide)
    return F.normalize(sums, dim=1)


class Head(nn.Module):
    """What every head has: K classes and the training part's log shares.

    prior_tau: times log(n_k / N), added to logits in training alone (logit adjustment, arXiv 2007.07314); 0 = off.
    """

    needs_class_texts = False
    texts_alone = False  # logits are scores with the class texts at a scale, and nothing else

    def __init__(self, classes: ClassTable, prior_tau: float) -> None:
        super().__init__()
        self.classes = len(classes.names)
        if not 0 <= prior_tau < math.inf:
            raise ConfigError(f"model.head.prior_tau={prior_tau}: 0 or more")
        self.prior_tau = prior_tau
        if prior_tau and (empty := [name for name, n in zip(classes.names, classes.counts, strict=True) if not n]):
            raise ConfigError(f"model.head.prior_tau={prior_tau}: class {empty[0]!r} has no training row: use 0, or fewer folds")
        shares = torch.tensor(classes.counts or (1,) * self.classes, dtype=torch.float32)
        self.register_buffer("log_prior", (shares / shares.sum().clamp(min=1)).clamp(min=1e-12).log(), persistent=False)

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits with the prior's share, in training."""
        return logits + self.prior_tau * self.log_prior if self.training and self.prior_tau else logits

    def without_loss(self) -> None:
        """Called where no class term trains the head. Raises ConfigError: a linear map would never learn."""
        name = type(self).__name__.removesuffix("Head").lower()
        raise ConfigError(
            f"model/head={name} learns from a class term alone: choose loss=superclip with loss.class_loss_weight above 0, or "
            "model/head=text"
        )

    def clamp_(self) -> None:
        """Nothing to clamp."""


class TextHead(Head):
    """logits = scale * cosine(query, class text). The scale is the head's own: a saved model gives probabilities without its loss.

    temperature: first scale = 1 / temperature; at most 100.
    """

    needs_class_texts = True
    texts_alone = True
    kind = "text prompts"

    def __init__(self, temperature: float, prior_tau: float, classes: ClassTable) -> None:
        super().__init__(classes, prior_tau)
        if not 0.01 <= temperature <= 1:
            raise ConfigError(f"model.head.temperature={temperature}: 0.01..1")
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, features: Tensor, class_texts: Tensor) -> Tensor:
        """features [B, D], class_texts [K, D] unit rows -> [B, K]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.adjusted(self.logit_scale.exp() * F.normalize(features.float(), dim=1) @ class_texts.T)

    def without_loss(self) -> None:
        """Called where no class term trains the head: the scale stays; argmax and ranking do not depend on it."""
        self.requires_grad_(False)

    def clamp_(self) -> None:
        """Keeps the scale in 1..100."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(MAX_SCALE))


class LinearHead(Head):
    """A linear map of the query features. dim: D."""

    kind = "linear head"

    def __init__(self, dim: int, prior_tau: float, classes: ClassTable) -> None:
        super().__init__(classes, prior_tau)
        self.linear = nn.Linear(dim, self.classes)

    def forward(self, features: Tensor, class_texts: None) -> Tensor:
        """features [B, D] -> [B, K] fp32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.adjusted(self.linear(features.float()))


class BothHead(Head):
    """The sum of a text head's and a linear head's logits."""

    needs_class_texts = True
    kind = "text prompts and linear head"

    def __init__(self, dim: int, temperature: float, prior_tau: float, classes: ClassTable) -> None:
        super().__init__(classes, prior_tau)
        self.text, self.linear = TextHead(temperature, 0.0, classes), LinearHead(dim, 0.0, classes)

    @property
    def logit_scale(self) -> Tensor:
        """The text part's."""
        return self.text.logit_scale

    def forward(self, features: Tensor, class_texts: Tensor) -> Tensor:
        """features [B, D], class_texts [K, D] unit rows -> [B, K]."""
        return self.adjusted(self.text(features, class_texts) + self.linear(features, None))

    def clamp_(self) -> None:
        """Keeps the text part's scale in its range."""
        self.text.clamp_()
