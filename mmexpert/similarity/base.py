"""What every similarity is: all pairs of two sets of token sequences, scored by one or more heads from shared tensors.

Heads have first derivatives only: their backward passes are written by hand.
Shapes: Bq queries of L tokens, Bt targets of M tokens, width D. Tokens are in time order: index = time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmexpert.types import ConfigError, Encoding

_COPIES = 3  # tensors of a table's size that the heads of a block hold at once
_BLOCK_BYTES = {True: 2**21, False: 2**26}  # what a head works on at a time: in a CPU's cache; elsewhere starting work costs more


@dataclass(frozen=True)
class Tokens:
    """B sequences, real tokens first, pads 0. raw [B, L, D] as encoded; unit [B, L, D] projected, of length 1, None where no head
    reads it; mask [B, L]."""

    raw: Tensor
    unit: Tensor | None
    mask: Tensor

    @property
    def length(self) -> Tensor:
        """Real tokens of each sequence, int64 [B]."""
        return self.mask.sum(1)

    def rows(self, start: int, stop: int) -> "Tokens":
        """Sequences start .. stop - 1."""
        return Tokens(self.raw[start:stop], None if self.unit is None else self.unit[start:stop], self.mask[start:stop])


class Head(nn.Module):
    """One way to score pairs. reads_unit, reads_table: which shared tensors it needs."""

    reads_unit, reads_table = True, True

    def forward(self, query: Tokens, target: Tokens, table: Tensor | None) -> Tensor:
        """table [Bq, Bt, L, M]: cosine of each token pair, 0 at pads -> scores [Bq, Bt] in [-1, 1], each of its own pair alone."""
        raise NotImplementedError


class Similarity(nn.Module):
    """Heads over common tokens; their scores are mixed by weights, which is nothing to do for one head.

    dim: D. project: two bias-free D x D maps, one a side, identity at first: an untrained head ranks as the tokens do. row_chunk:
    query rows of a block, 0 = as many as chunk_bytes allow for the block's tables; blocks are formed again in the backward pass.
    """

    def __init__(self, heads: dict[str, Head], dim: int, project: bool, row_chunk: int, chunk_bytes: int) -> None:
        super().__init__()
        if row_chunk < 0 or chunk_bytes < 1:
            raise ConfigError(f"similarity.row_chunk={row_chunk} is 0 or above, similarity.chunk_bytes={chunk_bytes} above 0")
        self.heads = nn.ModuleDict(heads)
        self.reads_unit = any(head.reads_unit for head in heads.values())
        self.reads_table = any(head.reads_table for head in heads.values())
        maps = project and self.reads_unit
        self.query_map, self.target_map = (identity_map(dim) if maps else None for _ in range(2))
        self.row_chunk, self.chunk_bytes = row_chunk, chunk_bytes

    def forward(self, query: Encoding, target: Encoding) -> Tensor:
        """Scores [Bq, Bt] fp32 (fp64 stays), row = query. Raises KeyError where a side has no token sequence."""
        return self.mix(self.head_scores(query, target))

    def head_scores(self, query: Encoding, target: Encoding) -> dict[str, Tensor]:
        """Scores [Bq, Bt] of each head by its name; autocast or not, fp32 at least."""
        with torch.autocast(query.features.device.type, enabled=False):
            q, t = self._tokens(query, "query", self.query_map), self._tokens(target, "target", self.target_map)
            step = self._block_rows(q, t)
            again = step < len(q.mask) and torch.is_grad_enabled()
            blocks = []
            for start in range(0, len(q.mask), step):
                rows = q.rows(start, start + step)
                blocks.append(checkpoint(self._block, rows, t, use_reentrant=False) if again else self._block(rows, t))
            return {name: torch.cat(parts) for name, parts in zip(self.heads, zip(*blocks, strict=True), strict=True)}

    def mix(self, scores: dict[str, Tensor]) -> Tensor:
        """Convex sum of the heads' scores."""
        weights = self.weights()
        return next(iter(scores.values())) if len(scores) == 1 else sum(weights[name] * scores[name] for name in scores)

    def weights(self) -> dict[str, Tensor]:
        """Weight of each head in the mix; empty for a single one."""
        return {}

    def _tokens(self, encoding: Encoding, side: str, side_map: nn.Module | None) -> Tokens:
        """Real tokens to the front, so that masks are prefixes; columns of pads alone cut off. On the CPU a look at the mask saves
        what is not needed; elsewhere it would stall the device."""
        if encoding.sequence is None:
            heads = ", ".join(self.heads)
            raise KeyError(f"similarity ({heads}) needs token sequences; the {side}'s encoder returned none: choose similarity=none")
        raw = encoding.sequence.to(torch.promote_types(encoding.sequence.dtype, torch.float32))
        mask = torch.ones(raw.shape[:2], dtype=torch.bool, device=raw.device) if encoding.mask is None else encoding.mask
        looks = free_to_read(mask)
        if not looks or bool((mask[:, 1:] > mask[:, :-1]).any()):
            order = mask.int().argsort(dim=1, descending=True, stable=True)
            raw, mask = raw.gather(1, order[..., None].expand_as(raw)), mask.gather(1, order)
        if looks:
            longest = max(1, int(mask.sum(1).max()))
            raw, mask = raw[:, :longest], mask[:, :longest]
        raw = torch.where(mask[..., None], raw, 0)  # a pad may hold anything, NaN too
        if not self.reads_unit:
            return Tokens(raw, None, mask)
        return Tokens(raw, F.normalize(raw if side_map is None else side_map(raw), dim=-1, eps=1e-6), mask)

    def _block_rows(self, query: Tokens, target: Tokens) -> int:
        rows = len(query.mask)
        if not self.reads_unit or self.row_chunk:
            return self.row_chunk or rows
        row_bytes = target.mask.numel() * query.mask.shape[1] * query.raw.element_size()
        copies = _COPIES if self.reads_table else 1  # windows are fewer than tokens
        return max(1, min(rows, self.chunk_bytes // (copies * row_bytes)))

    def _block(self, query: Tokens, target: Tokens) -> tuple[Tensor, ...]:
        table = token_cosines(query.unit, target.unit) if self.reads_table else None
        return tuple(head(query, target, table) for head in self.heads.values())


def free_to_read(x: Tensor) -> bool:
    """Whether the host may look at a value: on the CPU; elsewhere it would wait for the device."""
    return x.device.type == "cpu"


def token_cosines(query: Tensor, target: Tensor) -> Tensor:
    """query [Bq, L, D], target [Bt, M, D] -> [Bq, Bt, L, M]: one matrix product."""
    table = query.flatten(0, 1) @ target.flatten(0, 1).T
    return table.view(len(query), query.shape[1], len(target), target.shape[1]).transpose(1, 2)


def block_rows(row_cells: int, like: Tensor) -> int:
    """Rows of a table, each of so many cells, that a head works on at a time."""
    return max(1, _BLOCK_BYTES[free_to_read(like)] // (2 * row_cells * like.element_size()))


def identity_map(dim: int) -> nn.Linear:
    """A bias-free D x D map that changes nothing yet."""
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """values [..., L], mask [..., L] of the real ones -> mean over them [...]."""
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1)


def check_directions(directions: str) -> None:
    """Raises ConfigError for anything but both, query, target."""
    if directions not in ("both", "query", "target"):
        raise ConfigError(f"similarity.directions={directions}: choose both, query or target")
