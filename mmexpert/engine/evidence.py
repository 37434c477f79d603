"""What the steps since the last poll were made of, so that a NaN can be traced to its samples and modules: nonfinite_step_N.json."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmexpert.engine.files import strict_json, write_atomic
from mmexpert.engine.parts import gradient_norms, own_part
from mmexpert.engine.runtime import Ranks

MicroBatch = tuple[Tensor, dict[str, Tensor]]
"""(ids int64 [B], loss terms)"""


@dataclass(frozen=True)
class Gradients:
    """L2 norms before clipping. names: of the parameters with a gradient; norms [P], one each; total: over all of them."""

    names: list[str]
    norms: Tensor
    total: Tensor


def clip_gradients(accelerator: Accelerator, parameters: Sequence[tuple[str, nn.Parameter]], limit: float) -> Gradients:
    """Scales the gradients of named parameters to a total norm of at most limit (inf only measures); the norms are kept, since a clipped
    NaN is everywhere."""
    accelerator.unscale_gradients()
    named = [(name, parameter) for name, parameter in parameters if parameter.grad is not None]
    if not named:
        zero = torch.zeros((), device=accelerator.device)
        return Gradients([], zero[None], zero)
    gradients = [parameter.grad for _, parameter in named]
    norms = gradient_norms(gradients, accelerator.device)
    total = torch.linalg.vector_norm(norms)
    if limit != math.inf:  # torch's clip_grads_with_norm_, which does not take whole and sharded gradients together
        torch._foreach_mul_([own_part(gradient) for gradient in gradients], (limit / (total + 1e-6)).clamp(max=1.0))
    return Gradients([name for name, _ in named], norms, total)


@dataclass
class Step:
    """One optimizer step of this rank; number counts from 1."""

    number: int
    epoch: int
    micro_batches: list[MicroBatch]
    gradients: Gradients

    def bad(self, scaled: bool) -> Tensor:
        """Whether a loss or, but for scaled gradients (their overflow is the scaler's business), the norm is not finite."""
        totals = torch.stack([losses["loss_total"] for _, losses in self.micro_batches])
        bad = ~torch.isfinite(totals).all()
        return bad if scaled else bad | ~torch.isfinite(self.gradients.total)

    def plain(self, names: Callable[[Sequence[int]], list[str]]) -> dict[str, Any]:
        """Its ids by name and numbers, read from the device."""
        batches = [
            {"ids": names(ids.tolist()), "losses": {term: told(value.item()) for term, value in losses.items()}}
            for ids, losses in self.micro_batches
        ]
        by_module: dict[str, float] = {}
        for name, norm in zip(self.gradients.names, self.gradients.norms.tolist(), strict=False):
            owner = name.rpartition(".")[0] or name
            by_module[owner] = math.hypot(by_module.get(owner, 0.0), norm)
        return {
            "step": self.number,
            "epoch": self.epoch,
            "micro_batches": batches,
            "grad_norm": told(self.gradients.total.item()),
            "grad_norm_by_module": {name: told(norm) for name, norm in by_module.items()},
        }


@dataclass
class Evidence:
    """Steps since the last poll, and how they become nonfinite_step_N.json in folder.

    names: ids of the data set's records -> their names. state: learned scales and rates, by logged name.
    """

    folder: Path
    ranks: Ranks
    names: Callable[[Sequence[int]], list[str]]
    state: Callable[[], dict[str, float]]
    steps: list[Step] = field(default_factory=list)
    micro_batches: list[MicroBatch] = field(default_factory=list)

    def see(self, ids: Tensor, losses: dict[str, Tensor]) -> None:
        """A micro-batch of the step under way."""
        self.micro_batches.append((ids, {name: value.detach() for name, value in losses.items()}))

    def close_step(self, number: int, epoch: int, gradients: Gradients) -> Step:
        """The step under way is complete."""
        step = Step(number, epoch, self.micro_batches, gradients)
        self.steps.append(step)
        self.micro_batches = []
        return step

    def clear(self) -> None:
        """Nothing was wrong since the last poll."""
        self.steps.clear()

    def write(self, scaled: bool) -> dict[str, Any]:
        """Called by every rank once one of them was bad: a file for each step that was bad on any rank; returns the first one's content."""
        mine = [(bool(step.bad(scaled)), step.plain(self.names)) for step in self.steps]
        gathered = self.ranks.gather_objects(mine)
        self.clear()
        contents = []
        for column in zip(*gathered, strict=True):
            if any(bad for bad, _ in column):
                first = column[0][1]
                common = {key: first[key] for key in ("step", "epoch", "grad_norm", "grad_norm_by_module")}
                by_rank = [{"rank": r, "bad": bad, "micro_batches": row["micro_batches"]} for r, (bad, row) in enumerate(column)]
                contents.append(common | {name: told(value) for name, value in self.state().items()} | {"ranks": by_rank})
        for content in contents if self.ranks.rank == 0 else []:
            write_atomic(self.folder / f"nonfinite_step_{content['step']}.json", strict_json(content, indent=1))
        return contents[0] if contents else mine[-1][1]


def told(value: float) -> float | str:
    """A number that JSON has, or the word: nan, inf, -inf."""
    return value if math.isfinite(value) else str(float(value))
