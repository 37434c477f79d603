"""One vector a sequence, the mean of its tokens: blind to order by construction, the cheapest head."""

from torch import Tensor
from torch.nn import functional as F

from mmexpert.similarity.base import Head, Similarity, Tokens, identity_map


class MeanHead(Head):
    """Cosine of mapped token means. dim: D; project: a D x D map a side, its own, identity at first."""

    reads_unit, reads_table = False, False

    def __init__(self, dim: int, project: bool) -> None:
        super().__init__()
        self.query_map, self.target_map = (identity_map(dim) if project else None for _ in range(2))

    def forward(self, query: Tokens, target: Tokens, table: None) -> Tensor:
        """Scores [Bq, Bt]."""
        return _mean(query, self.query_map) @ _mean(target, self.target_map).T


class Global(Similarity):
    """MeanHead alone."""

    def __init__(self, dim: int, project: bool) -> None:
        super().__init__({"global": MeanHead(dim, project)}, dim, project, row_chunk=0, chunk_bytes=1)


def _mean(tokens: Tokens, side_map: object) -> Tensor:
    mean = tokens.raw.sum(1) / tokens.length[:, None]
    return F.normalize(mean if side_map is None else side_map(mean), dim=-1, eps=1e-6)
