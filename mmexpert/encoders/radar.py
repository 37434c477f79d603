"""Radar towers: views of a clip -> time tokens and a pooled vector.

Shapes: B clips, F bins (range 256, Doppler 128, azimuth 128), T frames, u frames a token, W = T / u tokens, D width.
"""

import math

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.pooling import AttentionPool, Block, Trunk
from mmexpert.types import ConfigError, Encoding

ROWS = {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
STRIDES = {16: [4, 2, 2], 8: [2, 2, 2], 4: [2, 2, 1], 2: [2, 1, 1], 1: [1, 1, 1]}
"""Strides of the three convolutions where none are given, by frames a token."""


class RadarEncoder(Encoder):
    """What both towers share: views -> tokens per view (defined by view_tokens) -> fusion -> trunk -> Encoding.

    fusion: [B, W, V, D] and present [B, V] -> [B, W, D]. trunk: tokens, mask -> (tokens, pooled).
    """

    def __init__(self, dim: int, lr_scale: float, fusion: nn.Module, trunk: Trunk, unit_length: int) -> None:
        super().__init__(dim, lr_scale)
        self.fusion, self.trunk, self.unit_length = fusion, trunk, unit_length
        self.projection = nn.Linear(dim, dim)  # of tokens and pooled vector alike: one of its own would idle without a sequence term

    def view_tokens(self, view: str, x: Tensor, real: Tensor) -> Tensor:
        """x [B, F, T] with zeros in padded frames, real [B, T] -> tokens [B, W, D]."""
        raise NotImplementedError

    def forward(self, radar: dict[str, Tensor]) -> Encoding:
        """radar {view: [B, F, T] float, 'mask': [B, T] bool} -> features [B, D], sequence [B, W, D], mask [B, W]."""
        real = radar["mask"]
        if real.shape[1] % self.unit_length:
            raise ConfigError(f"{real.shape[1]} frames are no multiple of encoder.radar.unit_length={self.unit_length}")
        there = [view for view in ROWS if view in radar]
        if not there:
            raise KeyError(f"radar holds {sorted(radar)}, none of the views {', '.join(ROWS)}")
        mask = real.unflatten(1, (-1, self.unit_length)).any(2)  # a token counts if one of its frames is real
        tokens = {view: self.view_tokens(view, radar[view].where(real[:, None], 0), real) for view in there}
        empty = torch.zeros_like(tokens[there[0]])
        stacked = torch.stack([tokens.get(view, empty) for view in ROWS], 2)
        present = torch.tensor([view in tokens for view in ROWS], device=real.device).expand(len(real), -1)
        sequence, pooled = self.trunk(self.fusion(stacked, present), mask)
        sequence = self.projection(sequence).where(mask[..., None], 0)
        return Encoding(self.projection(pooled), sequence, mask)


class RadarConv1d(RadarEncoder):
    """Three 1-d convolutions a view, F -> width -> width -> dim, LayerNorm and GELU after each.

    strides: three factors whose product is unit_length; None: the usual ones for it.
    """

    def __init__(
        self, dim: int, lr_scale: float, fusion: nn.Module, trunk: Trunk, unit_length: int, width: int, strides: list[int] | None
    ) -> None:
        super().__init__(dim, lr_scale, fusion, trunk, unit_length)
        if strides is None and unit_length not in STRIDES:
            raise ConfigError(f"encoder.radar.strides: give three factors of dataset.unit_length={unit_length}")
        self.strides = strides or STRIDES[unit_length]
        if math.prod(self.strides) != unit_length:
            raise ConfigError(f"encoder.radar.strides={self.strides} multiply to {math.prod(self.strides)}, not unit_length={unit_length}")
        self.stacks = nn.ModuleDict({view: nn.ModuleList(self._layers(rows, width, dim)) for view, rows in ROWS.items()})

    def _layers(self, rows: int, width: int, dim: int) -> list[nn.Module]:
        widths = [rows, *[width] * (len(self.strides) - 1), dim]
        return [ConvLayer(a, b, stride) for a, b, stride in zip(widths, widths[1:], self.strides, strict=False)]

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

    The 8 rows of a column are attention-pooled to one time token, so that index = time. context_length: most columns.
    """

    GRID_ROWS = 8

    def __init__(
        self, dim: int, lr_scale: float, fusion: nn.Module, trunk: Trunk, unit_length: int, tower: dict[str, float]
    ) -> None:
        super().__init__(dim, lr_scale, fusion, trunk, unit_length)
        self.towers = nn.ModuleDict(
            {view: ViewTransformer(rows // self.GRID_ROWS, unit_length, dim, trunk.context_length, tower) for view, rows in ROWS.items()}
        )

    def view_tokens(self, view: str, x: Tensor, real: Tensor) -> Tensor:
        """x [B, F, T], real [B, T] -> [B, W, D]."""
        return self.towers[view](x, real.unflatten(1, (-1, self.unit_length)).any(2))


class ViewTransformer(nn.Module):
    """One view's ViT. patch_rows x patch_frames: patch. tower: {depth, width, heads, dropout}. columns: most time columns."""

    def __init__(self, patch_rows: int, patch_frames: int, dim: int, columns: int, tower: dict[str, float]) -> None:
        super().__init__()
        self.patch = (patch_rows, patch_frames)
        width, heads = int(tower["width"]), int(tower["heads"])
        self.embed = nn.Linear(patch_rows * patch_frames, width)  # equals a convolution with kernel = stride
        self.row = nn.Parameter(torch.randn(RadarViT.GRID_ROWS, 1, width) * 0.02)
        self.column = nn.Parameter(torch.randn(1, columns, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, tower["dropout"]) for _ in range(int(tower["depth"])))
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPool(width, heads)
        self.out = nn.Linear(width, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, F, T], mask [B, W] -> [B, W, D]; a shorter clip takes the first W column embeddings."""
        rows, frames = self.patch
        grid = x.unflatten(2, (-1, frames)).unflatten(1, (-1, rows)).permute(0, 1, 3, 2, 4)  # [B, 8, W, rows, frames]
        count = grid.shape[2]
        tokens = self.embed(grid.flatten(3)) + self.row + self.column[:, :count]
        tokens = tokens.flatten(1, 2)  # raster: index = row * W + column
        key_mask = mask[:, None].expand(-1, RadarViT.GRID_ROWS, -1).flatten(1)
        for block in self.blocks:
            tokens = block(tokens, key_mask)
        columns = self.norm(tokens).unflatten(1, (RadarViT.GRID_ROWS, count)).transpose(1, 2)  # [B, W, 8, width]
        pooled = self.pool(columns.flatten(0, 1), None).unflatten(0, (len(x), count))
        return self.out(pooled)
