"""All four heads at once: a convex sum of their scores with learned weights."""

import math

import torch
from torch import Tensor, nn

from mmexpert.similarity.base import Head, Similarity
from mmexpert.similarity.global_ import MeanHead
from mmexpert.types import ConfigError

NAMES = ("global", "local", "attention", "temporal")


class Combined(Similarity):
    """score = sum_k w_k score_k, w = softmax(theta); projections and token cosines are shared.

    weights: first weight of each of global, local, attention, temporal, 0.., normalised to sum 1; a head of weight 0 is left out.
    learn_weights: whether theta learns. local, attention, temporal: those heads.
    """

    def __init__(
        self,
        local: Head,
        attention: Head,
        temporal: Head,
        weights: dict[str, float],
        learn_weights: bool,
        dim: int,
        project: bool,
        row_chunk: int,
        chunk_bytes: int,
    ) -> None:
        numbers = [weight for weight in weights.values() if isinstance(weight, (int, float)) and 0 <= weight < math.inf]
        if set(weights) != set(NAMES) or len(numbers) < len(NAMES) or sum(numbers) == 0:
            raise ConfigError(f"similarity.weights={weights}: one number of 0 or above for each of {', '.join(NAMES)}, not all 0")
        every = {"global": MeanHead(dim, project), "local": local, "attention": attention, "temporal": temporal}
        used = [name for name in NAMES if weights[name] > 0]
        super().__init__({name: every[name] for name in used}, dim, project, row_chunk, chunk_bytes)
        theta = torch.tensor([weights[name] for name in used]).log()
        if learn_weights and len(used) > 1:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)

    def weights(self) -> dict[str, Tensor]:
        """Weight of each head used, summing to 1."""
        return dict(zip(self.heads, self.theta.softmax(0), strict=True))
