"""How a contrastive loss is computed: the form, the exchange between processes, the tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mmexpert.types import ConfigError

STORE_BYTES = 2**26  # largest matrix of scores that is kept; above, a tile is formed twice
STRIP = 32  # rows of a tile that are worked on at once


@dataclass(frozen=True)
class Tiling:
    """How a contrastive loss is computed, never what.

    form: auto (by size) | dense (one matrix, autograd) | store (one matrix, gradients in place) | recompute (a tile, formed twice).
    exchange: auto | rows (targets of all ranks gathered) | ring (blocks of targets travel; sigmoid loss only).
    """

    form: str = "auto"
    exchange: str = "auto"

    def __post_init__(self) -> None:
        if self.form not in ("auto", "dense", "store", "recompute"):
            raise ConfigError(f"trainer.loss_tile={self.form}: choose auto, dense, store or recompute")
        if self.exchange not in ("auto", "rows", "ring"):
            raise ConfigError(f"trainer.loss_exchange={self.exchange}: choose auto, rows or ring")

    def of_size(self, matrix_bytes: int, dense_bytes: int) -> str:
        """The form for a matrix of scores of so many bytes; dense up to dense_bytes."""
        if self.form != "auto":
            return self.form
        return "dense" if matrix_bytes <= dense_bytes else "store" if matrix_bytes <= STORE_BYTES else "recompute"


def row_tiles(rows: int) -> Iterator[slice]:
    """Slices of 64..512 rows, a quarter of them where that is between."""
    size = min(rows, max(64, min(512, rows // 4)))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def free_to_read(x: Tensor) -> bool:
    """Whether the host may look at a value: on the CPU. Elsewhere it would wait for the device, so nothing there may depend on one."""
    return x.device.type == "cpu"
