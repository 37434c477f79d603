"""What torch raises when memory runs out or another process dies, as errors of types.py with the remedy."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmexpert.types import MemoryExhaustedError, MmexpertError, ProcessError

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.IGNORECASE)
_DEAD_PEER = re.compile(
    r"connection (closed|reset|refused|was closed)|closed by (remote )?peer|broken pipe|timed? ?out waiting|socket timeout"
    r"|gloo|nccl|store->|TCPStore|heartbeat",
    re.IGNORECASE,
)


@contextmanager
def translated(device: torch.device, processes: int, checkpointing: bool) -> Iterator[None]:
    """A block whose MemoryError, OutOfMemoryError or broken process group leaves as MemoryExhaustedError or ProcessError.

    checkpointing: trainer.grad_checkpointing, offered as a remedy where it is off.
    """
    try:
        yield
    except MmexpertError:
        raise
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _NO_MEMORY.search(text):
            raise MemoryExhaustedError(_memory(device, text, checkpointing)) from error
        if processes > 1 and (isinstance(error, torch.distributed.DistError) or _DEAD_PEER.search(text)):
            message = f"another process has ended or hangs ({text.splitlines()[0][:200]}); its own log says why"
            raise ProcessError(f"{message}. What was saved stands: the same command continues") from error
        raise


def _memory(device: torch.device, text: str, checkpointing: bool) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = f"{torch.cuda.memory_allocated(device) / 2**30:.1f} GiB are allocated, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        held = f"{free / 2**30:.1f} GiB are free"
    detail = text.splitlines()[0][:200] if text else "no detail"
    again = "" if checkpointing else "trainer.grad_checkpointing=true keeps no activations of transformer layers (4/3 of the time), "
    return (
        f"out of memory on {device} ({detail}); {held}. Remedies: trainer.accumulation=2 (or more) makes smaller micro-batches, {again}"
        "similarity=global or none holds no token matrix, a smaller trainer.batch_size. The batch is never changed silently"
    )
