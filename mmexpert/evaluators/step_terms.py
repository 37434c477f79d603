"""The terms of a loss that look at one row each, over a part: class and token terms, step by step while the part is encoded."""

import torch
from torch import Tensor, nn

from mmexpert.evaluators.rows import gather_rows, on_cpu, taken
from mmexpert.losses.gather import processes
from mmexpert.types import Batch, Pair


class StepTerms:
    """The class and token terms of a loss over a part, a step of all ranks at a time: of a row's tokens and texts nothing is kept.

    What is averaged: a term over all rows of the part, each once; `loss_X` of a loss that counts its rows as `X_rows` (captions without
    a known token leave loss_token's mean) over those, and X_rows is their number in the part. Exact where the term is a mean over rows.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.seen: set[int] = set()
        self.sums: dict[str, tuple[Tensor, Tensor | int]] = {}  # by term: sum over rows, their number
        self.counts: dict[str, Tensor] = {}

    def add(self, pair: Pair, batch: Batch) -> None:
        """Every rank takes the rows of all in turn: the collectives of a class term then meet the same rows, and a repeat is left out."""
        needed = {name: batch[name] for name in dict.fromkeys(("id", "label", *self.loss.needs)) if name in batch}
        own = {"pair": [pair.query, pair.target, pair.class_logits], "batch": needed}
        alone, device = processes() == 1, pair.query.features.device
        for part in [own] if alone else [row for rank in gather_rows([on_cpu(own)]) for row in rank]:
            ids, new = part["batch"]["id"].tolist(), []
            for row, index in enumerate(ids):
                if index not in self.seen:
                    self.seen.add(index)
                    new.append(row)
            if new:
                part = part if alone and len(new) == len(ids) else taken(part, torch.tensor(new), device)
                self._count(self.loss.class_loss(Pair(*part["pair"]), part["batch"]), len(new))

    def means(self) -> dict[str, float]:
        """Each term over the rows so far, and the numbers of rows that the loss counts."""
        means = {name: float(total) / max(1.0, float(rows)) for name, (total, rows) in self.sums.items()}
        return means | {name: float(count) for name, count in self.counts.items()}

    def _count(self, terms: dict[str, Tensor], rows: int) -> None:
        for name, value in terms.items():
            if name.endswith("_rows"):
                self.counts[name] = self.counts.get(name, 0) + value
                continue
            own = terms.get(f"{name.removeprefix('loss_')}_rows", rows)
            total, before = self.sums.get(name, (0, 0))
            self.sums[name] = total + value.detach().double() * own, before + own
