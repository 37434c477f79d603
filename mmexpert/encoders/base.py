"""What every tower is."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mmexpert.types import ConfigError


class Encoder(nn.Module):
    """A tower: inputs of one role -> Encoding of width dim. lr_scale: its learning rate as a share of optimizer.lr.

    fine_tuned: whether its backbone begins with stored weights and learns on, so that a high rate would destroy them. Raises
    ConfigError where dim is null.
    """

    fine_tuned = False
    fixed_backbone = False  # whether hidden() of one input is the same all through a run, so that it may be kept

    def __init__(self, dim: int, lr_scale: float) -> None:
        super().__init__()
        if dim is None:
            raise ConfigError("model.projection_dim=null is for towers with a width of their own (encoder/image=clip, encoder/text=clip)")
        self.dim, self.lr_scale = dim, lr_scale

    def hidden(self, inputs: Any) -> tuple[Tensor, ...]:
        """What the backbone makes of inputs, before the projection that learns. forward takes it back as inputs["hidden"]."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """Modules that learn nothing and stay in evaluation mode."""
        return []


def require_keys(node: dict[str, Any], names: Iterable[str], key: str) -> None:
    """Raises ConfigError where a dict of sizes (such as encoder.text.bert) lacks a name or has one too many."""
    names = set(names)
    if names != set(node):
        wrong = ", ".join(sorted(names ^ set(node)))
        raise ConfigError(f"{key} holds {', '.join(sorted(node))}, expected {', '.join(sorted(names))}: add or remove {wrong}")
