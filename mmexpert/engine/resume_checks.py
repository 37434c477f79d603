"""What must agree before a checkpoint is taken up, and be finite before one is written."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmexpert.engine.parts import whole
from mmexpert.engine.step_folder import load_weights, read_weights
from mmexpert.types import NonFiniteError, RunFolderError

log = logging.getLogger(__name__)


def check_identity(folder: Path, stored: dict[str, Any], now: dict[str, Any], allow_world_change: bool) -> None:
    """Raises RunFolderError where a checkpoint is another run's; other library versions are a warning.

    Another number of processes is refused too, unless allow_world_change.
    """
    for key in sorted(stored.keys() | now.keys()):
        before, after = stored.get(key), now.get(key)
        if before == after:
            continue
        if key == "versions":
            log.warning("resumed with other library versions: stored %s, now %s", before, after)
        elif key != "processes":
            raise RunFolderError(f"{folder}: {key} was {before!r}, now it is {after!r}; choose another name=, or resume=never")
        elif not allow_world_change:
            raise RunFolderError(
                f"{folder} was written by {before} process(es), now there are {after}: start as many as before, or accept with "
                "allow_world_change=true that the run is no longer exact"
            )


def group_names(module: nn.Module, optimizer: Any) -> list[list[str]]:
    """Names of the parameters of each group: optimizers themselves know only positions, which fit any model of as many tensors."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def load_module(folder: Path, module: nn.Module, optimizer: Any, names: list[list[str]]) -> None:
    """Loads the weights of a checkpoint; names: the stored group_names. Raises RunFolderError listing names that only one side has."""
    missing, unexpected = load_weights(module, read_weights(folder))
    now = group_names(module, optimizer)
    if missing or unexpected or now != names:
        odd = {*missing, *unexpected, *({n for group in names for n in group} ^ {n for group in now for n in group})}
        raise RunFolderError(f"{folder}: parameters differ from the model's: {', '.join(sorted(odd)[:10]) or 'in their order or groups'}")


def refuse_nonfinite(module: nn.Module, step: int) -> None:
    """Raises NonFiniteError naming parameters that hold NaN or infinity; buffers may (attention masks)."""
    finite = {name: torch.isfinite(whole(parameter.detach())).all() for name, parameter in module.named_parameters()}
    good = torch.stack(list(finite.values())).tolist() if finite else []  # one read of the device, not one a parameter
    if bad := [name for name, is_good in zip(finite, good, strict=True) if not is_good]:
        raise NonFiniteError(f"step {step}: {len(bad)} parameters are not finite and are not saved: {', '.join(bad[:5])}")
