"""Class prompts under a frozen text tower: its backbone reads them once a run, not at every step and evaluation batch."""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenPrompts:
    """What a frozen backbone makes of the class prompts, kept as long as nothing changes that it depends on. Never stored with a model."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.hidden: tuple[Tensor, ...] = ()

    def forget(self) -> None:
        """Other weights or prompts have come."""
        self.key, self.hidden = (), ()

    def __call__(self, tower: nn.Module, prompts: dict[str, Tensor]) -> dict[str, Any]:
        """prompts {input_ids, attention_mask} [P, M] for tower.forward, with `hidden` where the tower's backbone is frozen."""
        if not getattr(tower, "fixed_backbone", False) or any(module.training for module in tower.frozen_modules()):
            return prompts  # it learns, or draws dropout: each time is another one
        key = _key(tower, prompts["input_ids"])
        if key != self.key:
            with torch.no_grad(), torch.inference_mode(False):  # a tensor made for inference could not be trained on
                self.hidden = tower.hidden(prompts)
            self.key = key
        return prompts | {"hidden": self.hidden}


def forget_prompts(model: nn.Module, _: Any) -> None:
    """Hook of load_state_dict: prompts may be others under the same name."""
    model.frozen_prompts.forget()


def _key(tower: nn.Module, ids: Tensor) -> tuple[Any, ...]:
    """Weights as they stand (each write counts), where and in which precision; no value is read from the device."""
    kind = ids.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    weights = [p for module in tower.frozen_modules() for p in module.parameters()]
    return ids.device, tuple(ids.shape), precision, *((id(p), p.dtype, 0 if p.is_inference() else p._version) for p in weights)
