"""By which score an evaluator ranks: pooled (cosine of features), sequence (the similarity of tokens), or fused of both."""

from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.evaluators.base import Collected
from mmexpert.evaluators.rows import rows_of
from mmexpert.types import ConfigError, Encoding

RANK_BY = ("auto", "pooled", "sequence", "fused")
_SCORE_ROWS = 32  # query rows a block of the similarity


def check_rank_by(rank_by: str) -> None:
    """Raises ConfigError for a score that does not exist."""
    if rank_by not in RANK_BY:
        raise ConfigError(f"evaluator.rank_by={rank_by}: choose {', '.join(RANK_BY[:-1])} or {RANK_BY[-1]}")


def score_name(rank_by: str, similarity: nn.Module | None) -> str:
    """pooled | sequence | fused; auto is fused where there is a similarity. Raises ConfigError where the score needs one."""
    if similarity is None:
        if rank_by in ("sequence", "fused"):
            raise ConfigError(f"evaluator.rank_by={rank_by} needs a similarity: choose similarity=..., or rank_by=pooled")
        return "pooled"
    return "fused" if rank_by == "auto" else rank_by


def sequence_scores(objective: nn.Module, query: Encoding, rows: Tensor, target: Encoding) -> Tensor:
    """Similarity [Nq, n] fp32 of some rows of the query side with the whole target side, in blocks of rows: only the scores are kept.

    query, target: on any device. rows [Nq]. Lies on the CPU.
    """
    device = next(objective.parameters()).device
    everything = rows_of(target, torch.arange(len(target.features)), device)
    with torch.no_grad():
        return torch.cat(
            [objective.similarity(rows_of(query, block, device), everything).float().cpu() for block in rows.split(_SCORE_ROWS)]
        )


def fused(pooled: Tensor, sequence: Tensor, weight: float) -> Tensor:
    """(pooled + weight * sequence) / (1 + weight): in [-1, 1] as both are. weight: the run's sequence_weight."""
    return (pooled + weight * sequence) / (1 + weight)


def prompt_scores(objective: nn.Module, collected: Collected, accelerator: Any, with_sequence: bool) -> dict[str, Tensor]:
    """Scores [n, K] of n samples with the class texts by the score's name, fp32 on the CPU; empty where the model has no texts.

    pooled: cosine with the normalised mean of a class's prompt features. sequence, fused (with_sequence): means over a class's prompts of
    the similarity's scores with each of them, and both.
    """
    model = objective.model
    if getattr(model, "prompt_ids", None) is None:
        return {}
    device = next(objective.parameters()).device
    with torch.no_grad(), accelerator.autocast():
        pooled = model.class_scores(Encoding(collected.query.features.to(device))).float().cpu()
        prompts = model.encode_prompts() if with_sequence else None
    if prompts is None:
        return {"pooled": pooled}
    of_prompts = sequence_scores(objective, collected.query, torch.arange(len(pooled)), prompts)  # [n, P]
    owner = model.prompt_owner.cpu()
    sums = torch.zeros_like(pooled).index_add_(1, owner, of_prompts)
    sequence = sums / torch.bincount(owner, minlength=pooled.shape[1])
    return {"pooled": pooled, "sequence": sequence, "fused": fused(pooled, sequence, objective.sequence_weight)}
