"""Tokens of several views -> one sequence. A view that a batch lacks is absent, not zero.

Shapes: B rows, L time tokens, V views, D width; present [B, V] bool, at least one view a row.
"""

import torch
from torch import Tensor, nn

from mmexpert.encoders.pooling import Attention
from mmexpert.types import ConfigError


class Fusion(nn.Module):
    """dim: D. view_dropout: probability with which training hides a view of a sample (never all): 0..1, else ConfigError."""

    def __init__(self, dim: int, view_dropout: float) -> None:
        super().__init__()
        if not 0 <= view_dropout <= 1:
            raise ConfigError(f"encoder.radar.fusion.view_dropout={view_dropout}: a probability, 0..1")
        self.dim, self.view_dropout = dim, view_dropout

    def forward(self, views: Tensor, present: Tensor) -> Tensor:
        """views [B, L, V, D] -> [B, L, D]."""
        if self.training and self.view_dropout > 0:
            kept = present & (torch.rand(present.shape, device=present.device) >= self.view_dropout)
            present = torch.where(kept.any(1, keepdim=True), kept, present)
        return self.fuse(views, present)

    def fuse(self, views: Tensor, present: Tensor) -> Tensor:
        """The fusion itself."""
        raise NotImplementedError


class Concat(Fusion):
    """Linear map of all views side by side; an absent one is replaced by its learned vector."""

    def __init__(self, dim: int, view_dropout: float, views: int) -> None:
        super().__init__(dim, view_dropout)
        if views < 1:
            raise ConfigError(f"encoder.radar.fusion.views={views}: places side by side, one for each view that there can be: 3")
        self.absent = nn.Parameter(torch.zeros(views, dim))
        self.join = nn.Linear(views * dim, dim)

    def fuse(self, views: Tensor, present: Tensor) -> Tensor:
        """views [B, L, V, D] -> [B, L, D]."""
        whole = torch.where(present[:, None, :, None], views, self.absent.to(views.dtype))
        return self.join(whole.flatten(2))


class Add(Fusion):
    """Mean over the views that are there."""

    def fuse(self, views: Tensor, present: Tensor) -> Tensor:
        """views [B, L, V, D] -> [B, L, D]."""
        weight = present[:, None, :, None]
        return views.where(weight, 0).sum(2) / present.sum(1)[:, None, None]


class ViewAttention(Fusion):
    """Self-attention over the views of each time token, then the mean of those that are there. heads: divide D."""

    def __init__(self, dim: int, view_dropout: float, heads: int) -> None:
        super().__init__(dim, view_dropout)
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, 0.0)

    def fuse(self, views: Tensor, present: Tensor) -> Tensor:
        """views [B, L, V, D] -> [B, L, D]."""
        rows, length = views.shape[:2]
        tokens = views.where(present[:, None, :, None], 0).flatten(0, 1)
        mask = present[:, None].expand(rows, length, -1).flatten(0, 1)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, mask)
        return (tokens * mask[..., None]).sum(1).div(mask.sum(1, keepdim=True)).unflatten(0, (rows, length))
