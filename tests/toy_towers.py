"""Towers, a model and a similarity for objectives that are compared number by number."""

from torch import nn

from mmexpert.similarity.attention import AttentionHead
from mmexpert.similarity.combined import Combined
from mmexpert.similarity.local import WindowHead
from mmexpert.similarity.temporal import TemporalHead
from mmexpert.types import Encoding, Pair

D = 6


class Tower(nn.Module):
    """A linear map of given tokens with dropout; features are their mean."""

    lr_scale = 1.0

    def __init__(self, dropout):
        super().__init__()
        self.drop, self.map = nn.Dropout(dropout), nn.Linear(D, D)

    def forward(self, side):
        tokens = self.map(self.drop(side["tokens"])) * side["mask"][..., None]
        return Encoding(tokens.sum(1) / side["mask"].sum(1, keepdim=True), tokens, side["mask"])

    def frozen_modules(self):
        return []


class Model(nn.Module):
    """Two towers, and a head of three classes where asked for."""

    query, target = "radar", "text"

    def __init__(self, dropout=0.0, head=False):
        super().__init__()
        self.encoders = nn.ModuleDict({"radar": Tower(dropout), "text": Tower(dropout)})
        self.head = nn.Linear(D, 3) if head else None

    def forward(self, batch):
        query, target = self.encoders["radar"](batch["radar"]), self.encoders["text"](batch["text"])
        return Pair(query, target, self.head(query.features) if self.head is not None else None)

    def clamp_(self):
        """Nothing to clamp."""


def combined():
    """All four heads at once."""
    heads = WindowHead(4, 2, 3, 1), AttentionHead(0.1, "both"), TemporalHead("monotone", 0.1, "free", "both")
    weights = {"global": 1.0, "local": 0.5, "attention": 0.3, "temporal": 0.2}
    return Combined(*heads, weights, True, D, True, 0, 2**26)
