"""What is done to the transformer layers of all towers alike: activations made again in backward, or compiled code."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmexpert.types import ConfigError

LISTS = ("blocks", "layers", "layer", "resblocks")  # what timm, transformers and we call a stack of equal layers


def transformer_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of each member of a list of layers that learns something."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and name.rsplit(".", 1)[-1] in LISTS:
            for number, block in enumerate(module):
                if any(p.requires_grad for p in block.parameters()):
                    yield f"{name}.{number}", block


class Checkpointed:
    """A layer's forward that keeps its inputs alone and runs again in backward, under the same random numbers: about 4/3 of the time."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the layer's forward; without gradient nothing is kept anyway."""
        if not torch.is_grad_enabled():
            return self.forward(*given, **named)
        return checkpoint(self.forward, *given, use_reentrant=False, preserve_rng_state=True, **named)


def prepare_blocks(model: nn.Module, grad_checkpointing: bool, compiled: str) -> None:
    """Changes the layers in place; names of weights stay. compiled: none | blocks.

    Raises ConfigError where the choice is unknown, or grad_checkpointing finds no layer (a convolutional tower has none).
    """
    if compiled not in ("none", "blocks"):
        raise ConfigError(f"trainer.compile={compiled}: choose none or blocks")
    blocks = [block for _, block in transformer_blocks(model)]
    if (grad_checkpointing or compiled == "blocks") and not blocks:
        raise ConfigError(
            "trainer.grad_checkpointing and trainer.compile=blocks work on transformer layers, and no tower that learns has one: "
            "choose encoder/radar=vit or a transformer for images, or leave them off"
        )
    for block in blocks:
        if compiled == "blocks":
            block.compile()  # layers of one class share their code
        if grad_checkpointing:
            block.forward = Checkpointed(block.forward)
