"""Blocks of targets that travel round the ranks, each with its keys and its gradient (the ring of SigLIP, arXiv 2303.15343, section 3.3).

Shapes: R rows of each rank, D width. No rank ever holds more than two blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from mmexpert.losses.gather import own_rank, processes, require_equal_rows

Visit = Callable[[Tensor, Tensor, int, Tensor], None]


def around(y: Tensor, keys: Tensor, visit: Visit) -> Tensor:
    """Calls visit(block [R, D], keys [R], home rank, gradient [R, D] to add to) for every rank's block, the own one first.

    Returns the gradient of the own block, home after as many hops as there are ranks. Raises ValueError where ranks differ in R.
    """
    block, keys, grad = y.detach().contiguous(), keys.contiguous(), torch.zeros_like(y, memory_format=torch.contiguous_format)
    if processes() == 1:
        visit(block, keys, 0, grad)
        return grad
    require_equal_rows(y)
    rank, ranks = own_rank(), processes()
    for hop in range(ranks):
        visit(block, keys, (rank - hop) % ranks, grad)
        if hop + 1 < ranks:
            block, keys, grad = _pass_on([block, keys, grad])
        else:
            (grad,) = _pass_on([grad])  # home: its block is already there
    return grad


def _pass_on(tensors: list[Tensor]) -> list[Tensor]:
    """Sends each to the next rank and returns those of the rank before."""
    rank, ranks = own_rank(), processes()
    received = [torch.empty_like(tensor) for tensor in tensors]
    jobs = [dist.P2POp(dist.isend, tensor, (rank + 1) % ranks) for tensor in tensors]
    jobs += [dist.P2POp(dist.irecv, room, (rank - 1) % ranks) for room in received]
    for job in dist.batch_isend_irecv(jobs):
        job.wait()
    return received
