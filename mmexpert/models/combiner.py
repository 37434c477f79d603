"""Combiners: reference features and text features -> query features, unit rows. Shapes: B rows, D width; both inputs are raw.

The gated one is the Combiner of CLIP4Cir (arXiv 2308.11485); its layers have the published names, so that published files load unchanged.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.encoders.torch_file import read_torch
from mmexpert.types import ConfigError, SourceError


class SumCombiner(nn.Module):
    """The normalised sum of raw features: no parameters. Normalising each side first is another, weaker rule."""

    def __init__(self) -> None:  # nn.Module's own would take any key, and say so in a traceback
        super().__init__()

    def forward(self, reference: Tensor, text: Tensor) -> Tensor:
        """reference, text [B, D] -> [B, D], unit rows."""
        return unit(reference + text)


class GatedCombiner(nn.Module):
    """L2(V + g t + (1 - g) r): a mixed vector V and a gate g in 0..1, both from the projected pair.

    dim: D. projection_dim: width of each projected side, None = 4 D. hidden_dim: None = 8 D. dropout: 0..1. weights: None or a published
    file {"epoch", "Combiner": state}. Raises SourceError where there is no such file, ConfigError listing its wrong keys and shapes.
    """

    def __init__(self, dim: int, projection_dim: int | None, hidden_dim: int | None, dropout: float, weights: str | None) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"combiner.dropout={dropout}: 0 or above, below 1")
        for key, width in (("projection_dim", projection_dim), ("hidden_dim", hidden_dim)):
            if width is not None and width < 1:
                raise ConfigError(f"combiner.{key}={width}: 1 or more, or null")
        projected, hidden = projection_dim or 4 * dim, hidden_dim or 8 * dim
        self.text_projection_layer = nn.Linear(dim, projected)
        self.image_projection_layer = nn.Linear(dim, projected)
        self.combiner_layer = nn.Linear(2 * projected, hidden)
        self.output_layer = nn.Linear(hidden, dim)
        self.dynamic_scalar = nn.Sequential(
            nn.Linear(2 * projected, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1), nn.Sigmoid()
        )
        self.drop = nn.Dropout(dropout)
        if weights is not None:
            load_published(self, Path(weights).expanduser(), "Combiner", "combiner.weights")

    def forward(self, reference: Tensor, text: Tensor) -> Tensor:
        """reference, text [B, D] -> [B, D], unit rows."""
        words = self.drop(F.relu(self.text_projection_layer(text)))
        picture = self.drop(F.relu(self.image_projection_layer(reference)))
        both = torch.cat([words, picture], 1)  # text first, as published
        mixed = self.output_layer(self.drop(F.relu(self.combiner_layer(both))))
        gate = self.dynamic_scalar(both)
        return unit(mixed + gate * text + (1 - gate) * reference)


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, in fp32 at least: autocast would leave them in half precision."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def load_published(module: nn.Module, path: Path, entry: str, key: str) -> None:
    """Fills a module from the entry of a published checkpoint, tensors alone: nothing of it is run.

    key: the configuration's, for messages. Raises SourceError for a file that can not be read, ConfigError for other keys or shapes.
    """
    if not path.is_file():
        raise SourceError(f"{key}={path}: there is no such file; give the path of a published checkpoint, or {key}=null")
    try:
        stored = read_torch(path)
    except ValueError as error:
        raise SourceError(f"{key}={path} can not be read as plain tensors ({error}); expected a torch file, or {key}=null") from error
    if not isinstance(stored, dict) or not isinstance(stored.get(entry), dict):
        held = ", ".join(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ConfigError(f"{key}={path}: expected an entry {entry!r} with a state, the file holds {held or 'nothing'}")
    faults = state_faults(module.state_dict(), stored[entry])
    if faults:
        raise ConfigError(f"{key}={path} does not fit: {'; '.join(faults)}. Check the widths, or {key}=null")
    module.load_state_dict(stored[entry])  # casts fp16 to the module's own type


def state_faults(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """A phrase for each key that one side lacks and each tensor of another shape."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    for name, value in expected.items():
        there = tuple(getattr(found.get(name), "shape", ()))
        if name in found and there != tuple(value.shape):
            faults.append(f"{name} is {list(there)}, expected {list(value.shape)}")
    return faults
