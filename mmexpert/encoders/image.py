"""Image towers: a small convolutional one from scratch, or any timm model.

Shapes: B pictures, C channels, S x S pixels, L grid cells or patches, D width. timm is imported when a tower is built.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.pooling import AttentionPool
from mmexpert.encoders.sources import find_source
from mmexpert.types import ConfigError, Encoding, SourceError

log = logging.getLogger(__name__)
_INSTEAD = "encoder.image.weights=null, which starts from random weights"
_WEIGHTS = (("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),)


def check_size(side: int, in_chans: int) -> None:
    """Raises ConfigError where pictures can not be so."""
    if side < 1:
        raise ConfigError(f"encoder.image.side={side}: pixels, 1 or more")
    if in_chans not in (1, 3):
        raise ConfigError(f"encoder.image.in_chans={in_chans}: 1 (grey) or 3 (RGB)")


@dataclass(kw_only=True, eq=False, repr=False)
class ImageEncoder(Encoder):
    """What image towers share: a grid of tokens (defined by tokens), one linear map without bias for tokens and pooled vector.

    side, in_chans: S and C. mean, std: of the pixels that the tower was made for, one or C numbers each; the data set reads them.
    """

    dim: int
    lr_scale: float
    side: int
    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        super().__init__(self.dim, self.lr_scale)
        check_size(self.side, self.in_chans)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.in_chans):
                raise ConfigError(f"encoder.image.{name} holds {len(numbers)} numbers, expected 1 or in_chans={self.in_chans}")
        self.frozen: list[nn.Module] = []

    def frozen_modules(self) -> list[nn.Module]:
        """The backbone where it is frozen, else its BatchNorm layers where their statistics are."""
        return self.frozen

    def check(self, image: Tensor) -> None:
        """Raises ConfigError naming both keys where pictures are not what the tower takes."""
        if image.shape[1] != self.in_chans:
            raise ConfigError(f"pictures have {image.shape[1]} channels (dataset.channels), encoder.image.in_chans={self.in_chans}")
        if image.shape[2:] != (self.side, self.side):
            raise ConfigError(f"pictures are {tuple(image.shape[2:])}, expected encoder.image.side={self.side} squared")


@dataclass(kw_only=True, eq=False, repr=False)
class ConvImage(ImageEncoder):
    """3 x 3 convolutions of stride 2 with BatchNorm and ReLU, then a 4 x 4 grid, flattened for the pooled vector.

    channels: of each convolution. freeze_backbone, norm: as TimmImage's.
    """

    channels: list[int]
    freeze_backbone: bool
    norm: str

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = []
        for before, after in zip([self.in_chans, *self.channels[:-1]], self.channels, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.stack = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        self.projection = nn.Parameter(torch.empty(16, self.channels[-1], self.dim))  # of the flattened grid, by cells
        nn.init.normal_(self.projection, std=(16 * self.channels[-1]) ** -0.5)
        self.frozen = frozen_parts(self.stack, self.freeze_backbone, self.norm)

    def forward(self, image: Tensor) -> Encoding:
        """image [B, C, S, S] -> features [B, D], sequence [B, 16, D] in raster order: each cell's share of the features."""
        self.check(image)
        cells = torch.einsum("bcl,lcd->bld", self.stack(image).flatten(2), self.projection)
        return Encoding(cells.sum(1), cells)


@dataclass(kw_only=True, eq=False, repr=False)
class TimmImage(ImageEncoder):
    """Any timm model by name.

    weights: null (random), pretrained (timm's default tag), or a local file or folder. pooling: own (as the model was trained) | mean
    | cls | attention. freeze_backbone: only projection and pooling learn. norm: batch | frozen (BatchNorm keeps its statistics).
    """

    name: str
    weights: str | None
    pooling: str
    freeze_backbone: bool
    norm: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("own", "mean", "cls", "attention"):
            raise ConfigError(f"encoder.image.pooling={self.pooling}: choose own, mean, cls or attention")
        self.model = timm_model(self.name, self.weights, self.side, self.in_chans)
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        if self.pooling == "cls" and not self.prefix:
            raise ConfigError(f"encoder.image.pooling=cls: {self.name} has no class token; choose own, mean or attention")
        grid_width = self.model.num_features
        self.attention = AttentionPool(grid_width, _heads(grid_width)) if self.pooling == "attention" else None
        width = self.model.head_hidden_size if self.pooling == "own" else grid_width
        self.projection = nn.Linear(width, self.dim, bias=False)
        self.gives_tokens = width == grid_width  # the same map serves both
        self.frozen = frozen_parts(self.model, self.freeze_backbone, self.norm)
        self.fine_tuned = self.weights is not None and not self.freeze_backbone
        if self.weights is not None:
            made_for = self.model.pretrained_cfg
            warn_of_constants(self.name, made_for["mean"], made_for["std"], self.mean, self.std)

    def forward(self, image: Tensor) -> Encoding:
        """image [B, C, S, S] -> features [B, D], sequence [B, L, D] in raster order (None where the model pools into another width)."""
        self.check(image)
        output = self.model.forward_features(image)
        tokens = output.flatten(2).mT if output.ndim == 4 else output
        grid = tokens[:, self.prefix :] if output.ndim == 3 else tokens
        sequence = self.projection(grid) if self.gives_tokens else None
        return Encoding(self.projection(self._pool(output, tokens, grid)), sequence)

    def _pool(self, output: Tensor, tokens: Tensor, grid: Tensor) -> Tensor:
        if self.pooling == "own":
            return self.model.forward_head(output, pre_logits=True)
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.attention is not None:
            return self.attention(grid, torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device))
        return grid.mean(1)


def frozen_parts(backbone: nn.Module, freeze_backbone: bool, norm: str) -> list[nn.Module]:
    """What stays in evaluation mode: the whole backbone, which then learns nothing, or its BatchNorm layers under norm=frozen."""
    if norm not in ("batch", "frozen"):
        raise ConfigError(f"encoder.image.norm={norm}: choose batch or frozen")
    if freeze_backbone:
        return [backbone.requires_grad_(False)]
    return [part for part in backbone.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)] if norm == "frozen" else []


def warn_of_constants(source: str, made_mean: Any, made_std: Any, mean: Any, std: Any) -> None:
    """Says so where pictures are not normalised as the weights were trained; grey pictures have one number, and no rule."""
    for key, made, given in (("mean", made_mean, mean), ("std", made_std, std)):
        if len(made) == len(given) and any(abs(a - b) > 1e-3 for a, b in zip(made, given, strict=True)):
            log.warning("encoder.image.%s=%s, but the weights of %s were made with %s", key, list(given), source, list(made))


def timm_model(name: str, weights: str | None, side: int, in_chans: int) -> nn.Module:
    """A timm model without classifier. Raises ConfigError for an unknown name, SourceError where weights are not to be had."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        raise ConfigError(f"encoder.image.name={name}: timm has no such model" + (f"; near: {', '.join(near)}" if near else ""))
    given: dict[str, Any] = {"in_chans": in_chans, "num_classes": 0}
    if timm.models.get_pretrained_cfg(name).fixed_input_size:
        given["img_size"] = side
    if weights is None:
        return timm.create_model(name, pretrained=False, **given)
    overlay = weight_file(name, weights)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **given)
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"encoder.image.weights={weights}: {str(error).splitlines()[0]}; they do not fit {name}, or {_INSTEAD}"
        ) from error


def weight_file(name: str, weights: str) -> dict[str, Any]:
    """What timm is told of the place of its weights: a local file, or nothing where the hub answers."""
    import timm

    path = Path(weights).expanduser()
    if path.is_file():
        return {"file": str(path)}
    source = weights
    if weights == "pretrained":
        source = timm.models.get_pretrained_cfg(name).hf_hub_id or f"timm/{name}"
    found = Path(find_source(source, "encoder.image.weights", _INSTEAD, _WEIGHTS))
    if not found.is_dir():
        return {}  # a hub name, and the hub answers
    return {"file": str(next(found / file for file in _WEIGHTS[0] if (found / file).exists()))}


def _heads(width: int) -> int:
    return next(heads for heads in (8, 6, 4, 3, 2, 1) if width % heads == 0)
