"""Radar towers: views of a clip -> time tokens and a pooled vector.

Shapes: B clips, F bins (range 256, Doppler 128, azimuth 128), T frames, u frames a token, W = T / u tokens, D width.
"""

import math

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder, require_keys, require_sizes
from mmexpert.encoders.pooling import AttentionPool, Block, Trunk, require_fit
from mmexpert.types import ConfigError, Encoding

ROWS = {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
STRIDES = {16: [4, 2, 2], 8: [2, 2, 2], 4: [2, 2, 1], 2: [2, 1, 1], 1: [1, 1, 1]}
"""Strides of the three convolutions where none are given, by frames a token."""


class RadarEncoder(Encoder):
    """What both towers share: views -> tokens per view (defined by view_tokens) -> fusion -> trunk -> Encoding.

    fusion: [B, W, V, D] and present [B, V] -> [B, W, D]; its V places are those of ROWS, whatever the tower sees. trunk: tokens, mask
    -> (tokens, pooled). views: those that the tower learns, as in dataset.views; a batch may lack some of them, never bring others.
    """

    def __init__(self, dim: int, lr_scale: float, fusion: nn.Module, trunk: Trunk, unit_length: int, views: str | list[str]) -> None:
        super().__init__(dim, lr_scale)
        self.fusion, self.trunk, self.unit_length = fusion, trunk, unit_length
        self.views = tuple(role for role in ROWS if views == "all" or role.removesuffix("_time") in views)
        if not self.views:
            raise ConfigError(f"encoder.radar.views={views!r}: write `all` or a list of range, doppler, azimuth")
        self.projection = nn.Linear(dim, dim)  # of tokens and pooled vector alike: one of its own would idle without a sequence term

    def view_tokens(self, view: str, x: Tensor, real: Tensor) -> Tensor:
        """x [B, F, T] with zeros in padded frames, real [B, T] -> tokens [B, W, D]."""
        raise NotImplementedError

    def forward(self, radar: dict[str, Tensor]) -> Encoding:
        """radar {view: [B, F, T] float, 'mask': [B, T] bool} -> features [B, D], sequence [B, W, D], mask [B, W].

        Raises KeyError where no view or an unknown one is there, ConfigError where T does not suit unit_length or context_length.
        """
        there, real = self._views_of(radar), radar["mask"]
        if real.shape[1] % self.unit_length:
            raise ConfigError(f"{real.shape[1]} frames are no multiple of encoder.radar.unit_length={self.unit_length}")
        mask = real.unflatten(1, (-1, self.unit_length)).any(2)  # a token counts if one of its frames is real
        require_fit(mask.shape[1], self.trunk.context_length)
        tokens = {view: self.view_tokens(view, radar[view].where(real[:, None], 0), real) for view in there}
        empty = torch.zeros_like(tokens[there[0]])
        stacked = torch.stack([tokens.get(view, empty) for view in ROWS], 2)
        present = torch.stack([real.new_full((real.shape[0],), view in tokens) for view in ROWS], 1)  # torch.tensor would stall a GPU
        sequence, pooled = self.trunk(self.fusion(stacked, present), mask)
        sequence = self.projection(sequence).where(mask[..., None], 0)
        return Encoding(self.projection(pooled), sequence, mask)

    def _views_of(self, radar: dict[str, Tensor]) -> list[str]:
        foreign = set(radar) - {*self.views, "mask"}
        there = [view for view in self.views if view in radar]
        if foreign or not there or "mask" not in radar:
            raise KeyError(
                f"radar holds {', '.join(sorted(radar))}; this tower takes mask and one or more of {', '.join(self.views)}: "
                f"set dataset.views to views that it was trained on"
            )
        return there


class RadarConv1d(RadarEncoder):
    """A stack of 1-d convolutions per view, F -> width -> ... -> dim, LayerNorm and GELU after each.

    strides: factors whose product is unit_length, one a layer; None: the usual three for it.
    """

    def __init__(
        self,
        dim: int,
        lr_scale: float,
        fusion: nn.Module,
        trunk: Trunk,
        unit_length: int,
        views: str | list[str],
        width: int,
        strides: list[int] | None,
    ) -> None:
        super().__init__(dim, lr_scale, fusion, trunk, unit_length, views)
        if strides is None and unit_length not in STRIDES:
            raise ConfigError(f"encoder.radar.strides: give three factors of dataset.unit_length={unit_length}")
        if width < 1:
            raise ConfigError(f"encoder.radar.width={width}: channels, 1 or more")
        self.strides = list(strides or STRIDES[unit_length])
        if math.prod(self.strides) != unit_length:
            raise ConfigError(
                f"encoder.radar.strides={self.strides} multiply to {math.prod(self.strides)}, not to dataset.unit_length={unit_length}"
            )
        self.stacks = nn.ModuleDict({view: nn.ModuleList(self._layers(ROWS[view], width)) for view in self.views})

    def _layers(self, rows: int, width: int) -> list[nn.Module]:
        widths = [rows, *[width] * (len(self.strides) - 1), self.dim]
        return [ConvLayer(*sizes) for sizes in zip(widths, widths[1:], self.strides, strict=False)]

    def view_tokens(self, view: str, x: Tensor, real: Tensor) -> Tensor:
        """x [B, F, T], real [B, T] -> [B, W, D]; masked after every layer, so that padding never leaks into a window."""
        for layer in self.stacks[view]:
            real = real.unflatten(1, (-1, layer.stride)).any(2)
            x = layer(x).where(real[:, None], 0)
        return x.transpose(1, 2)


class ConvLayer(nn.Module):
    """Conv1d of kernel 2s and stride s (3 for s = 1), LayerNorm over channels, GELU: [B, C, T] -> [B, C', T / s]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        self.stride = stride
        self.conv = nn.Conv1d(channels, width, kernel, stride, padding)
        self.norm = nn.LayerNorm(width)
        self.extra = kernel - stride - 2 * padding  # frames that the kernel still lacks on the right (odd paddings)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C', T / stride]."""
        x = nn.functional.pad(x, (0, self.extra)) if self.extra else x
        return nn.functional.gelu(self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2))


class RadarViT(RadarEncoder):
    """A vision transformer per view over patches of rows x unit_length frames: 8 rows and W columns each, no CLS token.

    The 8 rows of a column are attention-pooled to one time token, so that index = time. tower: {depth, width, heads, dropout}.
    """

    GRID_ROWS = 8

    def __init__(
        self,
        dim: int,
        lr_scale: float,
        fusion: nn.Module,
        trunk: Trunk,
        unit_length: int,
        views: str | list[str],
        tower: dict[str, float],
    ) -> None:
        super().__init__(dim, lr_scale, fusion, trunk, unit_length, views)
        require_keys(tower, ("depth", "width", "heads", "dropout"), "encoder.radar.tower")
        require_sizes(tower, ("depth", "width", "heads"), "encoder.radar.tower")
        columns = trunk.context_length
        self.towers = nn.ModuleDict(
            {view: ViewTransformer((ROWS[view] // self.GRID_ROWS, unit_length), columns, dim, **tower) for view in self.views}
        )

    def view_tokens(self, view: str, x: Tensor, real: Tensor) -> Tensor:
        """x [B, F, T], real [B, T] -> [B, W, D]."""
        return self.towers[view](x, real.unflatten(1, (-1, self.unit_length)).any(2))


class ViewTransformer(nn.Module):
    """One view's ViT. patch: rows and frames of one. columns: most time columns."""

    def __init__(self, patch: tuple[int, int], columns: int, dim: int, depth: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch[0] * patch[1], width)  # equals a convolution with kernel = stride, and is faster
        self.embed_norm = nn.LayerNorm(width)
        self.row = nn.Parameter(torch.randn(RadarViT.GRID_ROWS, 1, width) * 0.5)  # beside normalised patches 0.02 goes unseen
        self.column = nn.Parameter(torch.randn(1, columns, width) * 0.5)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPool(width, heads)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, F, T], mask [B, W] -> [B, W, D]; a shorter clip takes the first W column embeddings."""
        count = mask.shape[1]
        tokens = self.embed_norm(self.patches(x)) + self.row + self.column[:, :count]
        tokens = tokens.flatten(1, 2)  # raster: index = row * W + column
        key_mask = mask[:, None].expand(-1, RadarViT.GRID_ROWS, -1).flatten(1)
        for block in self.blocks:
            tokens = block(tokens, key_mask)
        columns = self.norm(tokens).unflatten(1, (RadarViT.GRID_ROWS, count)).transpose(1, 2)  # [B, W, 8, width]
        pooled = self.pool(columns.flatten(0, 1), None).unflatten(0, (x.shape[0], count))
        return self.out(pooled)

    def patches(self, x: Tensor) -> Tensor:
        """x [B, F, T] -> embedded patches [B, 8, W, width]; embed.weight is a Conv2d's, flattened."""
        rows, frames = self.patch
        grid = x.unflatten(2, (-1, frames)).unflatten(1, (-1, rows)).permute(0, 1, 3, 2, 4)  # [B, 8, W, rows, frames]
        return self.embed(grid.flatten(3))
