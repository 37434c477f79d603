"""Composed retrieval: reference picture and text make the query, the target picture is to be found.

Shapes: B rows, D width. Features of towers are raw; query features are unit rows of the combiner.
"""

import torch
from torch import Tensor, nn

from mmexpert.types import Batch, ConfigError, Encoding, Pair

TOWERS = {"text": ("text",), "image": ("image",), "both": ("image", "text"), "none": ()}


class Composed(nn.Module):
    """encoders: towers image and text. combiner: (reference [B, D], text [B, D]) -> [B, D].

    train_towers: text | image | both | none; the others are frozen, stay in evaluation mode and out of the optimizer.
    reference_negatives: the B references are further columns, a positive where the keys say so. towers: the run that the towers were
    taken from (whoever builds the model fills them), or None. Raises ConfigError where a tower is missing or widths differ.
    """

    query, target = "query", "target"  # names of the loss's directions
    head = None
    gives_tokens = False  # a composed query is one vector: no sequence for a similarity

    def __init__(
        self,
        projection_dim: int,
        train_towers: str,
        reference_negatives: bool,
        towers: str | None,
        encoders: dict[str, nn.Module],
        combiner: nn.Module,
    ) -> None:
        super().__init__()
        if train_towers not in TOWERS:
            raise ConfigError(f"model.train_towers={train_towers}: choose one of {', '.join(TOWERS)}")
        for role in ("image", "text"):
            if role not in encoders:
                there = ", ".join(sorted(encoders)) or "none"
                raise ConfigError(f"model=composed needs a tower for {role!r}; towers: {there}. Choose encoder/{role}=...")
        if any(encoder.dim != projection_dim for encoder in encoders.values()):
            widths = ", ".join(f"encoder.{role}.dim={encoder.dim}" for role, encoder in encoders.items())
            raise ConfigError(f"{widths}, model.projection_dim={projection_dim}: the widths differ, but towers and combiner need one")
        self.encoders, self.combiner = nn.ModuleDict(encoders), combiner
        self.towers, self.reference_negatives = towers, reference_negatives
        self.frozen = tuple(role for role in encoders if role not in TOWERS[train_towers])
        for role in self.frozen:
            self.encoders[role].requires_grad_(False)

    def forward(self, batch: Batch) -> Pair:
        """Batch with reference, target, text, positive_key (and reference_key where references are negatives) -> Pair.

        With reference negatives the target has 2 B rows and target_key = [positive_key; reference_key].
        """
        needed = ("reference", "target", "text", *(("positive_key", "reference_key") if self.reference_negatives else ()))
        if missing := [role for role in needed if role not in batch]:
            held = ", ".join(sorted(batch))
            raise KeyError(f"batch has no {missing[0]!r}; it holds {held}: choose a dataset of triplets, such as composed_scenes")
        # one batch of 2 B: under norm=batch both sides are normalised by the same numbers
        pictures = self.encoders["image"](torch.cat([batch["reference"], batch["target"]])).features
        reference, target = pictures.chunk(2)
        query = Encoding(self.compose(reference, batch["text"]))
        if not self.reference_negatives:
            return Pair(query, Encoding(target))
        keys = torch.cat([batch["positive_key"], batch["reference_key"]])
        return Pair(query, Encoding(torch.cat([target, reference])), target_key=keys)

    def encode(self, role: str, inputs: dict[str, Tensor] | Tensor) -> Encoding:
        """Inputs of one role (image or text) -> Encoding."""
        if role not in self.encoders:
            raise KeyError(f"no tower for {role!r}; there are {', '.join(self.encoders)}")
        return self.encoders[role](inputs)

    def encode_gallery(self, batch: Batch) -> Tensor:
        """Raw features [B, D] of the batch's pictures, under the key image."""
        if "image" not in batch:
            raise KeyError(f"batch has no 'image'; it holds {', '.join(sorted(batch))}: a gallery gives pictures under that key")
        return self.encoders["image"](batch["image"]).features

    def compose(self, reference: Tensor, text: dict[str, Tensor] | Tensor) -> Tensor:
        """Raw reference features [B, D] and a batch of B tokenised texts -> query features [B, D], unit rows."""
        return self.combiner(reference, self.encoders["text"](text).features)

    def clamp_(self) -> None:
        """Nothing to clamp."""

    def train(self, mode: bool = True) -> "Composed":
        """Training mode for all but the frozen towers."""
        super().train(mode)
        for role in self.frozen:
            self.encoders[role].eval()
        return self
