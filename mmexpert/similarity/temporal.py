"""Monotone alignment: every step of one sequence takes a token of the other, and their order never goes back.

Soft over all such paths: a log-mean-exp of their mean cosines, so that length buys nothing.
"""

from torch import Tensor

from mmexpert.similarity.base import Head, Similarity, Tokens, check_directions
from mmexpert.similarity.monotone import monotone_scores
from mmexpert.similarity.soft_dtw import soft_dtw_scores
from mmexpert.types import ConfigError


class TemporalHead(Head):
    """method: monotone | soft_dtw. gamma: smoothing, above 0; small = the best path alone. moves (monotone): free, a step may stay, go
    on or skip | step, it stays or goes on, from the first token to the last. directions (monotone): both (half of each) | query
    (query steps walk over target tokens) | target."""

    def __init__(self, method: str, gamma: float, moves: str, directions: str) -> None:
        super().__init__()
        if method not in ("monotone", "soft_dtw") or moves not in ("free", "step"):
            raise ConfigError(f"similarity.method={method} is monotone or soft_dtw; similarity.moves={moves} is free or step")
        if gamma <= 0:
            raise ConfigError(f"similarity.gamma={gamma}: above 0")
        check_directions(directions)
        self.method, self.gamma, self.moves, self.directions = method, gamma, moves, directions

    def forward(self, query: Tokens, target: Tokens, table: Tensor) -> Tensor:
        """Scores [Bq, Bt]. Raises ConfigError for moves=step where a walking sequence has fewer steps than the other has tokens."""
        if self.method == "soft_dtw":
            return soft_dtw_scores(table, query.length, target.length, self.gamma)
        return monotone_scores(table, query.length, target.length, self.gamma, self.moves, self.directions)


class Temporal(Similarity):
    """TemporalHead alone."""

    def __init__(
        self, method: str, gamma: float, moves: str, directions: str, dim: int, project: bool, row_chunk: int, chunk_bytes: int
    ) -> None:
        super().__init__({"temporal": TemporalHead(method, gamma, moves, directions)}, dim, project, row_chunk, chunk_bytes)
