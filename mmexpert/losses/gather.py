"""All-gather with gradient: what makes N processes of batch B one process of batch N B."""

import torch
from torch import Tensor
from torch import distributed as dist


def processes() -> int:
    """Number of ranks; 1 where no process group is up: then no collective is called at all."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """This process's rank; 0 where it is alone."""
    return dist.get_rank() if processes() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """x [B, ...] of each rank -> [N B, ...], rank r at rows r B.. . Backward sums the gradients of all ranks for the own slice: with
    DDP's mean over ranks this is exactly the one-process gradient. Raises ValueError where ranks differ in B."""
    if processes() == 1:
        return x
    require_equal_rows(x)
    return _Gather.apply(x) if x.is_floating_point() else _all(x)


def require_equal_rows(x: Tensor) -> None:
    """Raises ValueError, on every rank, where ranks differ in the length of x."""
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(processes())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    if len({int(size) for size in sizes}) > 1:
        raise ValueError(f"ranks hold {[int(size) for size in sizes]} rows: every rank needs as many")


def sum_over_ranks(x: Tensor) -> Tensor:
    """Element-wise sum of every rank's x, on every rank. Backward is right where all ranks do the same with the sum: its gradient is
    theirs times N, so that DDP's mean over ranks is the one-process gradient, and no rank has to be asked."""
    return _Sum.apply(x) if processes() > 1 else x


def max_over_ranks(x: Tensor) -> Tensor:
    """Element-wise maximum of every rank's x, without gradient."""
    most = x.detach().clone()
    if processes() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def _all(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(processes())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """An all-gather that carries the gradient back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """x [B, ...] -> [N, ...], the ranks' rows in their order."""
        return _all(x.detach())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """The sum of all ranks' gradients on this rank's rows."""
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        rows = len(total) // processes()
        return total[dist.get_rank() * rows :][:rows]


class _Sum(torch.autograd.Function):
    """An all-reduce whose gradient is the caller's own, N times."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """The sum over ranks."""
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """As if every rank had handed back the same."""
        return grad * processes()
