"""What every tower is."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from mmexpert.types import ConfigError


class Encoder(nn.Module):
    """A tower: inputs of one role -> Encoding of width dim. lr_scale: its learning rate as a share of optimizer.lr.

    fine_tuned: whether its backbone begins with stored weights and learns on, so that a high rate would destroy them. Raises
    ConfigError where dim is null or lr_scale is negative.
    """

    fine_tuned = False
    fixed_backbone = False  # whether hidden() of one input is the same all through a run, so that it may be kept

    def __init__(self, dim: int, lr_scale: float) -> None:
        super().__init__()
        if dim is None:
            raise ConfigError("model.projection_dim=null is for towers with a width of their own (encoder/image=clip, encoder/text=clip)")
        if dim < 1:
            raise ConfigError(f"model.projection_dim={dim}: 1 or more")
        check_lr_scale("encoder.*.lr_scale", lr_scale)
        self.dim, self.lr_scale = dim, lr_scale

    def hidden(self, inputs: Any) -> tuple[Tensor, ...]:
        """What the backbone makes of inputs, before the projection that learns. forward takes it back as inputs["hidden"]."""
        raise NotImplementedError

    def frozen_modules(self) -> list[nn.Module]:
        """Modules that learn nothing and stay in evaluation mode."""
        return []


def check_lr_scale(key: str, value: Any) -> None:
    """Raises ConfigError where a tower's share of the learning rate is no finite number of 0 or more: below, it would train uphill."""
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"{key}={value}: a share of optimizer.lr, 0 or more")


def require_keys(node: dict[str, Any], names: Iterable[str], key: str) -> None:
    """Raises ConfigError where a dict of sizes (such as encoder.text.bert) lacks a name or has one too many."""
    names = set(names)
    if names != set(node):
        wrong = ", ".join(sorted(names ^ set(node)))
        raise ConfigError(f"{key} holds {', '.join(sorted(node))}, expected {', '.join(sorted(names))}: add or remove {wrong}")


def require_sizes(node: dict[str, Any], names: Iterable[str], key: str) -> None:
    """Raises ConfigError where one of the named sizes is no whole number of 1 or more, or its dropout no share of 0 to below 1."""
    for name in names:
        if not isinstance(node[name], int) or node[name] < 1:
            raise ConfigError(f"{key}.{name}={node[name]}: a whole number, 1 or more")
    dropout = node.get("dropout", 0)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"{key}.dropout={dropout}: a share, 0 or above, below 1")
