"""Tensors of which a process may hold only a part (FSDP's DTensor), and whole ones, handled alike."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map


def is_part(tensor: Any) -> bool:
    """Whether it is a DTensor. Their class is not asked: importing it takes a second, which every run would wait for."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds only its part of some parameter."""
    return any(is_part(parameter) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all processes' parts of it; then every process calls it."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, sharing its memory."""
    return tensor.to_local() if is_part(tensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as `like` is held: this process's part of it, or as it is."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_tree(tree: Any, keep: bool) -> Any:
    """Nested containers with sharded tensors whole, on the CPU; None for them where keep is false. Every process calls it."""

    def gathered(leaf: Any) -> Any:
        """A leaf, whole and on the CPU where it was sharded."""
        if not is_part(leaf):
            return leaf
        full = leaf.full_tensor()  # also where it is not kept: the others wait for this process's part
        return full.cpu() if keep else None

    return tree_map(gathered, tree)


def parted_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A stored, whole state of the optimizer, with each tensor held as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        number: {
            key: parted(value, parameters[number]) if isinstance(value, Tensor) and value.shape == parameters[number].shape else value
            for key, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return state | {"state": entries}


def gradient_norms(gradients: list[Tensor], device: torch.device) -> Tensor:
    """[P] L2 norms of whole gradients; of sharded ones the parts' squares are added up over the processes, all at once."""
    norms = torch.stack([norm.to(device) for norm in torch._foreach_norm([own_part(gradient) for gradient in gradients])])
    split = [is_part(gradient) for gradient in gradients]
    if not any(split):
        return norms
    at = torch.tensor(split, device=device)
    squares = torch.where(at, norms.square(), 0)
    dist.all_reduce(squares)
    return torch.where(at, squares.sqrt(), norms)
