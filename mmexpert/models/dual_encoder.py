"""Two towers side by side: query and target encoded apart, compared by the loss."""

import torch
from torch import Tensor, nn

from mmexpert.models.frozen_prompts import FrozenPrompts, forget_prompts
from mmexpert.models.heads import ClassPrompts, class_features
from mmexpert.types import Batch, ConfigError, Encoding, Pair


class DualEncoder(nn.Module):
    """query, target: roles, and names of their towers in encoders. projection_dim: width of both.

    head: class logits from query features, or None. class_prompts: tokenised class texts; with them a batch that holds text_index
    (row of the prompt table) takes its target from the prompts, all encoded once. Raises ConfigError where a role has no tower or
    widths differ.
    """

    def __init__(
        self,
        query: str,
        target: str,
        projection_dim: int,
        encoders: dict[str, nn.Module],
        head: nn.Module | None,
        class_prompts: ClassPrompts | None,
    ) -> None:
        super().__init__()
        for name, role in (("query", query), ("target", target)):
            if role not in encoders:
                there = ", ".join(sorted(encoders)) or "none"
                raise ConfigError(f"model: no tower for the role {role!r}; towers: {there}. Choose encoder/{role}=..., or set model.{name}")
        if any(encoder.dim != projection_dim for encoder in encoders.values()):
            widths = ", ".join(f"encoder.{role}.dim={encoder.dim}" for role, encoder in encoders.items())
            raise ConfigError(f"{widths}, model.projection_dim={projection_dim}: the widths differ, but both towers need one")
        if head is not None and head.needs_class_texts and class_prompts is None:
            raise ConfigError("model/head=text compares with class texts: it needs encoder/text and a dataset with classes")
        self.query, self.target = query, target
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        prompts = class_prompts
        self.register_buffer("prompt_ids", prompts.input_ids if prompts else None)
        self.register_buffer("prompt_mask", prompts.attention_mask if prompts else None)
        self.register_buffer("prompt_owner", prompts.owner if prompts else None)
        self.classes = int(prompts.owner.max()) + 1 if prompts else 0
        self.frozen_prompts = FrozenPrompts()
        self.register_load_state_dict_post_hook(forget_prompts)

    def forward(self, batch: Batch) -> Pair:
        """Batch with both roles (or text_index in place of text) -> Pair; class logits where there is a head."""
        query = self.encode(self.query, _role(batch, self.query))
        has_class_texts = self.head is not None and self.head.needs_class_texts
        wanted = "text_index" in batch or has_class_texts
        prompts = self.encode_prompts() if wanted and self.prompt_ids is not None else None
        if "text_index" in batch and prompts is not None:
            target = _rows(prompts, batch["text_index"])
        else:
            target = self.encode(self.target, _role(batch, self.target))
        logits = None
        if self.head is not None:
            logits = self.head(query.features, self._class_texts(prompts) if has_class_texts else None)
        return Pair(query, target, logits)

    def encode(self, role: str, inputs: dict[str, Tensor] | Tensor) -> Encoding:
        """Inputs of one role -> Encoding."""
        if role not in self.encoders:
            raise KeyError(f"no tower for {role!r}; there are {', '.join(self.encoders)}")
        return self.encoders[role](inputs)

    def encode_prompts(self) -> Encoding:
        """Encoding of all P class prompts; the backbone of a frozen text tower reads them once, its projection learns."""
        tokens = {"input_ids": self.prompt_ids, "attention_mask": self.prompt_mask}
        return self.encode("text", self.frozen_prompts(self.encoders["text"], tokens) if "text" in self.encoders else tokens)

    def class_scores(self, query: Encoding) -> Tensor:
        """Cosine [B, K] of query features with the class texts, fp32. Raises KeyError where the model has none."""
        if self.prompt_ids is None:
            raise KeyError("the model has no class texts: this data set has no classes")
        with torch.autocast(query.features.device.type, enabled=False):
            unit = nn.functional.normalize(query.features.float(), dim=1)
            return unit @ self._class_texts(self.encode_prompts()).T

    def class_texts(self) -> Tensor:
        """Unit features [K, D] of the classes, each the mean of its prompts."""
        return self._class_texts(self.encode_prompts())

    def clamp_(self) -> None:
        """Keeps the head's scale in its range."""
        if self.head is not None:
            self.head.clamp_()

    def _class_texts(self, prompts: Encoding) -> Tensor:
        with torch.autocast(prompts.features.device.type, enabled=False):
            return class_features(prompts.features, self.prompt_owner, self.classes)


def _role(batch: Batch, role: str) -> dict[str, Tensor] | Tensor:
    if role not in batch:
        held = ", ".join(sorted(batch))
        raise KeyError(f"batch has no {role!r}; it holds {held}: choose a dataset that gives it, or set model.query, model.target")
    return batch[role]


def _rows(encoding: Encoding, rows: Tensor) -> Encoding:
    pick = lambda x: None if x is None else x[rows]  # noqa: E731
    return Encoding(encoding.features[rows], pick(encoding.sequence), pick(encoding.mask))
